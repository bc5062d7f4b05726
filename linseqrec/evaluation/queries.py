"""From histories to queries: what a model makes of the events before each of many given ones."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from linseqrec.data.dataset import Dataset
from linseqrec.data.histories import gather_histories
from linseqrec.evaluation.ranks import seen_slots
from linseqrec.events import Events

# A compilation takes seconds; a small model on two CPU cores reads about this many slots meanwhile.
SLOTS_WORTH_A_COMPILATION = 250_000
# What a device reads at once: past some ten thousands speed no longer grows, but memory does.
SLOTS_AT_ONCE = 65_536

Encode = Callable[[Events], Float[Array, "B T D"]]


def worthwhile_widths(
    lengths: Int[np.ndarray, " M"], max_length: int, multiple: int = 1
) -> list[int]:
    """`max_length`, and its half, quarter, ... where they spare enough slots a pass.

    Args:
      lengths: Events of each history.
      max_length: T, a multiple of `multiple`.
      multiple: Each width is a multiple of this, the number of devices that share a row.
    """
    widths = [max_length]
    for part in (2, 4, 8, 16):
        width = -(-max_length // (part * multiple)) * multiple
        if (lengths <= width).sum() * (widths[-1] - width) >= SLOTS_WORTH_A_COMPILATION:
            widths.append(width)
    return sorted(widths)


def rows_at_once(batch_size: int, length: int, devices: int = 1) -> int:
    """Histories a batch: `batch_size`, but fewer of such a length that a device would be overfull.

    Args:
      batch_size: The most, if that is one for each device; changes no result.
      length: T, the slots of a history.
      devices: Among which a batch's rows are dealt out evenly.
    """
    rows = min(batch_size, devices * SLOTS_AT_ONCE // length)
    return max(1, rows // devices) * devices


def longest_first(
    lengths: Int[np.ndarray, " M"], batch_size: int
) -> Iterator[tuple[Int[np.ndarray, " B"], int]]:
    """Indices [batch_size] and how many of them are real, longest histories first.

    The last batch is filled up, so that a model compiles once for each width.
    """
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield np.pad(rows, (0, batch_size - len(rows)), mode="edge"), len(rows)


def read_queries(
    encode: Encode,
    dataset: Dataset,
    users: Int[np.ndarray, " B"],
    ends: Int[np.ndarray, " B"],
    widths: Int[np.ndarray, " W"],
    request_times: Int[np.ndarray, " B"] | None = None,
) -> Float[Array, "B D"]:
    """The hidden vector at the last event before each end.

    Args:
      encode: The model's compiled function, dropout off.
      dataset: Where the events are.
      users: Whose history each is.
      ends: Absolute event indices; a history ends before it, and holds an event.
      widths: Of batches, ascending; the smallest that holds all of the histories is taken. The
        last one is the most events that are read of any.
      request_times: When each prediction is asked for, on the log's own clock; None: hidden.
    """
    window = int((ends - dataset.offsets[users]).max())
    width = int(widths[np.searchsorted(widths, min(window, widths[-1]))])
    events = gather_histories(dataset, users, ends, width, request_times)
    return _read(encode(events), np.asarray(events.segment_ids).sum(1) - 1)


def items_before(
    dataset: Dataset, users: Int[np.ndarray, " B"], ends: Int[np.ndarray, " B"]
) -> Int[np.ndarray, "B S"]:
    """All items of each history before its end, zero-padded."""
    longest = int((ends - dataset.offsets[users]).max())
    return np.asarray(gather_histories(dataset, users, ends, seen_slots(longest)).items)


@jax.jit
def _read(hidden: Array, last: Array) -> Array:
    """The hidden vector [B, D] at slot `last` [B] of each row."""
    return hidden[jnp.arange(hidden.shape[0]), last]
