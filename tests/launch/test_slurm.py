"""The scripts and sweeps on a real SLURM: `launch/slurm/one_node.sh` starts one."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from tests.launch.programs import ROOT, TINY, last_step, program


def command(*arguments):
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def up():
    try:
        return bool(shutil.which("sbatch")) and command("sinfo", "-h", "-o", "%T") in (
            "idle",
            "mixed",
        )
    except AssertionError:
        return False


pytestmark = pytest.mark.skipif(not up(), reason="no SLURM here (launch/slurm/one_node.sh)")


def until(moment, job, seconds=300):
    """Waits until something is so; a job that is gone by then has failed."""
    for _ in range(10 * seconds):
        if moment():
            return
        time.sleep(0.1)
    raise AssertionError(command("scontrol", "show", "job", job))


@pytest.fixture
def submit(tmp_path):
    """Submits a script's job and gives its number and log; what is left of it is cancelled."""
    jobs = []

    def run(*arguments):
        log = tmp_path / "job.log"
        options = ["--parsable", "--mem=0", f"--output={log}", "--export=ALL"]
        jobs.append(command("env", f"PYTHON={sys.executable}", "sbatch", *options, *arguments))
        return jobs[-1], log

    yield run
    for job in jobs:
        subprocess.run(["scancel", job], check=False)


@pytest.mark.timeout(900)
def test_a_preempted_job_is_queued_again_and_goes_on(submit, prepared, tmp_path):
    folder = tmp_path / "run"
    job, log = submit(
        "--nodes=1",
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        "launch/slurm/train.sh",
        *TINY,
        f"--config.data.folder={prepared}",
        "--config.training.num_epochs=30",
        f"--workdir={folder}",
    )
    until(lambda: last_step(folder) >= 2, job)
    # As before a preemption or the time limit: SIGTERM to the task, not to the script.
    command("scancel", "--signal=TERM", job)
    until(lambda: command("squeue", "-h", "-j", job, "-o", "%T") == "PENDING", job)
    assert "is saved; the same command goes on" in log.read_text()
    assert not (folder / "results.json").exists()
    before = last_step(folder)
    # SLURM starts it again two minutes later at the earliest.
    until(lambda: (folder / "results.json").exists(), job)
    said = log.read_text()
    assert said.count("process 0 of 1, 1 of 1 devices") == 2
    assert f"step {before} is saved" in said
    assert last_step(folder) > before


def test_tasks_find_each_other(submit, prepared, tmp_path):
    folder = tmp_path / "run"
    train = [sys.executable, "-m", "launch.train", "--distributed=auto", *TINY]
    train += [f"--config.data.folder={prepared}", "--config.training.num_epochs=1"]
    job, log = submit(
        "--ntasks=2",
        "--overcommit",
        f"--wrap=srun --overcommit {' '.join(train)} --workdir={folder}",
    )
    until(lambda: (folder / "results.json").exists(), job)
    said = log.read_text()
    assert "process 0 of 2, 1 of 2 devices" in said and "process 1 of 2, 1 of 2 devices" in said


def test_a_sweep_is_a_job_array(prepared, tmp_path):
    pytest.importorskip("submitit")
    done = program(
        "sweep",
        *(argument for argument in TINY if "warmup_steps" not in argument),
        f"--config.data.folder={prepared}",
        "--config.training.num_epochs=1",
        "--grid=warmup_steps=1,99999",
        f"--workdir={tmp_path}",
        "--executor=slurm",
        "--parallel=2",
        "--wait",
    )
    assert done.returncode == 1, done.stderr
    assert "1 of 2 runs failed" in done.stderr and "Traceback" not in done.stderr
    results = json.loads((tmp_path / "warmup_steps=1" / "results.json").read_text())
    assert "SASRec" in results["test"]
