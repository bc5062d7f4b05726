"""`Schedule`: when a run logs, validates, saves and stops."""

import time

from linseqrec.config import TrainingConfig
from linseqrec.training import distributed
from linseqrec.training.checkpoint import Progress
from linseqrec.training.preemption import Preempted, Preemption


class Schedule:
    """Decides what the training loop does beside its steps.

    Several processes decide alike: steps are counted by all, and what one process alone knows (the
    time since the last save, a SIGTERM) all of them agree on.

    Attributes:
      saves: Whether the loop saves a checkpoint before its next step.
    """

    def __init__(
        self,
        training: TrainingConfig,
        *,
        num_steps: int,
        steps_per_epoch: int,
        preemption: Preemption,
    ):
        """Reads the configuration.

        Args:
          training: How often each thing is done.
          num_steps: Length of the run.
          steps_per_epoch: Steps of one pass over the training targets.
          preemption: Tells whether this process has received SIGTERM.
        """
        self._num_steps = num_steps
        self._evaluate_every = max(1, round(training.evaluate_every * steps_per_epoch))
        self._log_every, self._patience = training.log_every, training.patience
        self._save_seconds = 60 * training.save_minutes
        self._preemption = preemption
        self._agreement = distributed.Agreement(2)
        self._saved_at = time.monotonic()
        self.saves = False

    def validates(self, step: int, progress: Progress) -> bool:
        """Whether the state after `step` updates is validated, and has not been yet."""
        return self._ends_a_period(step) and step > progress.validated_step

    def finished(self, progress: Progress) -> bool:
        """Whether the run has ended: at its last step, or because its patience is spent."""
        out_of_patience = self._patience > 0 and progress.stale >= self._patience
        return progress.validated_step >= self._num_steps or out_of_patience

    def logs(self, step: int) -> bool:
        """Whether the training metrics of `step` are logged."""
        return step % self._log_every == 0 or self._ends_a_period(step)

    def saved(self) -> None:
        """Notes that a checkpoint was saved: the next one is due `save_minutes` from now."""
        self._saved_at, self.saves = time.monotonic(), False
        self._agreement.forget()

    def after_step(self) -> None:
        """Decides whether to save and whether to stop.

        Raises:
          Preempted: If a process of the run has received SIGTERM.
        """
        overdue = time.monotonic() - self._saved_at > self._save_seconds
        stop, self.saves = self._agreement.ask([self._preemption.requested, overdue])
        if stop:
            raise Preempted

    def between_batches(self) -> None:
        """Ends a validation at a batch that all processes agree on.

        Raises:
          Preempted: If a process of the run has received SIGTERM.
        """
        if self._agreement.ask([self._preemption.requested, False])[0]:
            raise Preempted

    def _ends_a_period(self, step: int) -> bool:
        return step % self._evaluate_every == 0 or step == self._num_steps
