"""Trains an experiment, then tests the checkpoint that validation selects.

    python -m launch.train --config=experiments/recgrela_quick.py --workdir=runs/quick

Running the same command again goes on where the run stopped, however it was stopped; a run that has
ended prints its results. SIGTERM saves and ends with code 75: nothing is wrong, run it again.
"""

from pathlib import Path

from absl import flags

from launch import flags as launch_flags
from launch.program import cache_compilations, run_program
from linseqrec.config import flatten
from linseqrec.evaluation.table import results_table
from linseqrec.sharding import make_mesh
from linseqrec.training.loop import train
from linseqrec.training.results import write_figures, write_results
from linseqrec.training.run import Run

launch_flags.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_WANDB_PROJECT = flags.DEFINE_string("wandb_project", "", "Mirror metrics to this W&B project.")
_ALLOWED = flags.DEFINE_list(
    "allow_config_change",
    [],
    "Fields that may differ from what the workdir's run was started with.",
)
_GRACE = flags.DEFINE_float("grace", 20.0, "Seconds from SIGTERM to the end of the process.", 0.0)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the configuration, and end.")
_PROFILE = flags.DEFINE_integer("profile", 0, "Steps to trace, for TensorBoard's profiler.", 0)


def main(argv: list[str]) -> None:
    del argv
    experiment, workdir = launch_flags.experiment(), Path(_WORKDIR.value)
    if _PRINT_CONFIG.value:
        print("\n".join(f"{key} = {value!r}" for key, value in flatten(experiment).items()))
        return
    cache_compilations(workdir / "compilations")
    run = Run.of(experiment, mesh=make_mesh(experiment.mesh))
    state, _ = train(
        run,
        workdir,
        wandb_project=_WANDB_PROJECT.value,
        allowed_changes=_ALLOWED.value,
        grace=_GRACE.value,
        profile_steps=_PROFILE.value,
    )
    results = write_results(run, state, workdir)
    write_figures([workdir], workdir / "figures")
    print(f"\n{results['title']}\nstep {results['step']}, epoch {results['epoch']:.1f}\n")
    print(results_table(results["test"]))
    print(f"written to {workdir}: results.json, metrics.jsonl, ranks/, figures/")


if __name__ == "__main__":
    run_program(main)
