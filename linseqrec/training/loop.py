"""The training loop: from a run to the trained state that validation selects."""

import contextlib
import dataclasses
import time
from collections.abc import Collection
from pathlib import Path

from linseqrec.config import TrainingConfig
from linseqrec.data.pipeline import READ_AHEAD
from linseqrec.errors import UserError, first_ten
from linseqrec.evaluation.result import SELECTION_METRIC
from linseqrec.training import distributed, workdir
from linseqrec.training.budget import within_budget
from linseqrec.training.checkpoint import Checkpoints, Progress
from linseqrec.training.log import TrainingLog
from linseqrec.training.preemption import Preempted, Preemption
from linseqrec.training.run import Run
from linseqrec.training.step import StepRunner, TrainState
from linseqrec.training.throughput import Meter, Profiler, StepQueue


class NonFiniteError(UserError, RuntimeError):
    """A loss, gradient or update that is NaN or infinite, before it reached the parameters."""


def train(
    run: Run,
    folder: Path,
    *,
    preemption: Preemption | None = None,
    wandb_project: str = "",
    allowed_changes: Collection[str] = (),
    profile_steps: int = 0,
) -> TrainState:
    """Trains a run to its end in `folder`, or goes on from its latest sound checkpoint there.

    A killed run ends with the same result as an uninterrupted one; on a CPU, bit for bit.
    Validation selects the best checkpoint, by NDCG@10 under the first filter. The test split is not
    read here.

    Each of several processes calls this with its own run, on one folder that all of them see. The
    first process writes the logs; all take part in validations and checkpoints.

    Args:
      run: The run.
      folder: The workdir; created, or holding the same experiment on the same data.
      preemption: The caller's handler of SIGTERM and Ctrl-C. None: this call installs one until it
        ends.
      wandb_project: The W&B project to mirror metrics to; empty for none.
      allowed_changes: Fields of the configuration that may differ from the run's so far.
      profile_steps: Steps to trace into `profile/`, after the first few; 0 for none.

    Returns:
      The state of the best checkpoint.

    Raises:
      DistributedError: If the first of several processes could not begin.
      SplitError: If there are no validation or no test targets.
      FileError: If `config.json` or `card.json` of the run in the folder is damaged.
      WorkdirError: If the folder holds a run of another configuration or on other data, or is in
        use.
      ConfigError: If the configuration in the folder cannot be read.
      CheckpointError: If all checkpoints are damaged, or one could not be saved.
      NonFiniteError: If a loss, gradient or update is not finite; the last good checkpoint stays.
      Preempted: After SIGTERM or Ctrl-C. The state is saved; the same call continues the run.
    """
    experiment = run.experiment
    run.source.split.check_targets()
    with contextlib.ExitStack() as stack:
        # ---------------------------------------------------------------- the workdir is ours
        preemption = preemption or stack.enter_context(Preemption())
        changes = distributed.on_first(lambda: _claim(stack, run, folder, allowed_changes))

        # ---------------------------------------------------------------- state: saved, or fresh
        checkpoints = stack.enter_context(
            Checkpoints(folder / "checkpoints", shapes=run.step.shapes)
        )
        if experiment.training.max_minutes:
            # Under another budget than before, the run's length is measured anew.
            kept = bool(checkpoints.steps()) and "training.max_minutes" not in changes
            with preemption.interruptible():
                run = within_budget(run, folder, keeps_length=kept)
        iterator = iter(run.batches.to_iter_dataset(READ_AHEAD))
        if (restored := checkpoints.restore_latest(run.step.abstract_state)) is not None:
            state, progress = restored
            iterator.set_state(progress.iterator)
        else:
            state, progress = run.step.initial_state(), Progress(iterator.get_state())
        # The saved state fits: only now does the workdir hold the changed configuration.
        distributed.on_first(lambda: workdir.record_changes(folder, experiment, changes))
        progress = dataclasses.replace(progress, num_steps=run.num_steps)
        step, runner = int(state.step), StepRunner(run.step, state)
        # The runner consumes the state; these names would keep its arrays.
        del state, restored

        # ---------------------------------------------------------------- what watches the loop
        log = stack.enter_context(
            TrainingLog(
                folder,
                step,
                name=experiment.name,
                wandb_project=wandb_project,
                num_steps=run.num_steps,
                steps_per_epoch=run.batches.steps_per_epoch,
                validated=progress.validated_step == step,
            )
        )
        profiler = stack.enter_context(Profiler(folder / "profile", profile_steps))
        meter = Meter(experiment.model, run.step.prediction_loss.config, run.model, progress)
        queue = StepQueue()
        schedule = Schedule(
            experiment.training,
            num_steps=run.num_steps,
            evaluate_every=run.evaluate_every,
            preemption=preemption,
        )

        try:
            while True:
                # ------------------------------------------------------------ validate
                if schedule.validates(step, progress):
                    progress = meter.added_to(progress)
                    with meter.paused():
                        runner.catch_up()
                        with preemption.interruptible():
                            result = run.evaluate(
                                runner.state.variables,
                                "validation",
                                between=schedule.between_batches,
                            )
                        score = result.metrics[SELECTION_METRIC]
                        progress = progress.after_validation(step, score)
                        log.validation(step, result, progress)
                        checkpoints.save(runner.state, progress)
                        schedule.saved()
                if schedule.finished(progress):
                    if step < run.num_steps:
                        log.stopped_early(progress)
                    break

                # ------------------------------------------------------------ save
                if schedule.saves:
                    _check_finite(run, runner.state, checkpoints)
                    progress = meter.added_to(progress)
                    checkpoints.save(runner.state, progress)
                    schedule.saved()

                # ------------------------------------------------------------ fetch
                with preemption.interruptible():
                    batch = run.step.place(next(iterator))

                # ------------------------------------------------------------ step
                metrics = runner.step(batch)
                step += 1
                progress = dataclasses.replace(progress, iterator=iterator.get_state())
                profiler.step(metrics)
                queue.add(metrics)
                meter.count(metrics)
                log.step()

                # ------------------------------------------------------------ log
                if schedule.logs(step):
                    _check_finite(run, runner.state, checkpoints)
                    log.training(step, *meter.read(metrics))

                # ------------------------------------------------------------ stop?
                schedule.after_step()
        except Preempted:
            _check_finite(run, runner.state, checkpoints)
            # A batch or a validation that was interrupted is repeated by the next start.
            if step not in checkpoints.steps():
                checkpoints.save(runner.state, meter.added_to(progress))
            checkpoints.wait()
            raise Preempted(step) from None

        best = checkpoints.resolve("best")
        if best == step:
            return run.step.up_to_date(runner.state)
        # The state of the last step would take as much memory as the one that is read.
        del runner
        state = checkpoints.restore(best, run.step.abstract_state)
        return run.step.up_to_date(state)


