"""`Batch`, the input of a training step, and the gather that builds it."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from linseqrec.data.dataset import Dataset
from linseqrec.data.rows import Pieces
from linseqrec.events import Events


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of events with their targets. Fields are NumPy or JAX arrays.

    Attributes:
      events: The inputs [B, T], padded on the right.
      targets: Item ids to predict; 0 where there is no target.
      weights: 1 at targets, 0 elsewhere.
      read_at: Slots of the events whose outputs predict the targets. None: every slot, S = T.
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
    """A batch from its pieces, read from the data set in one vectorised gather.

    Args:
      dataset: The events.
      pieces: All pieces of the plan.
      members: int64 [K], indices of the batch's pieces, row after row.
      counts: int64 [B], number of pieces in each row; a row with 0 pieces is all padding.
      length: T. The pieces of a row must fit into it together.
      last_only: Predict only at the last event of each row, S = 1. Each row must be one piece.
      request_times: Whether the events carry request times. An event's request time is the time
        of the next event, its target.

    Returns:
      The batch. Segments are numbered from 1 in the order of `members`; padding stands at the end.
    """
    lengths = pieces.lengths[members].astype(np.int64)
    ends = np.cumsum(counts)
    events_before = np.concatenate([[0], np.cumsum(lengths)])
    padding = length - (events_before[ends] - events_before[ends - counts])
    # The flat batch is a sequence of runs: in each row the pieces, then one run of padding, which
    # has segment id 0 and may be empty.
    rows = np.repeat(np.arange(len(counts)), counts)
    piece_in_row = np.arange(len(members)) - np.repeat(ends - counts, counts)
    run_lengths = np.insert(lengths, ends, padding)
    run_slots = np.cumsum(run_lengths) - run_lengths
    run_events = np.insert(pieces.starts[members], ends, 0)
    run_segments = np.insert(piece_in_row + 1, ends, 0).astype(np.int32)

    slots = np.arange(len(counts) * length)
    segment_ids = np.repeat(run_segments, run_lengths)
    real = segment_ids > 0
    positions = slots - np.repeat(run_slots, run_lengths)
    event_indices = slots + np.repeat(run_events - run_slots, run_lengths)

    def read(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
        # A padding slot's index may lie past the last event. Clipping keeps the read legal; the
        # callers multiply padding by 0.
        return np.take(values, indices, mode="clip")

    def as_rows(values: np.ndarray, dtype: type, width: int = length) -> Any:
        return values.astype(dtype, copy=False).reshape(len(counts), width)

    events = Events(
        items=as_rows(read(dataset.items, event_indices) * real, np.int32),
        timestamps=as_rows(
            (read(dataset.timestamps, event_indices) - dataset.origin) * real, np.int32
        ),
        segment_ids=as_rows(segment_ids, np.int32),
        positions=as_rows(positions * real, np.int32),
        request_times=(
            as_rows((read(dataset.timestamps, event_indices + 1) - dataset.origin) * real, np.int32)
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
            targets=as_rows(targets, np.int32, 1),
            weights=as_rows(counts > 0, np.float32, 1),
            read_at=as_rows(read_at, np.int32, 1),
        )
    skips = np.insert(pieces.skips[members], ends, 0)
    if skips.any():
        real = real & (positions >= np.repeat(skips, run_lengths))
    targets = read(dataset.items, event_indices + 1) * real
    return Batch(
        events,
        targets=as_rows(targets, np.int32),
        weights=as_rows(real, np.float32),
        read_at=None,
    )
