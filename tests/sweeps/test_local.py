"""Worker processes, with small programs in the place of trainings."""

import gc
import os
import signal
import subprocess
import sys

import pytest

from linseqrec.errors import SweepError
from linseqrec.sweeps import local
from linseqrec.sweeps.local import Interrupted, run_local
from linseqrec.sweeps.task import Failure, Task


def task(folder, code):
    return Task(folder, (sys.executable, "-c", code))


def test_a_failed_run_stops_no_other_and_is_named_with_its_log(tmp_path):
    tasks = [
        task(tmp_path / "bad", "for i in range(30): print('line', i)\nraise SystemExit(3)"),
        task(tmp_path / "good", "print('well')"),
        task(tmp_path / "told to end", "raise SystemExit(75)"),
        task(tmp_path / "shot", "import os; os.kill(os.getpid(), 9)"),
    ]
    bad, shot, told = sorted(run_local(tasks), key=lambda failure: str(failure.task.folder))
    assert (bad.task, bad.reason) == (tasks[0], "exit code 3")
    assert (shot.task, shot.reason) == (tasks[3], "ended by SIGKILL")
    assert (told.task, told.reason) == (
        tasks[2],
        "preempted; run the same command again to continue",
    )
    assert "line 20\n" in str(bad) and str(bad).endswith("line 29") and "line 19" not in str(bad)
    log = (tmp_path / "good" / "log.txt").read_text().splitlines()
    assert log[0].startswith("$ ") and log[1:] == ["well"]


def test_each_worker_has_a_device_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # Two that run at the same time: each waits until the other has begun.
    code = """
import os, pathlib, time
place = pathlib.Path({place!r})
(place / str(os.getpid())).touch()
while {parallel} > len(list(place.iterdir())): time.sleep(0.01)
print(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
"""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    tasks = [task(tmp_path / name, code.format(place=str(meeting), parallel=2)) for name in "ab"]
    assert run_local(tasks, parallel=2, devices=["3", "5", "7"]) == []
    used = [(item.folder / "log.txt").read_text().splitlines()[-1] for item in tasks]
    assert sorted(used) == ["3", "5"]
    plain = task(tmp_path / "plain", code.format(place=str(meeting), parallel=1))
    assert run_local([plain]) == []
    assert (plain.folder / "log.txt").read_text().endswith("unset\n")


def test_runs_on_one_gpu_share_its_memory(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    code = "import os; print(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', 'unset'))"

    def given(name, **arguments):
        tasks = [task(tmp_path / f"{name}{index}", code) for index in range(3)]
        assert run_local(tasks, **arguments) == []
        return [(each.folder / "log.txt").read_text().splitlines()[-1] for each in tasks]

    assert given("alone") == ["unset"] * 3
    assert given("together", parallel=3) == ["0.300"] * 3
    assert sorted(given("two on 0", parallel=3, devices=["0", "0", "1"])) == [
        "0.450",
        "0.450",
        "unset",
    ]
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")
    assert given("told", parallel=3) == ["0.2"] * 3


def test_more_workers_than_devices_are_refused(tmp_path):
    with pytest.raises(SweepError, match="2 runs at a time on 1 devices"):
        run_local([task(tmp_path, "")], parallel=2, devices=["0"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_runs_by_sigterm_and_waits_for_them(tmp_path, number, monkeypatch):
    # Longer than a test may last: the sweep must not wait for runs that never started.
    monkeypatch.setattr(local, "_PATIENCE_SECONDS", 1e6)
    code = f"""
import os, signal, sys, time
def end(*_):
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
os.kill(os.getppid(), {int(number)})
while True: signal.pause()
"""
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name):
        run_local([task(tmp_path / "a", code), task(tmp_path / "b", "")])
    assert (tmp_path / "a" / "log.txt").read_text().endswith("saved\n")
    assert not (tmp_path / "b").exists()
    assert signal.getsignal(number) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_is_raised_again(tmp_path, monkeypatch):
    """What its handler raises in a callback of the garbage collector goes nowhere."""

    def send(phase, _):
        if phase == "stop":
            gc.callbacks.remove(send)
            os.kill(os.getpid(), signal.SIGINT)

    def wait_and_collect(outcomes, timeout):
        gc.callbacks.append(send)
        gc.collect()
        monkeypatch.undo()
        return local.wait(outcomes, timeout)

    monkeypatch.setattr(local, "wait", wait_and_collect)
    with pytest.raises(Interrupted, match="SIGINT"):
        run_local([task(tmp_path, "import time; time.sleep(60)")])


def test_a_run_that_left_no_log_is_named_too(tmp_path):
    failure = Failure(Task(tmp_path / "none", ("x",)), "cannot be started")
    assert "cannot be started" in str(failure)
    (missing,) = run_local([Task(tmp_path / "b", (str(tmp_path / "no-program"),))])
    assert "No such file" in missing.reason


def test_a_hangup_that_nohup_ignores_stops_no_run(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = "import os, signal; os.kill(os.getppid(), signal.SIGHUP); print('well')"
        assert run_local([task(tmp_path, hang_up)]) == []
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "log.txt").read_text().endswith("well\n")


def test_a_sweep_whose_output_nobody_reads_ends(tmp_path):
    code = f"""
import pathlib
from linseqrec.sweeps.local import run_local
from linseqrec.sweeps.task import Task
run_local([Task(pathlib.Path({str(tmp_path)!r}) / name, ("true",)) for name in "abc"])
"""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode != 0 and "BrokenPipeError" in done.stderr
