"""SIGTERM, where it finds the run: between steps, reading data, validating."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from linseqrec.training import workdir
from linseqrec.training.loop import train
from linseqrec.training.preemption import EXIT_CODE, Preempted, Preemption


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def in_a_step(run, monkeypatch, step):
    original, calls = run.step.update, []

    def stepping(state, batch):
        calls.append(1)
        if len(calls) == step:
            terminate()
        return original(state, batch)

    monkeypatch.setitem(run.step.__dict__, "update", stepping)


def in_validation(run, monkeypatch, step):
    original, calls = type(run).evaluate, []

    def evaluating(self, params, split, **options):
        calls.append(1)
        if len(calls) == step // self.batches.steps_per_epoch:
            terminate()
            pytest.fail("the validation went on")
        return original(self, params, split, **options)

    monkeypatch.setattr(type(run), "evaluate", evaluating)


def in_validation_of_several(run, monkeypatch, step):
    """Where others take part, it is left between batches, and not at once."""
    batches = -(-len(run.evaluator("validation").lengths) // 16)
    before = (step // run.batches.steps_per_epoch - 1) * batches
    original, calls = run.model.encode, []

    def encoding(params, events):
        calls.append(1)
        if len(calls) == before + 2:
            terminate()
        assert len(calls) <= before + 2, "the validation went on"
        return original(params, events)

    monkeypatch.setitem(run.model.__dict__, "encode", encoding)
    monkeypatch.setattr(Preemption, "interruptible", lambda self: contextlib.nullcontext())


def in_reading(run, monkeypatch, step):
    original = type(run.batches).__getitem__

    def reading(self, index):
        # The reader's thread is ahead: where it stands, no batch comes, and the loop waits.
        if index == step:
            terminate()
            threading.Event().wait(0.5)
        return original(self, index)

    monkeypatch.setattr(type(run.batches), "__getitem__", reading)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """An unbroken run of an experiment: its state, best step and records, trained once."""
    made = []

    def make(run):
        if not made:
            folder = tmp_path_factory.mktemp("whole")
            made.append((*train(run, folder), list(workdir.read_metrics(folder))))
        return made[0]

    return make


@pytest.mark.parametrize("moment", [in_a_step, in_validation, in_validation_of_several, in_reading])
def test_a_preempted_run_saves_and_ends_as_an_unbroken_one(
    moment, experiment, make_run, unbroken, tmp_path, monkeypatch
):
    whole = make_run(experiment)
    expected, best, records = unbroken(whole)
    steps = whole.batches.steps_per_epoch
    # A validation comes at the end of an epoch; the others in the midst of one.
    validates = moment in (in_validation, in_validation_of_several)
    step = 2 * steps if validates else steps + 2

    broken = make_run(experiment)
    with monkeypatch.context() as patch:
        moment(broken, patch, step)
        with pytest.raises(Preempted) as preempted:
            train(broken, tmp_path)
    assert 0 < preempted.value.step <= step
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    resumed, resumed_best = train(make_run(experiment), tmp_path)
    assert resumed_best == best
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(workdir.read_metrics(tmp_path)) == records


def test_what_no_signal_interrupts_ends_in_time_all_the_same():
    # A call that holds no lock and never returns to Python, as a compilation for its time.
    program = (
        "import ctypes, os, signal, threading\n"
        "from linseqrec.training.preemption import Preemption\n"
        "libc = ctypes.CDLL(None)\n"
        "with Preemption(grace=0.2):\n"
        "    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    while True:\n"
        "        libc.usleep(100_000_000)\n"
        "        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_CODE
    assert "no step ended in time" in done.stderr


def test_signals_are_as_before_outside():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert signal.getsignal(signal.SIGTERM) != before
        terminate()
        assert preemption.requested
        with pytest.raises(Preempted), preemption.interruptible():
            pytest.fail("it was to be left at once")
    assert signal.getsignal(signal.SIGTERM) == before
