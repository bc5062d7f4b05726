"""The quick start: trains RecGRELA and SASRec on generated data and compares them with baselines.

    python -m launch.quickstart

The program trains each model for about a minute on two CPU cores, prints one table, and saves
figures. The data come from a generated world, which draws each next event of a user from a known
distribution. The oracle ranks by this distribution, so its row is the best possible score.
"""

from pathlib import Path
from typing import Any

from experiments import quick
from launch import flags as launch_flags
from launch.program import run_program
from linseqrec.runs.figures import write_figures
from linseqrec.runs.results import write_results
from linseqrec.runs.tables import results_table
from linseqrec.training.loop import train
from linseqrec.training.run import Run

_WORKDIR = launch_flags.define_folder("workdir", "Folder of the runs.", default="runs/quickstart")


def main(argv: list[str]) -> None:
    del argv
    folders: list[Path] = []
    models: dict[str, Any] = {}
    source = None
    for name in ("recgrela", "sasrec"):
        run = Run.of(quick.get_config(name), source)
        source = run.source
        folders.append(Path(_WORKDIR.value) / name)
        print(f"training {run.experiment.name}, {run.num_steps} steps", flush=True)
        state = train(run, folders[-1])
        results = write_results(run, state, folders[-1])
        models[run.experiment.name] = results["test"].pop(run.experiment.name)
    paths = write_figures(folders, Path(_WORKDIR.value) / "figures")
    print(f"\nGenerated world {run.experiment.data.world!r} (synthetic data)\n")
    print(results_table(models | results["test"]))
    print("figures:", *paths, sep="\n  ")


if __name__ == "__main__":
    run_program(main)
