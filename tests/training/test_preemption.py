"""A SIGTERM or Ctrl-C between steps, while reading data, or in a validation: the run saves and
continues."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from linseqrec.training import saved_run
from linseqrec.training.loop import train
from linseqrec.training.preemption import EXIT_CODE, Preempted, Preemption
from linseqrec.training.step import StepRunner


def send_sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def in_a_step(run, monkeypatch, step):
    """Makes the run receive a SIGTERM in a step."""
    del run
    apply, calls = StepRunner.step, []

    def apply_or_terminate(self, batch):
        calls.append(1)
        if len(calls) == step:
            send_sigterm()
        return apply(self, batch)

    monkeypatch.setattr(StepRunner, "step", apply_or_terminate)


def by_ctrl_c(run, monkeypatch, step):
    """Makes the run receive a SIGINT in a step."""
    monkeypatch.setattr(
        "tests.training.test_preemption.send_sigterm", lambda: os.kill(os.getpid(), signal.SIGINT)
    )
    in_a_step(run, monkeypatch, step)


def in_validation(run, monkeypatch, step):
    """Makes the run receive a SIGTERM in the validation after a step."""
    evaluate, calls = type(run).evaluate, []

    def evaluate_or_terminate(self, params, split, **options):
        calls.append(1)
        if len(calls) == step // self.batches.steps_per_epoch:
            send_sigterm()
            pytest.fail("the validation did not end at once")
        return evaluate(self, params, split, **options)

    monkeypatch.setattr(type(run), "evaluate", evaluate_or_terminate)


def in_validation_of_several_processes(run, monkeypatch, step):
    """As `in_validation`, but with `interruptible` off, as in a run of several processes.

    The validation then ends between two batches, not at once.
    """
    num_batches = -(-len(run.evaluator("validation").lengths) // 16)
    calls_before = (step // run.batches.steps_per_epoch - 1) * num_batches
    encode, calls = run.model.encode, []

    def encode_or_terminate(params, events):
        calls.append(1)
        if len(calls) == calls_before + 2:
            send_sigterm()
        assert len(calls) <= calls_before + 2, "the validation did not end after this batch"
        return encode(params, events)

    monkeypatch.setitem(run.model.__dict__, "encode", encode_or_terminate)
    monkeypatch.setattr(Preemption, "interruptible", lambda self: contextlib.nullcontext())


def in_reading(run, monkeypatch, step):
    """Makes the run receive a SIGTERM while the loop waits for a batch."""
    read = type(run.batches).__getitem__

    def read_or_terminate(self, index):
        # The reader's thread is ahead of the loop. While it waits here, the loop gets no batch.
        if index == step:
            send_sigterm()
            threading.Event().wait(0.5)
        return read(self, index)

    monkeypatch.setattr(type(run.batches), "__getitem__", read_or_terminate)


@pytest.fixture
def heeds_sigint():
    """Where the suite runs in the background, it inherits that SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_run_in_the_background_goes_on_ignoring_sigint(heeds_sigint):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Preemption():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Preemption():
        assert signal.getsignal(signal.SIGINT) != signal.default_int_handler


@pytest.fixture(scope="module")
def train_once(tmp_path_factory):
    """A function that trains a run once per module; returns its state, best step and records."""
    cache = []

    def train_or_reuse(run):
        if not cache:
            folder = tmp_path_factory.mktemp("whole")
            state = train(run, folder)
            cache.append((state, int(state.step), list(saved_run.read_metrics(folder))))
        return cache[0]

    return train_or_reuse


@pytest.mark.parametrize(
    "terminate",
    [in_a_step, by_ctrl_c, in_validation, in_validation_of_several_processes, in_reading],
    ids=lambda function: function.__name__,
)
def test_a_preempted_and_resumed_run_equals_an_uninterrupted_one(
    terminate, experiment, make_run, train_once, heeds_sigint, tmp_path, monkeypatch, capsys
):
    uninterrupted = make_run(experiment)
    expected, best, records = train_once(uninterrupted)
    steps = uninterrupted.batches.steps_per_epoch
    # Validations are at the end of an epoch. The other signals arrive within one.
    in_a_validation = terminate in (in_validation, in_validation_of_several_processes)
    step = 2 * steps if in_a_validation else steps + 2

    interrupted = make_run(experiment)
    with monkeypatch.context() as patch:
        terminate(interrupted, patch, step)
        with pytest.raises(Preempted) as preempted:
            train(interrupted, tmp_path)
    assert 0 < preempted.value.step <= step
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler

    resumed = train(make_run(experiment), tmp_path)
    assert (
        f"goes on from step {preempted.value.step} of {interrupted.num_steps}"
        in capsys.readouterr().out
    )
    assert int(resumed.step) == best
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(saved_run.read_metrics(tmp_path)) == records


def test_a_process_in_a_call_that_no_signal_interrupts_exits_after_the_grace():
    # Like a compilation, the call does not return to Python, and it releases Python's lock.
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
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert process.returncode == EXIT_CODE
    assert "could not save within 0.2 s" in process.stderr


def test_the_context_restores_the_signal_handler():
    handler = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert signal.getsignal(signal.SIGTERM) != handler
        send_sigterm()
        assert preemption.requested
        with pytest.raises(Preempted), preemption.interruptible():
            pytest.fail("the context did not end at once")
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_signal_in_a_callback_that_may_not_raise_is_not_lost(capsys):
    class Dying:
        def __del__(self):
            send_sigterm()
            threading.Event().wait(0.001)

    with Preemption() as preemption, pytest.raises(Preempted), preemption.interruptible():
        dying = Dying()
        del dying
        threading.Event().wait(10)
        pytest.fail("the signal was lost")
    assert "Exception ignored" not in capsys.readouterr().err
