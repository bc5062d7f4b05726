"""The training loop: one function from an experiment to a trained run and its best checkpoint."""

import contextlib
import dataclasses
import time
from collections.abc import Collection
from pathlib import Path

import grain
import jax
from tqdm import tqdm

from linseqrec.data.requests import original_ids
from linseqrec.errors import UserError
from linseqrec.evaluation.result import SELECTION_METRIC, EvaluationResult, selected_by
from linseqrec.training import distributed, throughput, workdir
from linseqrec.training.checkpoint import Checkpoints, Progress
from linseqrec.training.preemption import Preempted, Preemption
from linseqrec.training.profiler import Profiler
from linseqrec.training.run import Run
from linseqrec.training.step import TrainState


class NonFiniteError(UserError, RuntimeError):
    """A loss or gradient that is NaN or infinite, before it reached the parameters."""


def train(
    run: Run,
    folder: Path,
    *,
    wandb_project: str = "",
    allowed_changes: Collection[str] = (),
    grace: float = 20.0,
    profile_steps: int = 0,
) -> tuple[TrainState, int]:
    """Trains a run to its end in `folder`, or goes on from its latest sound checkpoint there.

    Resume: the newest checkpoint whose files are sound → else, if none was ever saved, from
    scratch. However often a run is killed, it ends as one that never was: on a CPU bit for bit.
    Validation selects: the best checkpoint by NDCG@10 under the first filter. The test split is not
    read here (`linseqrec.training.results`).

    Args:
      run: The experiment, made concrete.
      folder: The workdir; created, or holding the same experiment on the same data.
      wandb_project: Where metrics are mirrored to; empty for nowhere.
      allowed_changes: Fields of the configuration that may differ from the run's so far.
      grace: Seconds between SIGTERM and the process's end, in which to reach the end of a step and
        save.
      profile_steps: Steps to trace into `profile/`, after the first few; 0 for none.

    Returns:
      The state of the best checkpoint, and its step.

    Of several processes each calls this with its own run, on one folder that all of them see. The
    first writes the logs; all take part in validations and checkpoints.

    Raises:
      DistributedError: If the first of several processes could not begin.
      WorkdirError: If the folder holds what was trained with another configuration, or on other
        data, or is in use.
      ConfigError: If the configuration of what it holds cannot be read.
      CheckpointError: If all checkpoints are damaged, or one could not be saved.
      NonFiniteError: If a loss or gradient is not finite; the last good checkpoint stays.
      Preempted: After SIGTERM; the state is saved, and the same call goes on.
    """
    experiment = run.experiment

    with contextlib.ExitStack() as stack:
        # ------------------------------------------------------------ workdir, checkpoint, data
        preemption = stack.enter_context(Preemption(grace, alone=jax.process_count() == 1))
        card = run.source.dataset.card

        def take_workdir() -> None:
            stack.enter_context(workdir.lock(folder))
            workdir.claim(folder, experiment, card, allowed_changes=allowed_changes)

        distributed.on_first(take_workdir)
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", shapes=run.shapes))
        iterator = iter(
            run.batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        )
        state, progress = run.initial_state(), Progress(iterator.get_state())
        if (restored := checkpoints.restore_latest(state)) is not None:
            state, progress = restored
            iterator.set_state(progress.iterator)
        step = int(state.step)
        log: workdir.MetricsLog | None = None
        if distributed.is_first():
            log = stack.enter_context(workdir.MetricsLog(folder, step, wandb_project=wandb_project))
        bar = stack.enter_context(
            tqdm(
                total=run.num_steps,
                initial=step,
                unit="step",
                disable=None if distributed.is_first() else True,
                desc=experiment.name,
            )
        )
        meter = Meter(run, bar, progress.unlogged)
        position, saved_at = progress.iterator, time.monotonic()
        agreement, overdue = distributed.Agreement(2), False
        profiler = stack.enter_context(Profiler(folder / "profile", profile_steps))

        def reached() -> Progress:
            return dataclasses.replace(
                progress,
                iterator=position,
                seconds=progress.seconds + meter.seconds(),
                unlogged=meter.unlogged(),
            )

        def leave_together() -> None:
            """Ends a validation at a batch that all processes agree on."""
            if agreement.ask([preemption.requested, False])[0]:
                raise Preempted

        try:
            # ------------------------------------------------------------------------ the loop
            while not _finished(progress, run):
                due = step % run.evaluate_every == 0 or step == run.num_steps
                if due and step > progress.validated_step:
                    meter.pause()
                    with preemption.interruptible():
                        result = run.evaluate(state.params, "validation", between=leave_together)
                    score = result.metrics[SELECTION_METRIC]
                    if log is not None:
                        epoch = step / run.batches.steps_per_epoch
                        log.write(step, {"epoch": epoch} | _named(result))
                    progress = _validated(reached(), step, score)
                    checkpoints.save(state, progress, score)
                    saved_at, overdue = time.monotonic(), False
                    agreement.forget()
                    if log is not None:
                        _report(run, step, result, progress)
                    meter.resume()
                    continue
                if overdue:
                    progress, saved_at = reached(), time.monotonic()
                    agreement.forget()
                    checkpoints.save(state, progress)

                with preemption.interruptible():
                    batch = run.place_batch(next(iterator))
                state, metrics = run.train_step(state, batch)
                step, position = step + 1, iterator.get_state()
                bar.update()
                profiler.step(metrics)
                meter.count(metrics)
                logs = step % experiment.training.log_every == 0
                if logs or step % run.evaluate_every == 0 or step == run.num_steps:
                    if bool(state.halted):
                        raise _non_finite(run, state, checkpoints)
                    values, speed = meter.read(metrics)
                    if log is not None:
                        epoch = step / run.batches.steps_per_epoch
                        log.write(step, {"epoch": epoch} | values, speed)
                waited = time.monotonic() - saved_at
                stop, overdue = agreement.ask(
                    [preemption.requested, waited > 60 * experiment.training.save_minutes]
                )
                if stop:
                    raise Preempted
        except Preempted:
            # A batch that was being read, or a validation, will be so again.
            if step not in checkpoints.steps():
                checkpoints.save(state, reached())
            checkpoints.wait()
            raise Preempted(step) from None

        # --------------------------------------------------------------------- the selected state
        best = checkpoints.resolve("best")
        return (state if best == step else checkpoints.restore(best, state)), best


