"""Submits the runs of a sweep as one SLURM job array, with the library submitit.

The file `jobs.json` beside submitit's files holds the job of each run. The next call of the sweep
reads it and leaves out the runs whose jobs wait or run.
"""

import dataclasses
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linseqrec.errors import SweepError
from linseqrec.files import read_json, write_json
from linseqrec.sweeps.task import Failure, Task, reason_of

_JOBS = "jobs.json"

# Options of sbatch that `--slurm_option` does not accept, each with the flag of launch.sweep to use
# instead. None: submitit sets the option, and there is no flag.
_RESERVED = {
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
    """The resources and limits of each job of the array.

    Attributes:
      time_limit: Time limit in minutes.
      partition: Partition; empty for the cluster's default.
      gpus: Number of GPUs.
      cpus: Number of CPU cores.
      memory_gb: Memory in GB; 0 for the cluster's default.
      parallel: Number of jobs that may run at the same time.
      requeues: How often SLURM queues a job again that has reached its time limit. A preempted job
        is always queued again.
      lead_seconds: Seconds from the SIGTERM that ends the training to the time limit. The same time
        applies before a preemption, if the cluster announces it.
      options: Other options of sbatch, by their long names (see `read_options`).
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
    """The options of sbatch in the flags `--slurm_option`.

    Args:
      entries: The flags' values, such as "account=lab"; "exclusive" for an option without a value.

    Returns:
      The value of each option by its name; True for an option without a value.

    Raises:
      SweepError: An entry has another form, an option is given twice, or another flag sets it.
    """
    options: dict[str, str | bool] = {}
    for entry in entries:
        name, separator, value = entry.partition("=")
        name = name.replace("_", "-")
        if not re.fullmatch("[a-z][a-z0-9-]+", name) or (separator and not value):
            raise SweepError(
                f"--slurm_option={entry} is not NAME=VALUE: give the long name of an option of "
                "sbatch without dashes before it, such as --slurm_option=account=lab"
            )
        if name in _RESERVED:
            advice = (
                f"use {_RESERVED[name]}" if _RESERVED[name] else "leave it out, submitit sets it"
            )
            raise SweepError(f"--slurm_option={entry} is not allowed: {advice}")
        if name in options:
            raise SweepError(f"--slurm_option={name} is given twice: give it once")
        options[name] = value if separator else True
    return options


class Training:
    """The function that a job runs. A job that is queued again calls it again and resumes the run.

    Its name is in the files that submitit writes for jobs.
    """

    def __init__(self, task: Task):
        self.task = task

    def __call__(self) -> None:
        """Trains until the run has ended.

        Raises:
          RuntimeError: The training failed.
        """
        # SLURM announces the end of a job by SIGUSR2 to every process of the job. submitit handles
        # it in this process. In the training process, which inherits the mask, it stays blocked: it
        # would kill the training, and the job would look like a failure.
        announcement = {signal.SIGUSR2}
        signal.pthread_sigmask(signal.SIG_BLOCK, announcement)
        # The mask is this thread's. If another takes the signal, Python calls the handler here.
        early: list[int] = []
        handler = signal.signal(signal.SIGUSR2, lambda number, frame: early.append(number))
        try:
            process = self.task.start()
        except BaseException:
            signal.signal(signal.SIGUSR2, handler)
            raise
        try:
            signal.signal(signal.SIGUSR2, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, announcement)
            if early:
                signal.raise_signal(signal.SIGUSR2)
            code = process.wait()
        finally:
            # submitit raises an exception here to queue the job again. The training must have ended
            # by then, so that its workdir is not locked.
            _terminate(process)
        if code:
            raise RuntimeError(str(Failure(self.task, reason_of(code))))

    def checkpoint(self) -> Any:
        """The function for submitit to queue when the job has to end: the same training."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Training(self.task))


def _terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def submit(
    tasks: Sequence[Task],
    config: SlurmConfig,
    folder: Path,
    *,
    cluster: str = "slurm",
) -> list[Any]:
    """Submits the tasks as one job array, one job per task.

    Args:
      tasks: The tasks.
      config: The resources of each job.
      folder: Folder for submitit's files. All nodes of the cluster must see it.
      cluster: "slurm", or "local", which runs the same jobs at once on this machine, for tests.

    Returns:
      submitit's jobs, in the order of the tasks.

    Raises:
      SweepError: submitit is not installed, this machine has no SLURM, or SLURM rejects the jobs.
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
        raise SweepError(
            f"{error} Start the sweep on a machine with SLURM, or choose another --executor"
        ) from error
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
        # Some clusters queue a preempted job again only if it asks for this.
        slurm_additional_parameters={"requeue": True, **config.options},
    )
    try:
        with executor.batch():
            jobs = [executor.submit(Training(task)) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        raise SweepError(f"SLURM rejects the jobs: {str(error).strip()}") from error
    if cluster == "slurm":
        submitted = {task.folder.name: job.job_id for job, task in zip(jobs, tasks, strict=True)}
        write_json(folder / _JOBS, _read_jobs(folder) | submitted)
    return jobs


def queued(folder: Path) -> dict[str, str]:
    """The runs of earlier calls whose jobs wait in SLURM's queue or run.

    Args:
      folder: Folder for submitit's files.

    Returns:
      The id of the job by the name of the run's folder.

    Raises:
      SweepError: There are earlier jobs, and `squeue` does not say which of them are left.
      FileError: The file of the jobs is damaged.
    """
    jobs = _read_jobs(folder)
    if not jobs:
        return {}
    command = ("squeue", "--me", "--noheader", "--array", "--format=%i")
    try:
        left = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", "") or str(error)
        raise SweepError(
            f"{folder / _JOBS} names the jobs of an earlier call, and squeue does not say whether "
            f"they still wait: {words.strip()}"
        ) from error
    return {name: job for name, job in jobs.items() if job in left}


def _read_jobs(folder: Path) -> dict[str, str]:
    path = folder / _JOBS
    return read_json(path, {str: str}) if path.exists() else {}


def wait_for(jobs: Sequence[Any], tasks: Sequence[Task]) -> list[Failure]:
    """Waits until all jobs have ended, and returns the failures.

    Args:
      jobs: The jobs from `submit`.
      tasks: Their tasks.
    """
    failures = []
    for job, task in zip(jobs, tasks, strict=True):
        if job.exception() is not None:
            failures.append(Failure(task, f"job {job.job_id} failed"))
    return failures
