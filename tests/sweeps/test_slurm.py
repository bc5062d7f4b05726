"""Job arrays: what is asked of SLURM, from a stand-in for its programs; and the jobs themselves."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from linseqrec.errors import SweepError
from linseqrec.sweeps.slurm import (
    SlurmConfig,
    Training,
    queued,
    read_options,
    submit,
    wait_for,
)
from linseqrec.sweeps.task import Task

pytest.importorskip("submitit")


def stand_in(tmp_path, monkeypatch, sbatch, squeue="exit 1"):
    """Puts programs in the place of SLURM's; `sbatch` and `squeue` are the bodies of these."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, body in (("srun", sbatch), ("sbatch", sbatch), ("squeue", squeue)):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


def test_the_array_asks_for_what_it_was_given(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, f'cp "$1" {tmp_path}/sbatch.sh; echo Submitted batch job 12')
    config = SlurmConfig(
        time_limit=90,
        partition="long",
        gpus=1,
        cpus=8,
        parallel=2,
        lead_seconds=33,
        options=read_options(["account=lab 7", "qos=low", "constraint=a100&nvlink", "exclusive"]),
    )
    tasks = [Task(tmp_path / name, ("true",)) for name in "abc"]
    jobs = submit(tasks, config, tmp_path / "sweep" / "submitit")
    assert [job.job_id for job in jobs] == ["12_0", "12_1", "12_2"]
    asked = (tmp_path / "sbatch.sh").read_text().splitlines()
    for line in (
        "array=0-2%2",
        "time=90",
        "partition=long",
        "gpus-per-node=1",
        "cpus-per-task=8",
        "signal=USR2@33",
        "requeue",
        "job-name=sweep",
        "account='lab 7'",
        "qos=low",
        "constraint='a100&nvlink'",
        "exclusive",
    ):
        assert f"#SBATCH --{line}" in asked, asked


def test_jobs_that_are_left_in_the_queue_are_told_from_those_that_ended(tmp_path, monkeypatch):
    folder = tmp_path / "sweep" / "submitit"
    assert queued(folder) == {}
    asked = '[ "$*" = "--me --noheader --array --format=%i" ]'
    for number, names in ((12, "abc"), (13, "d")):
        # submitit makes an array of several jobs only.
        stand_in(
            tmp_path,
            monkeypatch,
            f"echo Submitted batch job {number}",
            squeue=f'{asked} && printf "12_1\\n13\\n7_0\\n"',
        )
        submit([Task(tmp_path / name, ("true",)) for name in names], SlurmConfig(), folder)
    assert queued(folder) == {"b": "12_1", "d": "13"}
    stand_in(tmp_path, monkeypatch, "", squeue="echo squeue: error: no controller >&2; exit 1")
    with pytest.raises(SweepError, match="squeue does not say .*: squeue: error: no controller"):
        queued(folder)


def test_what_slurm_refuses_is_said_in_its_words(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "echo sbatch: error: Invalid account >&2; exit 1")
    with pytest.raises(SweepError, match="SLURM rejects the jobs: .*error: Invalid account"):
        submit([Task(tmp_path, ("true",))], SlurmConfig(), tmp_path / "submitit")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["--account=lab"], "--account=lab is not NAME=VALUE: .* without dashes"),
        (["account="], "account= is not NAME=VALUE"),
        (["A=lab"], "A=lab is not NAME=VALUE: give the long name"),
        (["partition=gpu"], "partition=gpu is not allowed: use --slurm_partition"),
        (["gpus_per_node=8"], "gpus_per_node=8 is not allowed: use --slurm_gpus"),
        (["output=log"], "output=log is not allowed: leave it out, submitit sets it"),
        (["qos=a", "qos=b"], "qos is given twice"),
    ],
    ids=[
        "dashes",
        "no value",
        "short name",
        "partition",
        "GPUs",
        "output",
        "twice",
    ],
)
def test_an_option_that_cannot_be_is_refused(entries, message):
    with pytest.raises(SweepError, match=message):
        read_options(entries)


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SweepError, match="srun"):
        submit([Task(tmp_path, ("true",))], SlurmConfig(), tmp_path)


def test_without_submitit_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SweepError, match=r"pip install -e '.\[slurm\]'"):
        submit([Task(tmp_path, ("true",))], SlurmConfig(), tmp_path)


def test_a_job_told_to_end_is_queued_again_and_goes_on(tmp_path):
    # The first time it waits to be told to end, the second it finds its trace and finishes.
    code = f"""
import pathlib, signal, sys
trace = pathlib.Path({str(tmp_path)!r}) / "begun"
if trace.exists():
    sys.exit(print("went on"))
# A notice that ended it would look like a failure, where it comes here first.
print("blocked:", signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)
trace.touch()
signal.pause()
"""
    tasks = [
        Task(tmp_path / "interrupted", (sys.executable, "-c", code)),
        Task(tmp_path / "bad", (sys.executable, "-c", "raise SystemExit('no such thing')")),
    ]
    jobs = submit(tasks, SlurmConfig(), tmp_path / "submitit", cluster="local")
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    # What SLURM does some time before it ends a job, to every process of it.
    for pid in [*_descendants(jobs[0]._process.pid)]:
        os.kill(int(pid), signal.SIGUSR2)
    (failure,) = wait_for(jobs, tasks)
    assert failure.task == tasks[1] and "no such thing" in str(failure)
    log = (tmp_path / "interrupted" / "log.txt").read_text()
    assert "blocked: True\n" in log
    assert log.count("$ ") == 2 and log.endswith("went on\n")


def test_a_notice_while_the_training_starts_ends_the_training(tmp_path, monkeypatch):
    started = []

    def start(task):
        started.append(subprocess.Popen(["sleep", "60"]))
        # Another thread takes it, as any of a process with JAX may.
        other = threading.Thread(target=take_signal)
        other.start()
        other.join()
        return started[0]

    def take_signal():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

    def queue_again(number, frame):
        raise InterruptedError

    monkeypatch.setattr(Task, "start", start)
    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        with pytest.raises(InterruptedError):
            Training(Task(tmp_path, ()))()
        assert started[0].poll() == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGUSR2, before)
        started[0].kill()


def _descendants(pid):
    """Process ids below a process, the deepest first."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            for child in file.read().split():
                yield from _descendants(child)
                yield child
