r"""Trains many runs of an experiment: grids, zips and random draws over its fields.

    python -m launch.sweep --config=experiments/quick.py:sasrec --workdir=runs/sweep \
        --grid optimizer.learning_rate=1e-3,3e-4 --grid seed=0,1,2 --parallel=2

Name a field in full, or by an end of its name that no other has (`seed`). All `--zip` lists
advance together. `--random=N` draws N times from all `--range`s together. The runs are the product
of the grids, the zipped lists and the draws. `--config.FIELD=VALUE` holds for every run.

The plan is printed first. Each run has a folder named from its overrides; the same command again
skips the runs that have finished, train now or wait in SLURM's queue, and goes on with the others.
A list stands in brackets among the values: `--grid 'filter_seen=none,[none,all]'`.
"""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import flags as launch_flags
from launch.program import run_program
from linseqrec.sweeps.axes import read_axes
from linseqrec.sweeps.local import GRACE_SECONDS, Interrupted, run_local
from linseqrec.sweeps.plan import PlannedRun, check_no_clash, make_plan, plan_table
from linseqrec.sweeps.slurm import SlurmConfig, queued, read_options, submit, wait_for
from linseqrec.sweeps.task import Failure, Task, train_task

launch_flags.define_config()
_WORKDIR = launch_flags.define_folder("workdir", "Folder of the sweep, with a folder for each run.")
flags.mark_flag_as_required("workdir")
_GRID = flags.DEFINE_multi_string("grid", [], "FIELD=VALUE,VALUE,...: runs with each value.")
_ZIP = flags.DEFINE_multi_string(
    "zip", [], "FIELD=VALUE,VALUE,...: the n-th value goes with the n-th value of each other --zip."
)
_RANGE = flags.DEFINE_multi_string(
    "range", [], "FIELD=log:LOW:HIGH, lin:LOW:HIGH or int:LOW:HIGH: --random draws from it."
)
_RANDOM = flags.DEFINE_integer("random", 0, "Number of random draws from the ranges.", 0)
_SWEEP_SEED = flags.DEFINE_integer("sweep_seed", 0, "Seed of the draws, not of the runs.", 0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan, and exit.")
_EXECUTOR = flags.DEFINE_enum(
    "executor",
    "local",
    ["local", "slurm", "submitit_local", "print"],
    "This machine; a SLURM job array; the same jobs on this machine; or print the commands.",
)
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Runs at a time (local, slurm).", 1)
_DEVICES = flags.DEFINE_list("devices", [], "local: CUDA devices, one for each run at a time.")
_WAIT = flags.DEFINE_bool("wait", False, "slurm: wait for the jobs, and name those that failed.")
_TIME_LIMIT = flags.DEFINE_integer("slurm_time_limit", 60, "Minutes of a job.", 1)
_PARTITION = flags.DEFINE_string("slurm_partition", "", "Partition; empty: the default.")
_GPUS = flags.DEFINE_integer("slurm_gpus", 0, "GPUs of a job.", 0)
_CPUS = flags.DEFINE_integer("slurm_cpus", 1, "CPU cores of a job.", 1)
_MEMORY = flags.DEFINE_integer("slurm_memory_gb", 0, "Memory of a job; 0: the default.", 0)
_REQUEUES = flags.DEFINE_integer("slurm_requeues", 10, "Times a job may reach its time limit.", 0)
_LEAD = flags.DEFINE_integer("slurm_lead", 120, "Seconds from SIGTERM to the end of the job.", 1)
_OPTION = flags.DEFINE_multi_string(
    "slurm_option", [], "NAME=VALUE, another option of sbatch: account=lab, qos=long; repeatable."
)
_WANDB_PROJECT = flags.DEFINE_string("wandb_project", "", "Mirror metrics to this W&B project.")

# The folder of submitit's files, in the workdir.
_JOBS = "submitit"


def main(argv: list[str]) -> None:
    del argv
    experiment, workdir = launch_flags.experiment(), Path(_WORKDIR.value)
    given = launch_flags.overrides(experiment)
    slurm = _slurm_config()
    axis = read_axes(
        experiment,
        grids=_GRID.value,
        zips=_ZIP.value,
        ranges=_RANGE.value,
        draws=_RANDOM.value,
        seed=_SWEEP_SEED.value,
        fixed=given,
    )
    jobs = queued(workdir / _JOBS) if _EXECUTOR.value == "slurm" else {}
    plan = make_plan(experiment, axis, workdir, queued=jobs)
    # With --executor=print, stdout has the commands alone.
    with contextlib.redirect_stdout(sys.stderr if _EXECUTOR.value == "print" else sys.stdout):
        print(plan_table(plan), flush=True)
    check_no_clash(plan)
    if _DRY_RUN.value:
        return
    left = [run for run in plan if run.state in ("new", "partial")]
    tasks = [_task(run, given) for run in left]
    failures = _execute(tasks, workdir, slurm)
    if failures:
        listed = "\n".join(map(str, failures))
        sys.exit(f"\n{len(failures)} of {len(tasks)} runs failed:\n{listed}")


def _task(run: PlannedRun, given: dict[str, object]) -> Task:
    other = [f"--wandb_project={_WANDB_PROJECT.value}"] if _WANDB_PROJECT.value else []
    if _EXECUTOR.value == "local":
        other.append(f"--grace={GRACE_SECONDS}")
    elif _EXECUTOR.value != "print":
        # SLURM ends the job `--slurm_lead` seconds after SIGTERM: the run must save before that.
        other.append(f"--grace={max(_LEAD.value - 30, _LEAD.value // 2)}")
    return train_task(flags.FLAGS.config, given | run.overrides, other, run.folder)


def _slurm_config() -> SlurmConfig:
    return SlurmConfig(
        time_limit=_TIME_LIMIT.value,
        partition=_PARTITION.value,
        gpus=_GPUS.value,
        cpus=_CPUS.value,
        memory_gb=_MEMORY.value,
        parallel=_PARALLEL.value,
        requeues=_REQUEUES.value,
        lead_seconds=_LEAD.value,
        options=read_options(_OPTION.value),
    )


def _execute(tasks: Sequence[Task], workdir: Path, slurm: SlurmConfig) -> list[Failure]:
    if _EXECUTOR.value == "print":
        for task in tasks:
            print(shlex.join(task.command))
        return []
    if not tasks:
        return []
    if _EXECUTOR.value == "local":
        return _run_here(tasks)
    cluster = {"slurm": "slurm", "submitit_local": "local"}[_EXECUTOR.value]
    jobs = submit(tasks, slurm, workdir / _JOBS, cluster=cluster)
    for job, task in zip(jobs, tasks, strict=True):
        print(f"job {job.job_id}: {task.folder.name}", flush=True)
    return wait_for(jobs, tasks) if _WAIT.value else []


def _run_here(tasks: Sequence[Task]) -> list[Failure]:
    try:
        return run_local(tasks, parallel=_PARALLEL.value, devices=_DEVICES.value)
    except Interrupted as stop:
        print(f"\n{stop}; go on with the same command:\n  {shlex.join(sys.orig_argv)}")
        # As the shell counts a command that a signal ended.
        sys.exit(128 + stop.signal)


if __name__ == "__main__":
    run_program(main)
