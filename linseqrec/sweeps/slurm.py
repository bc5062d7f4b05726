"""Runs as a SLURM job array, through submitit."""

import dataclasses
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linseqrec.sweeps.errors import SweepError
from linseqrec.sweeps.task import Failure, Task, reason_of


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
    """

    time_limit: int = 60
    partition: str = ""
    gpus: int = 0
    cpus: int = 1
    memory_gb: int = 0
    parallel: int = 1
    requeues: int = 10
    lead_seconds: int = 120


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
      SweepError: If submitit is not installed, there is no SLURM here, or it refuses the jobs.
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
        slurm_additional_parameters={"requeue": True},
    )
    try:
        with executor.batch():
            return [executor.submit(Training(task)) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        raise SweepError(f"the jobs were not submitted: {str(error).strip()}") from error


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