def _claim(
    stack: contextlib.ExitStack, run: Run, folder: Path, allowed_changes: Collection[str]
) -> dict[str, str]:
    """Locks the workdir for the length of `stack`; the rest is as in `workdir.claim`."""
    stack.enter_context(workdir.lock(folder))
    card = run.source.dataset.card
    return workdir.claim(folder, run.experiment, card, allowed_changes=allowed_changes)


def _check_finite(run: Run, state: TrainState, checkpoints: Checkpoints) -> None:
    """Raises an error if the state is halted; it is then still the one before the bad step."""
    if not bool(state.halted):
        return
    good = int(state.step)
    users = run.source.dataset.user_ids()[run.batches.users(good)]
    sound = checkpoints.sound_steps()
    optimizer = run.experiment.optimizer
    other = f"raise optimizer.warmup_steps (it is {optimizer.warmup_steps})"
    if not optimizer.clip_norm:
        # The saved state of the optimizer has no place for it.
        other = "train in another --workdir with optimizer.clip_norm, for instance 1.0"
    raise NonFiniteError(
        f"the loss, gradient or update of step {good + 1} is not finite; the step was not applied, "
        f"and the last good checkpoint is {sound[-1] if sound else 'none'}. Its batch holds users "
        f"{first_ten(users)}. "
        f"Lower optimizer.learning_rate (it is {optimizer.learning_rate:g}), or {other}."
    )


class Schedule:
    """Decides what the training loop does beside its steps.

    All processes make the same decisions. Each counts the steps. For decisions that depend on one
    process (the time since its last save, a SIGTERM), the processes exchange their wishes.

    Attributes:
      saves: Whether the loop saves a checkpoint before its next step.
    """

    def __init__(
        self,
        training: TrainingConfig,
        *,
        num_steps: int,
        evaluate_every: int,
        preemption: Preemption,
    ):
        """Reads the configuration.

        Args:
          training: How often each thing is done.
          num_steps: Length of the run.
          evaluate_every: Steps between validations.
          preemption: Tells whether this process has received SIGTERM.
        """
        self._num_steps, self._evaluate_every = num_steps, evaluate_every
        self._log_every, self._patience = training.log_every, training.patience
        self._save_seconds = 60 * training.save_minutes
        self._preemption = preemption
        self._agreement = distributed.Agreement()
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
        # A run that was made shorter may already be past its end.
        return step % self._evaluate_every == 0 or step >= self._num_steps
