"""The training loop: one function from an experiment to a trained, selected, tested run."""

import time
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from linseqrec.evaluation.result import EvaluationResult
from linseqrec.training import throughput, workdir
from linseqrec.training.checkpoint import Checkpoints, Progress
from linseqrec.training.run import Run
from linseqrec.training.step import TrainState

SELECTION_METRIC = "NDCG@10"


class NonFiniteError(RuntimeError):
    """A loss or gradient that is NaN or infinite, before it reached the parameters."""


def train(run: Run, folder: Path, *, wandb_project: str = "") -> tuple[TrainState, int]:
    """Trains a run to its end in `folder`, or goes on from its latest checkpoint there.

    Resume: `checkpoints/` latest → else from scratch. Validation selects: the best checkpoint by
    NDCG@10 under the first filter. The test split is not read here (`linseqrec.training.results`).

    Args:
      run: The experiment, made concrete.
      folder: The workdir; created, or holding the same experiment on the same data.
      wandb_project: Where metrics are mirrored to; empty for nowhere.

    Returns:
      The state of the best checkpoint, and its step.

    Raises:
      WorkdirError: If the folder holds another configuration's run, or one on other data.
      NonFiniteError: If a loss or gradient is not finite; the last good checkpoint stays.
    """
    experiment = run.experiment

    # ---------------------------------------------------------------- workdir, checkpoint, data
    workdir.claim(folder, experiment, run.source.dataset.card)
    state = run.initial_state()
    progress = Progress({}, 0, -np.inf, 0, 0.0, False)
    iterator = iter(
        run.batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if (latest := checkpoints.latest()) is not None:
            state, progress = checkpoints.restore(latest, state), checkpoints.progress(latest)
            iterator.set_state(progress.iterator)
            logging.info("resumed at step %d of %d", latest, run.num_steps)
        step = int(state.step)

        with (
            workdir.MetricsLog(folder, step, wandb_project=wandb_project) as log,
            tqdm(
                total=run.num_steps, initial=step, unit="step", disable=None, desc=experiment.name
            ) as bar,
        ):
            meter = Meter(run, bar)

            # ------------------------------------------------------------------------ the loop
            while not progress.finished:
                state, metrics = run.train_step(state, next(iterator))
                step += 1
                bar.update()
                meter.count(metrics)

                epoch = step / run.batches.steps_per_epoch
                validate = step % run.evaluate_every == 0 or step == run.num_steps
                if step % experiment.training.log_every == 0 or validate:
                    if bool(state.halted):
                        raise NonFiniteError(
                            f"the loss or gradient of step {int(state.step) + 1} is not finite; "
                            "the step was not applied, and the last good checkpoint is "
                            f"{checkpoints.latest()}. Lower optimizer.learning_rate, or set "
                            "optimizer.clip_norm."
                        )
                    log.write(step, {"epoch": epoch} | meter.read(metrics))

                if validate:
                    meter.pause()
                    result = run.evaluate(state.params, "validation")
                    log.write(step, {"epoch": epoch} | _named(result))
                    score = result.metrics[SELECTION_METRIC]
                    progress = _advance(progress, run, step, score, iterator, meter.seconds())
                    checkpoints.save(state, progress, score)
                    _report(run, step, result, progress)
                    meter.resume()

        # ----------------------------------------------------------------- the selected state
        best = checkpoints.resolve("best")
        return (state if best == step else checkpoints.restore(best, state)), best


def _advance(
    progress: Progress, run: Run, step: int, score: float, iterator: Any, seconds: float
) -> Progress:
    """Progress after a validation: the best step, the patience spent, whether the run is over."""
    better = score > progress.best_metric
    stale = 0 if better else progress.stale + 1
    patience = run.experiment.training.patience
    return Progress(
        iterator=iterator.get_state(),
        best_step=step if better else progress.best_step,
        best_metric=score if better else progress.best_metric,
        stale=stale,
        seconds=progress.seconds + seconds,
        finished=step >= run.num_steps or (patience > 0 and stale >= patience),
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
    tqdm.write(f"step {step} epoch {epoch:.1f} validation {scores}; best step {progress.best_step}")


class Meter:
    """Training metrics between two readings: the last loss, speed, and utilisation."""

    def __init__(self, run: Run, bar: tqdm):
        self._bar = bar
        self._per_event = throughput.flops_per_event(run.initial_params)
        self._per_target = throughput.flops_per_target(run.item_table(run.initial_params))
        self._peak = throughput.peak_flops(getattr(run.experiment.model, "dtype", "float32"))
        self._steps: list[tuple[jax.Array, jax.Array, jax.Array]] = []
        self._start = time.perf_counter()
        self._unread = 0.0
        self._unsaved = 0.0

    def count(self, metrics: dict[str, jax.Array]) -> None:
        """Notes a step, without waiting for it."""
        self._steps.append((metrics["events"], metrics["targets"], metrics["loss"]))

    def read(self, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """The step's metrics; loss per target and speed are those since the last reading."""
        values = {f"train/{name}": float(value) for name, value in metrics.items()}
        self.pause()
        events, targets, losses = np.array(jax.device_get(self._steps), np.float64).T
        seconds, self._unread, self._steps = self._unread, 0.0, []
        self.resume()
        values["train/loss"] = float(losses @ targets / max(targets.sum(), 1.0))
        values["train/events_per_second"] = float(events.sum() / seconds)
        flops = float(events.sum() * self._per_event + targets.sum() * self._per_target)
        values["train/model_flop_utilisation"] = flops / seconds / self._peak
        self._bar.set_postfix(
            loss=f"{values['train/loss']:.3f}",
            events=f"{values['train/events_per_second']:,.0f}/s",
            refresh=False,
        )
        return values

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
