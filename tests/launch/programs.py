"""How tests start programs, and the small experiment that they train."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
    "--config=experiments/recgrela_quick.py",
    "--config.model.width=16",
    "--config.model.num_layers=1",
    "--config.data.length=16",
    "--config.data.batch_size=8",
    "--config.training.num_epochs=2",
    "--config.optimizer.warmup_steps=2",
    "--config.evaluation.filter_seen=none",
    "--config.evaluation.filter_seen=all",
]


def program(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
