"""Runs as a SLURM job array, through submitit."""

import dataclasses
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linseqrec.errors import SweepError
from linseqrec.sweeps.task import Failure, Task, reason_of

# Options of sbatch that are not free, and what to use instead: a flag of the sweep, or None where
# submitit needs its own.
_TAKEN = {
    "array": "--parallel",
    "cpus-per-task": "--slurm_cpus",
    "error": None,
    "gpus-per-node": "--slurm_gpus",
    "job-name": "--workdir, whose folder names the jobs",
    "mem": "--slurm_memory_gb",
    "no-requeue": "--slurm_requeues",
    "nodes": None,
    "ntasks-per-node": None,
    "open-mode": None,
    "output": None,
    "partition": "--slurm_partition",
    "requeue": "--slurm_requeues",
    "signal": "--slurm_lead",
    "time": "--slurm_time_limit",
}


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
    """What each job of the array asks for.

    Attributes:
      time_limit: Minutes.
      partition: Empty for the cluster's default.
      gpus: A job's GPUs.
      cpus: A job's CPU cores.
      memory_gb: A job's memory; 0 for the cluster's default.
      parallel: Jobs at a time.
      requeues: How often a job that reaches its time limit is queued again; one that is preempted
        always is.
      lead_seconds: How long before the time limit (or a preemption, where the cluster gives
        notice) the training is told to end by SIGTERM.
      options: Further options of sbatch, by their long names (see `read_options`).
    """

    time_limit: int = 60
    partition: str = ""
    gpus: int = 0
    cpus: int = 1
    memory_gb: int = 0
    parallel: int = 1
    requeues: int = 10
    lead_seconds: int = 120
    options: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)


def read_options(entries: Sequence[str]) -> dict[str, str | bool]:
    """Reads options of sbatch.

    Args:
      entries: "account=lab" each; "exclusive" for an option that takes no value.

    Returns:
      The values by name, True for an option without one.

    Raises:
      SweepError: If one is not written so, comes twice, or is the sweep's own to set.
    """
    options: dict[str, str | bool] = {}
    for entry in entries:
        name, separator, value = entry.partition("=")
        name = name.replace("_", "-")
        if not re.fullmatch("[a-z][a-z0-9-]+", name) or (separator and not value):
            raise SweepError(
                f"--slurm_option={entry} is not NAME=VALUE with the long name of an option of "
                "sbatch, without dashes before it: --slurm_option=account=lab"
            )
        if name in _TAKEN:
            instead = f"use {_TAKEN[name]}" if _TAKEN[name] else "submitit sets it"
            raise SweepError(f"--slurm_option={entry} is not free: {instead}")
        if name in options:
            raise SweepError(f"--slurm_option={name} is given twice")
        options[name] = value if separator else True
    return options


class Training:
    """What a job runs; queued again, it runs the same command, which resumes the training."""

    def __init__(self, task: Task):
        self.task = task

    def __call__(self) -> None:
        """Trains to the end.

        Raises:
          RuntimeError: If the training failed.
        """
        # The notice of the end goes to every process of a job. It is for this one: the training,
        # which would die of it and look like a failure, inherits the block.
        notice = {signal.SIGUSR2}
        signal.pthread_sigmask(signal.SIG_BLOCK, notice)
        process = self.task.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, notice)
        try:
            code = process.wait()
        finally:
            # A job that is queued again leaves by an exception; its folder must be free by then.
            _end(process)
        if code:
            raise RuntimeError(str(Failure(self.task, reason_of(code))))

    def checkpoint(self) -> Any:
        """What to queue when the job has to end: itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Training(self.task))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def submit(
    tasks: Sequence[Task],
    config: SlurmConfig,
    folder: Path,
    *,
    cluster: str = "slurm",
) -> list[Any]:
    """Submits the tasks as one job array.

    Args:
      tasks: A job each.
      config: What they ask for.
      folder: Where submitit keeps its files; on a cluster, shared with its nodes.
      cluster: "slurm"; "local" runs the same jobs on this machine, all at once, to try them.

    Returns:
      submitit's jobs, in order.

    Raises:
      SweepError: If submitit is not installed, there is no SLURM here, or SLURM refuses the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise SweepError("submitit is not installed: pip install -e '.[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(
            folder=folder,
            cluster=cluster,
            slurm_max_num_timeout=config.requeues,
            local_max_num_timeout=config.requeues,
        )
    except RuntimeError as error:
        raise SweepError(f"{error} Use another executor on this machine.") from error
    executor.update_parameters(
        name=folder.parent.name or "sweep",
        timeout_min=config.time_limit,
        gpus_per_node=config.gpus,
        cpus_per_task=config.cpus,
        mem_gb=config.memory_gb or None,
        stderr_to_stdout=True,
        slurm_partition=config.partition or None,
        slurm_array_parallelism=config.parallel,
        slurm_signal_delay_s=config.lead_seconds,
        # Not every cluster queues preempted jobs again unless they ask for it.
        slurm_additional_parameters={"requeue": True, **config.options},
    )
    try:
        with executor.batch():
            return [executor.submit(Training(task)) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        raise SweepError(f"SLURM refuses the jobs: {str(error).strip()}") from error


def wait_for(jobs: Sequence[Any], tasks: Sequence[Task]) -> list[Failure]:
    """Waits for submitted jobs to end.

    Returns:
      Those that failed.
    """
    failures = []
    for job, task in zip(jobs, tasks, strict=True):
        if job.exception() is not None:
            failures.append(Failure(task, f"job {job.job_id} failed"))
    return failures
