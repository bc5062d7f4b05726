"""A sweep's run: a process with its own log."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linseqrec.config_fields import to_text
from linseqrec.runs.finished import LOG
from linseqrec.training import preemption

_LOG_LINES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Task:
    """A command that trains a run in its folder.

    Attributes:
      folder: The workdir. What the command prints goes to `log.txt` there.
      command: The program and its arguments.
      name: What the user is told that starts or ends; empty for the folder's name.
    """

    folder: Path
    command: tuple[str, ...]
    name: str = ""

    @property
    def label(self) -> str:
        """The name, or the folder's."""
        return self.name or self.folder.name

    def start(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts the command and appends its output to the log.

        The process has a session of its own, so that Ctrl-C in a terminal reaches the sweep only.

        Args:
          environment: Variables to set, beside those of this process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOG).open("a") as log:
            log.write(f"$ {shlex.join(self.command)}\n")
            log.flush()
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(os.environ) | {"PYTHONUNBUFFERED": "1"} | dict(environment or {}),
                start_new_session=True,
            )


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that failed.

    Attributes:
      task: The run's task.
      reason: A few words.
    """

    task: Task
    reason: str

    def __str__(self) -> str:
        """The folder, the reason and the last lines of the log."""
        log = self.task.folder / LOG
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        shown = "\n".join(f"    {line}" for line in lines[-_LOG_LINES_SHOWN:])
        return f"{self.task.folder}: {self.reason}; the last lines of {log}:\n{shown}"


def train_task(
    config: str,
    overrides: Mapping[str, Any],
    flags: Sequence[str],
    folder: Path,
    *,
    name: str = "",
) -> Task:
    """The task of `python -m launch.train`.

    Args:
      config: The experiment: FILE:NAME.
      overrides: Values of its fields, by dotted name.
      flags: Other flags of the program.
      folder: The workdir.
      name: The task's.
    """
    program = (sys.executable, "-m", "launch.train", f"--config={config}")
    fields = [f"--config.{field}={to_text(value)}" for field, value in overrides.items()]
    command = (*program, *fields, *flags, f"--workdir={folder}")
    return Task(folder, command, name)


def reason_of(code: int) -> str:
    """The meaning of a process's exit code."""
    if code == preemption.EXIT_CODE:
        return "preempted; run the same command again to continue"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
