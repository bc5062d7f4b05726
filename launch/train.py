"""Trains an experiment, then tests the checkpoint that validation selects.

    python -m launch.train --config=experiments/quick.py --workdir=runs/quick

Running the same command again goes on where the run stopped, however it was stopped; a run that has
ended prints its results. SIGTERM saves and ends with code 75: nothing is wrong, run it again.

One run on several hosts is this command on each of them, with `--coordinator=HOST:PORT
--process_count=N --process_id=0` to N - 1. Under a scheduler that JAX knows, `--distributed=auto`
takes the place of these three. The workdir is a folder that all hosts see.
"""

from launch import sigterm

if __name__ == "__main__":
    sigterm.exit_as_preempted()  # before the imports below, which take seconds

from pathlib import Path
from typing import Any

from absl import flags

from launch import flags as launch_flags
from launch.program import cache_compilations, run_program
from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError, admitted, field_names, flatten, resolve
from linseqrec.evaluation.result import selected_by
from linseqrec.runs.figures import write_figures
from linseqrec.runs.results import write_results
from linseqrec.runs.tables import results_table
from linseqrec.sharding import make_mesh
from linseqrec.training import distributed
from linseqrec.training.loop import train
from linseqrec.training.preemption import Preemption
from linseqrec.training.run import Run

launch_flags.define_config()
_WORKDIR = launch_flags.define_folder("workdir", "Folder of the run.")
_WANDB_PROJECT = flags.DEFINE_string("wandb_project", "", "Mirror metrics to this W&B project.")
_ALLOWED = flags.DEFINE_list(
    "allow_config_change",
    [],
    "Fields that may differ from what the workdir's run was started with.",
)
_GRACE = flags.DEFINE_float("grace", 20.0, "Seconds from SIGTERM to the end of the process.", 0.0)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the configuration, and end.")
_PROFILE = flags.DEFINE_integer("profile", 0, "Steps to trace, for TensorBoard's profiler.", 0)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 of several.")
_PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "Processes of this run.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", 0)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "none", ["none", "auto"], "auto: the cluster gives address, count and id."
)
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "Seconds to wait for the other processes.", 1
)
flags.register_multi_flags_validator(
    ["workdir", "print_config"],
    lambda given: bool(given["workdir"]) or given["print_config"],
    message="give the folder of the run: --workdir=runs/NAME",
)


def connect_processes() -> None:
    """Connects this process with the run's others, if the flags name any."""
    given = _COORDINATOR.value, _PROCESS_COUNT.value, _PROCESS_ID.value
    detect = _DISTRIBUTED.value == "auto"
    if detect or given != (None, None, None):
        distributed.initialize(*given, detect=detect, timeout=_INITIALIZATION_TIMEOUT.value)


def _full_name(field: str, experiment: Experiment) -> str:
    try:
        return resolve(field, field_names(experiment))
    # It may be a field of the run's own configuration alone.
    except ConfigError:
        return field


def main(argv: list[str]) -> None:
    del argv
    experiment = launch_flags.experiment()
    if _PRINT_CONFIG.value:
        for field, value in flatten(experiment).items():
            takes = admitted(field, experiment)
            print(f"{field} = {value!r}" + (f"  # {takes}" if takes else ""))
        return
    workdir = Path(_WORKDIR.value)
    with Preemption(_GRACE.value) as preemption:
        connect_processes()
        cache_compilations()
        with preemption.interruptible():
            run = Run.of(experiment, mesh=make_mesh(experiment.mesh))
        if experiment.loss.kind == "auto" and distributed.is_first():
            print(f"loss: {run.step.prediction_loss.title}", flush=True)
        state = train(
            run,
            workdir,
            preemption=preemption,
            wandb_project=_WANDB_PROJECT.value,
            allowed_changes=[_full_name(field, experiment) for field in _ALLOWED.value],
            profile_steps=_PROFILE.value,
        )
        with preemption.interruptible():
            results = write_results(run, state, workdir)
            if distributed.is_first():
                write_figures([workdir], workdir / "figures")
                _print_results(results, experiment, workdir)


def _print_results(results: dict[str, Any], experiment: Experiment, workdir: Path) -> None:
    print(f"\n{results['title']}\nstep {results['step']}, epoch {results['epoch']:.1f}, ", end="")
    # Results of earlier versions do not say it.
    by_validation = selected_by(experiment.evaluation.filter_seen)
    print(f"selected by {results.get('selected_by', by_validation)}\n")
    print(results_table(results["test"]))
    print(f"written to {workdir}: results.json, metrics.jsonl, ranks/, figures/")


if __name__ == "__main__":
    run_program(main)
