"""How tests start programs, and the small experiments that they train."""

import os
import pathlib
import time

from linseqrec.training import workdir
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
# Smaller still: for runs that are started many times.
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
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    return Program(f"launch.{name}", [*map(str, arguments)], cwd=ROOT, env=environment)


def program(name, *arguments, devices=1):
    return start(name, *arguments, devices=devices).end()


def last_step(folder):
    return max((int(record["step"]) for record in workdir.read_metrics(folder)), default=0)


def killed(arguments, folder, moment, number):
    """Trains, and kills the program at a moment; returns False where it ended before."""
    before = last_step(folder)
    process = start("train", *arguments)
    while process.runs() and not moment(folder, before):
        time.sleep(0.02)
    process.send_signal(number)
    return process.end().returncode in (-number, EXIT_CODE)
