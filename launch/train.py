"""Trains an experiment and tests the checkpoint that validation selects.

    python -m launch.train --config=experiments/recgrela_quick.py --workdir=runs/quick

Running the same command again resumes the run, or, if it has ended, prints its results.
"""

from pathlib import Path

from absl import app, flags

from launch import flags as launch_flags
from linseqrec.training.loop import train
from linseqrec.training.run import Run

launch_flags.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)


def main(_: list[str]) -> None:
    run = Run.of(launch_flags.experiment())
    state, step = train(run, Path(_WORKDIR.value))


if __name__ == "__main__":
    app.run(main)
