"""Query vectors of histories: the model's hidden vector at each history's last event."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from linseqrec.data.dataset import Dataset
from linseqrec.data.histories import gather_histories
from linseqrec.data.rows import enumerate_parts
from linseqrec.evaluation.visits import seen_slots
from linseqrec.events import Events

# A compilation takes seconds. In that time a small model on two CPU cores reads about this many
# slots, so a narrower batch width pays only if it saves more.
SLOTS_WORTH_A_COMPILATION = 250_000
# Numbers of a part of a batch: its seen items with padding, and its scores, or what a baseline
# counts. Beyond some hundred thousand, speed stays and memory grows.
NUMBERS_AT_ONCE = 2**20
# Slots of a batch on one device. Beyond some ten thousand slots, speed stays and memory grows.
SLOTS_AT_ONCE = 65_536

Encode = Callable[[Events], Float[Array, "B T D"]]


def worthwhile_widths(
    lengths: Int[np.ndarray, "M"], max_length: int, multiple: int = 1
) -> list[int]:
    """Batch widths to compile a model for, ascending: `max_length`, and its half, quarter, ...

    A smaller width is listed only if it saves at least `SLOTS_WORTH_A_COMPILATION` slots per pass
    over the histories.

    Args:
      lengths: Number of events of each history.
      max_length: T, a multiple of `multiple`.
      multiple: Each width is a multiple of this number: the devices that share a row.
    """
    widths = [max_length]
    for part in (2, 4, 8, 16):
        width = -(-max_length // (part * multiple)) * multiple
        if (lengths <= width).sum() * (widths[-1] - width) >= SLOTS_WORTH_A_COMPILATION:
            widths.append(width)
    return sorted(widths)


def rows_at_once(batch_size: int, length: int, devices: int = 1) -> int:
    """The number of histories per batch: `batch_size`, or fewer if long histories need it.

    A device reads at most `SLOTS_AT_ONCE` slots at once, but always at least one history.

    Args:
      batch_size: The largest number of histories; changes no result.
      length: T, the slots of a history.
      devices: Number of devices that share a batch's rows evenly.
    """
    rows = min(batch_size, devices * SLOTS_AT_ONCE // length)
    return max(1, rows // devices) * devices


def longest_first(
    lengths: Int[np.ndarray, "M"], batch_size: int
) -> Iterator[tuple[Int[np.ndarray, "B"], int]]:
    """Batches of histories, longest first, so that the histories of a batch are similar in length.

    Args:
      lengths: Number of events of each history.
      batch_size: B.

    Yields:
      The indices [B] of a batch's histories, and how many of them are real. In the last batch the
      others repeat its last history: all batches have one size, so JAX compiles a model only once
      for each width.
    """
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield np.pad(rows, (0, batch_size - len(rows)), mode="edge"), len(rows)


def parts_within(sizes: Int[np.ndarray, "B"]) -> Iterator[slice]:
    """The rows of a batch in consecutive parts of at most `NUMBERS_AT_ONCE` numbers, or of one row.

    Args:
      sizes: How many numbers each row needs.
    """
    sums, start = np.concatenate([[0], np.cumsum(sizes)]), 0
    while start < len(sizes):
        end = int(np.searchsorted(sums, sums[start] + NUMBERS_AT_ONCE, "right")) - 1
        yield slice(start, max(end, start + 1))
        start = max(end, start + 1)


def padded_parts(
    lengths: Int[np.ndarray, "B"], *, scores: int = 0, devices: int = 1
) -> Iterator[slice]:
    """The rows of a batch in consecutive parts whose `items_before` are not too many slots.

    A part has at most `NUMBERS_AT_ONCE` slots and scores, but always a row for each device. Where
    one history is long, the parts of the other rows stay large.

    Args:
      lengths: Number of events of each history, longest first.
      scores: Number of scores of a row that are in memory beside its seen items.
      devices: Number of devices that share the rows of a part evenly, as those of the batch.
    """
    start = 0
    while start < len(lengths):
        fitting = NUMBERS_AT_ONCE // (seen_slots(int(lengths[start])) + scores)
        end = start + max(fitting // devices, 1) * devices
        yield slice(start, min(end, len(lengths)))
        start = end


def read_queries(
    encode: Encode,
    dataset: Dataset,
    users: Int[np.ndarray, "B"],
    ends: Int[np.ndarray, "B"],
    widths: Int[np.ndarray, "W"],
    request_times: Int[np.ndarray, "B"] | None = None,
) -> Float[Array, "B D"]:
    """The hidden vector at the last event of each history.

    Args:
      encode: The model's compiled function, events [B, T] to hidden vectors [B, T, D], without
        dropout.
      dataset: The events.
      users: The user of each history.
      ends: The end of each history: the absolute index of the first event after it. A history has
        at least one event.
      widths: Batch widths, ascending. The function takes the smallest one that all histories fit
        in. The last one is the largest number of events that the model reads of a history.
      request_times: The request time of each prediction, on the log's own clock; None if the model
        does not read request times.
    """
    longest = int((ends - dataset.offsets[users]).max())
    width = int(widths[np.searchsorted(widths, min(longest, widths[-1]))])
    events = gather_histories(dataset, users, ends, width, request_times)
    return _at_slots(encode(events), np.asarray(events.segment_ids).sum(1) - 1)


def items_before(
    dataset: Dataset, users: Int[np.ndarray, "B"], ends: Int[np.ndarray, "B"]
) -> Int[np.ndarray, "B S"]:
    """The items of each history, zero-padded to one of few widths (`visits.seen_slots`)."""
    starts = dataset.offsets[users]
    seen = np.zeros((len(users), seen_slots(int((ends - starts).max()))), np.int32)
    for own, start, end in zip(seen, starts, ends, strict=True):
        own[: end - start] = dataset.items[start:end]
    return seen


def events_before(
    starts: Int[np.ndarray, "B"], ends: Int[np.ndarray, "B"]
) -> tuple[Int[np.ndarray, "E"], Int[np.ndarray, "E"]]:
    """The row and the index of every event of some histories, one history after another.

    Args:
      starts: The absolute index of each history's first event.
      ends: The absolute index of the first event after each history.
    """
    rows, within = enumerate_parts(ends - starts)
    return rows, starts[rows] + within


@jax.jit
def _at_slots(hidden: Array, slots: Array) -> Array:
    """The hidden vector [B, D] at the slot [B] of each row."""
    return hidden[jnp.arange(hidden.shape[0]), slots]