def _validated(progress: Progress, step: int, score: float) -> Progress:
    """Progress after a validation: the best step, and the patience spent."""
    better = score > progress.best_metric
    return dataclasses.replace(
        progress,
        validated_step=step,
        best_step=step if better else progress.best_step,
        best_metric=score if better else progress.best_metric,
        stale=0 if better else progress.stale + 1,
    )


def _finished(progress: Progress, run: Run) -> bool:
    """Whether a run has ended, by its length or by early stopping, both at a validation."""
    patience = run.experiment.training.patience
    out_of_patience = patience > 0 and progress.stale >= patience
    return progress.validated_step >= run.num_steps or out_of_patience


def _non_finite(run: Run, state: TrainState, checkpoints: Checkpoints) -> NonFiniteError:
    """The error of a halted state, which is still the one before the bad step."""
    good = int(state.step)
    users = original_ids(run.source.dataset)[0][run.batches.users(good)]
    shown = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
    sound = checkpoints.sound_steps()
    return NonFiniteError(
        f"the loss or gradient of step {good + 1} is not finite; the step was not applied, and the "
        f"last good checkpoint is {sound[-1] if sound else 'none'}. Its batch "
        f"holds users {shown}. "
        "Lower optimizer.learning_rate, or set optimizer.clip_norm."
    )


def _named(result: EvaluationResult) -> dict[str, float]:
    """A validation's metrics as `validation/FILTER/NDCG@10`."""
    return {
        f"validation/{name}/{metric}": value
        for name, metrics in result.metrics_by_filter.items()
        for metric, value in metrics.items()
    }


def _report(run: Run, step: int, result: EvaluationResult, progress: Progress) -> None:
    scores = ", ".join(
        f"HR@10 {metrics['HR@10']:.4f} NDCG@10 {metrics['NDCG@10']:.4f} (seen: {name})"
        for name, metrics in result.metrics_by_filter.items()
    )
    epoch = step / run.batches.steps_per_epoch
    best = f"best step {progress.best_step} by {selected_by(tuple(result.metrics_by_filter))}"
    tqdm.write(f"step {step} epoch {epoch:.1f} validation {scores}; {best}")


class Meter:
    """Training metrics between two readings: the mean loss, speed, and utilisation."""

    def __init__(self, run: Run, bar: tqdm, unlogged: dict[str, float] | None = None):
        """Args: `unlogged` goes on from what a meter's `unlogged` was."""
        self._bar = bar
        self._per_event = throughput.flops_per_event(run.initial_params, run.experiment.model)
        self._per_target = throughput.flops_per_target(run.item_table(run.initial_params))
        self._peak = throughput.peak_flops(run.experiment.model.dtype)
        self._steps: list[tuple[jax.Array, jax.Array, jax.Array]] = []
        unlogged = unlogged or {}
        self._loss, self._targets = unlogged.get("loss", 0.0), unlogged.get("targets", 0.0)
        # Of this process alone.
        self._timed_events = self._timed_targets = 0.0
        self._start = time.perf_counter()
        self._unread = 0.0
        self._unsaved = 0.0

    def count(self, metrics: dict[str, jax.Array]) -> None:
        """Notes a step, without waiting for it."""
        self._steps.append((metrics["events"], metrics["targets"], metrics["loss"]))

    def unlogged(self) -> dict[str, float]:
        """The sums since the last reading, to go on from after a resumption."""
        self._gather()
        return {"loss": self._loss, "targets": self._targets}

    def read(self, metrics: dict[str, jax.Array]) -> tuple[dict[str, float], dict[str, float]]:
        """The step's metrics, with the mean loss since the last reading; and the speed since."""
        values = {f"train/{name}": float(value) for name, value in metrics.items()}
        self.pause()
        self._gather()
        values["train/loss"] = self._loss / max(self._targets, 1.0)
        seconds, events = self._unread, self._timed_events
        flops = events * self._per_event + self._timed_targets * self._per_target
        self._loss = self._targets = self._timed_events = self._timed_targets = self._unread = 0.0
        self.resume()
        speed = {
            "train/events_per_second": events / seconds,
            "train/model_flop_utilisation": flops / seconds / self._peak,
        }
        self._bar.set_postfix(
            loss=f"{values['train/loss']:.3f}",
            events=f"{speed['train/events_per_second']:,.0f}/s",
            refresh=False,
        )
        return values, speed

    def _gather(self) -> None:
        # Step by step in float64: the same sum, wherever a resumption cuts it.
        for events, targets, loss in jax.device_get(self._steps):
            self._loss += float(loss) * float(targets)
            self._targets += float(targets)
            self._timed_events += float(events)
            self._timed_targets += float(targets)
        self._steps = []

    def pause(self) -> None:
        """Stops the clock."""
        elapsed = time.perf_counter() - self._start
        self._unread += elapsed
        self._unsaved += elapsed

    def resume(self) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds of training since this was last asked."""
        seconds, self._unsaved = self._unsaved, 0.0
        return seconds
