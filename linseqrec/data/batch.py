"""`Batch`: what a training step reads, and the one gather that makes it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from linseqrec.data.dataset import Dataset
from linseqrec.data.windows import Pieces
from linseqrec.events import Events


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of events and what is to be predicted from them. Fields are NumPy or JAX arrays.

    Attributes:
      events: The inputs, right-padded.
      targets: Item ids to predict; 0 where nothing is.
      weights: 1 at targets, 0 elsewhere.
      read_at: Slots at which the predictions are read; None (S = T) if at every slot.
    """

    events: Events
    targets: Int[Array, "B S"]
    weights: Float[Array, "B S"]
    read_at: Int[Array, "B S"] | None


def gather_rows(
    dataset: Dataset,
    pieces: Pieces,
    members: np.ndarray,
    counts: np.ndarray,
    length: int,
    *,
    last_only: bool = False,
    request_times: bool = False,
) -> Batch:
    """Reads the events of a whole batch in one vectorised gather.

    Args:
      dataset: Where the events are.
      pieces: All pieces of the plan.
      members: int64 [K], the pieces of the batch, row after row.
      counts: int64 [B], how many of them each row holds; a row of none is all padding.
      length: T; the pieces of a row together are no longer.
      last_only: Predict at each row's last event only (rows of one piece), S = 1.
      request_times: Whether the events carry request times: at each event the next one's time.

    Returns:
      The batch; segments are numbered from 1 in the order of `members`, padding stands at the end.
    """
    lengths = pieces.lengths[members].astype(np.int64)
    ends = np.cumsum(counts)
    filled = np.concatenate([[0], np.cumsum(lengths)])
    padding = length - (filled[ends] - filled[ends - counts])
    # A batch is a sequence of runs: each row's pieces, then its padding (segment 0, maybe empty).
    rows = np.repeat(np.arange(len(counts)), counts)
    numbers = np.arange(len(members)) - np.repeat(ends - counts, counts)
    run_lengths = np.insert(lengths, ends, padding)
    run_firsts = np.cumsum(run_lengths) - run_lengths
    run_starts = np.insert(pieces.starts[members], ends, 0)
    run_segments = np.insert(numbers + 1, ends, 0).astype(np.int32)

    slots = np.arange(len(counts) * length)
    segment_ids = np.repeat(run_segments, run_lengths)
    real = segment_ids > 0
    positions = slots - np.repeat(run_firsts, run_lengths)
    sources = slots + np.repeat(run_starts - run_firsts, run_lengths)

    def read(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        # Padding's sources may lie past the last event; what is read there is then multiplied by 0.
        return np.take(values, where, mode="clip")

    def shaped(values: np.ndarray, dtype: type, width: int = length) -> Any:
        return values.astype(dtype, copy=False).reshape(len(counts), width)

    events = Events(
        items=shaped(read(dataset.items, sources) * real, np.int32),
        timestamps=shaped((read(dataset.timestamps, sources) - dataset.origin) * real, np.int32),
        segment_ids=shaped(segment_ids, np.int32),
        positions=shaped(positions * real, np.int32),
        request_times=(
            shaped((read(dataset.timestamps, sources + 1) - dataset.origin) * real, np.int32)
            if request_times
            else None
        ),
    )
    if last_only:
        read_at = np.zeros(len(counts), np.int64)
        read_at[rows] = lengths - 1
        targets = np.zeros(len(counts), np.int32)
        targets[rows] = read(dataset.items, pieces.starts[members] + lengths)
        return Batch(
            events,
            targets=shaped(targets, np.int32, 1),
            weights=shaped(counts > 0, np.float32, 1),
            read_at=shaped(read_at, np.int32, 1),
        )
    skips = np.insert(pieces.skips[members], ends, 0)
    if skips.any():
        real = real & (positions >= np.repeat(skips, run_lengths))
    targets = read(dataset.items, sources + 1) * real
    return Batch(
        events,
        targets=shaped(targets, np.int32),
        weights=shaped(real, np.float32),
        read_at=None,
    )
