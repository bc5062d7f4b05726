"""The scripts and sweeps on a real SLURM, which `launch/slurm/one_node.sh` starts."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from tests.launch.programs import ROOT, TINY, last_step, program


def run_command(*arguments):
    """The output of a command, which must succeed."""
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def has_slurm():
    try:
        return bool(shutil.which("sbatch")) and run_command("sinfo", "-h", "-o", "%T") in (
            "idle",
            "mixed",
        )
    except AssertionError:
        return False


pytestmark = pytest.mark.skipif(
    not has_slurm(), reason="SLURM does not run here (launch/slurm/one_node.sh starts it)"
)


def wait_until(condition, job, seconds=300):
    """Waits until a condition is true; after the timeout, fails with the state of the job."""
    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(run_command("scontrol", "show", "job", job))


@pytest.fixture
def submit(tmp_path):
    """A function that submits a job; returns its number and log. The fixture cancels the jobs."""
    jobs = []

    def run(*arguments):
        log = tmp_path / "job.log"
        options = ["--parsable", "--mem=0", f"--output={log}", "--export=ALL"]
        jobs.append(run_command("env", f"PYTHON={sys.executable}", "sbatch", *options, *arguments))
        return jobs[-1], log

    yield run
    for job in jobs:
        subprocess.run(["scancel", job], check=False)


@pytest.mark.timeout(900)
def test_a_preempted_job_is_queued_again_and_continues(submit, prepared, tmp_path):
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
    wait_until(lambda: last_step(folder) >= 2, job)
    # As before a preemption or the time limit, the task gets a SIGTERM but the script does not.
    run_command("scancel", "--signal=TERM", job)
    wait_until(lambda: run_command("squeue", "-h", "-j", job, "-o", "%T") == "PENDING", job)
    assert "is saved; run the same command again" in log.read_text()
    assert not (folder / "results.json").exists()
    saved_step = last_step(folder)
    # SLURM waits at least two minutes before it starts the job again.
    wait_until(lambda: (folder / "results.json").exists(), job)
    output = log.read_text()
    assert output.count("process 0 of 1, 1 of 1 devices") == 2
    assert f"step {saved_step} is saved" in output
    assert last_step(folder) > saved_step


def test_the_tasks_of_a_job_connect(submit, prepared, tmp_path):
    folder = tmp_path / "run"
    train = [sys.executable, "-m", "launch.train", "--distributed=auto", *TINY]
    train += [f"--config.data.folder={prepared}", "--config.training.num_epochs=1"]
    job, log = submit(
        "--ntasks=2",
        "--overcommit",
        f"--wrap=srun --overcommit {' '.join(train)} --workdir={folder}",
    )
    wait_until(lambda: (folder / "results.json").exists(), job)
    output = log.read_text()
    assert "process 0 of 2, 1 of 2 devices" in output
    assert "process 1 of 2, 1 of 2 devices" in output


def test_a_sweep_runs_as_a_job_array(prepared, tmp_path):
    pytest.importorskip("submitit")
    process = program(
        "sweep",
        *TINY,
        f"--config.data.folder={prepared}",
        "--config.training.num_epochs=1",
        "--grid=split=leave_one_out,folds",
        f"--workdir={tmp_path}",
        "--executor=slurm",
        "--parallel=2",
        "--wait",
    )
    assert process.returncode == 1, process.stderr
    assert "1 of 2 runs failed" in process.stderr and "Traceback" not in process.stderr
    results = json.loads((tmp_path / "split=leave_one_out" / "results.json").read_text())
    assert "SASRec" in results["test"]
