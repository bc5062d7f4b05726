"""Functions that start programs in tests, and flags of small experiments."""

import os
import pathlib
import time

from linseqrec.training import saved_run
from linseqrec.training.preemption import EXIT_CODE
from tests.launch.forked import Program

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
    "--config=experiments/quick.py",
    "--config.model.width=16",
    "--config.model.num_layers=1",
    "--config.data.length=16",
    "--config.data.batch_size=8",
    "--config.training.num_epochs=2",
    "--config.optimizer.warmup_steps=2",
    "--config.evaluation.filter_seen=none,all",
]
# An even smaller experiment, for runs that a test starts many times.
TINY = [
    "--config=experiments/quick.py:sasrec",
    "--config.model.width=8",
    "--config.model.num_layers=1",
    "--config.model.heads=1",
    "--config.data.length=8",
    "--config.data.batch_size=4",
    "--config.optimizer.warmup_steps=2",
    "--config.training.log_every=1",
]


def start(name, *arguments, devices=1):
    """Starts `python -m launch.NAME` with simulated devices, and does not wait for it."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    return Program(f"launch.{name}", [*map(str, arguments)], cwd=ROOT, env=environment)


def program(name, *arguments, devices=1):
    """Runs `python -m launch.NAME`; returns its exit code and output."""
    return start(name, *arguments, devices=devices).end()


def last_step(folder):
    """The last step in a run's metrics; 0 if there is none."""
    return max((int(record["step"]) for record in saved_run.read_metrics(folder)), default=0)


def train_and_kill(arguments, folder, moment, number):
    """Starts launch.train and sends it a signal as soon as `moment(folder, first_step)` is true.

    `first_step` is the run's last step before this start.

    Returns:
      Whether the signal ended the program; False if it ended by itself before.
    """
    first_step = last_step(folder)
    process = start("train", *arguments)
    while process.runs() and not moment(folder, first_step):
        time.sleep(0.02)
    process.send_signal(number)
    return process.end().returncode in (-number, EXIT_CODE)
