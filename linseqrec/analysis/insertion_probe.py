"""The insertion probe: does what repeats push a rare event out of the state? Ours.

Histories are made for it:

    context | cue, target | r inserted events | cue            → the rank of the target

The pair is new to the user and occurs once, so the target can only be known from that one event.
What is inserted are near-copies of a pattern that is frequent in the context, or, as the control,
as many random events: forgetting alone raises the rank in both, a state sink in the first. A last
arm never shows the pair: what the rank is without any recall.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from linseqrec.analysis.summary import mean_and_error
from linseqrec.config import ConfigError
from linseqrec.data.dataset import Dataset
from linseqrec.events import Events

ARMS = ("repeated", "random")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """How the probe's histories are made.

    Attributes:
      insertions: r, events inserted between the pair and the cue; ascending.
      context: Events of the user's own before the pair.
      pattern: Events of the pattern that repeats.
      noise: Probability that an event of a copy is replaced by another item of its group.
    """

    insertions: tuple[int, ...] = (0, 4, 16, 64, 256)
    context: int = 64
    pattern: int = 4
    noise: float = 0.2

    def __post_init__(self) -> None:
        if list(self.insertions) != sorted(set(self.insertions)) or min(self.insertions) < 0:
            raise ConfigError(f"insertions must ascend from 0 or more, got {self.insertions}")
        if not 0 < self.pattern <= self.context:
            raise ConfigError(f"context {self.context} must hold a pattern of {self.pattern}")

    @property
    def length(self) -> int:
        """Slots of the longest history."""
        return self.context + 2 + self.insertions[-1] + 1


@dataclasses.dataclass(frozen=True)
class Probes:
    """The probe's histories.

    Attributes:
      context: int [U, C] items.
      step: int [U], seconds between events from the pair on: the context's median.
      start: int [U, C], the context's times in seconds.
      cue: int [U].
      target: int [U].
      inserted: What comes between, int [U, r] by arm, for the largest r; a smaller r takes the
        first of them.
    """

    context: np.ndarray
    start: np.ndarray
    step: np.ndarray
    cue: np.ndarray
    target: np.ndarray
    inserted: dict[str, np.ndarray]

    def events(self, arm: str | None, insertions: int, length: int) -> tuple[Events, int]:
        """The histories of an arm (None: the pair is not shown), and the slot of the last cue.

        Args:
          arm: One of `ARMS`, or None.
          insertions: r.
          length: T, slots to pad the rows to.
        """
        parts = [self.context]
        if arm is not None:
            parts += [self.cue[:, None], self.target[:, None], self.inserted[arm][:, :insertions]]
        held = np.concatenate([*parts, self.cue[:, None]], axis=1).astype(np.int32)
        users, used = held.shape
        after = np.arange(1, used - self.context.shape[1] + 1)
        times = np.concatenate(
            [self.start, self.start[:, -1:] + self.step[:, None] * after], axis=1
        ).astype(np.int32)
        pad = ((0, 0), (0, length - used))
        real = np.pad(np.ones((users, used), np.int32), pad)
        events = Events(
            items=np.pad(held, pad),
            timestamps=np.pad(times, pad),
            segment_ids=real,
            positions=np.where(real > 0, np.arange(length, dtype=np.int32), 0),
        )
        return events, used - 1


def make_probes(
    dataset: Dataset,
    users: np.ndarray,
    ends: np.ndarray,
    groups: np.ndarray,
    config: ProbeConfig,
    rng: np.random.Generator,
) -> Probes:
    """Draws the probe's histories for users that have a context's worth of events.

    Args:
      dataset: The events.
      users: int [M], candidates.
      ends: int [M], the absolute index that each one's history ends before.
      groups: int [N + 1], the group of each item.
      config: The protocol.
      rng: Randomness.

    Returns:
      The probes of those users whose history is long enough, in their order.

    Raises:
      ConfigError: If none is, or the catalogue is too small for new pairs.
    """
    long_enough = ends - np.asarray(dataset.offsets)[users] >= config.context
    if not long_enough.any():
        raise ConfigError(
            f"no user has the {config.context} events before its target that the probe needs as "
            "context: lower it"
        )
    ends = ends[long_enough]
    slots = ends[:, None] - np.arange(config.context, 0, -1)
    context = np.asarray(dataset.items)[slots]
    start = np.asarray(dataset.timestamps)[slots].astype(np.int64) - dataset.origin
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    longest = config.insertions[-1]
    popular = np.asarray(dataset.items)
    counts = np.bincount(popular, minlength=dataset.num_items + 1).astype(np.float64)
    rows = len(context)
    inserted = {arm: np.empty((rows, longest), np.int64) for arm in ARMS}
    pairs = np.empty((rows, 2), np.int64)
    for row, held in enumerate(context):
        pattern = frequent_pattern(held, groups, config.pattern)
        copies = np.resize(pattern, longest)
        for slot in np.flatnonzero(rng.random(longest) < config.noise):
            copies[slot] = rng.choice(members[groups[copies[slot]]])
        inserted["repeated"][row] = copies
        inserted["random"][row] = popular[rng.integers(len(popular), size=longest)]
        taken = np.concatenate([held, *(inserted[arm][row] for arm in ARMS)])
        # Drawn as they are in the log: vectors of items that hardly occur recall nothing.
        free = counts * ~np.isin(np.arange(len(counts)), taken)
        if np.count_nonzero(free) < 2:
            raise ConfigError(
                f"the catalogue's {dataset.num_items} items leave no pair that a history of "
                f"{config.length} events does not hold: lower the largest of insertions"
            )
        pairs[row] = rng.choice(len(free), 2, replace=False, p=free / free.sum())
    step = np.maximum(np.median(np.diff(start, axis=1), axis=1), 1).astype(np.int64)
    return Probes(context, start, step, pairs[:, 0], pairs[:, 1], inserted)


def frequent_pattern(items: np.ndarray, groups: np.ndarray, length: int) -> np.ndarray:
    """The run of events that recurs most.

    By how often the very items recur in this order, then by how frequent their groups are, then
    the latest: a log without repeats has patterns of groups only.

    Args:
      items: int [C], a history.
      groups: int [N + 1].
      length: Events of the pattern, at most C.

    Returns:
      int [length].
    """
    windows = np.lib.stride_tricks.sliding_window_view(items, length)
    _, inverse, counts = np.unique(windows, axis=0, return_inverse=True, return_counts=True)
    kinds = groups[items]
    frequency = np.bincount(kinds, minlength=groups.max() + 1)[groups[windows]].sum(axis=1)
    best = np.lexsort((np.arange(len(windows)), frequency, counts[inverse.ravel()]))[-1]
    return windows[best].astype(np.int64)


def summarise(
    ranks: dict[str, np.ndarray], unseen: np.ndarray, insertions: Sequence[int]
) -> dict[str, Any]:
    """The probe's result.

    Args:
      ranks: By arm, [R, U]: ranks of the targets for each r.
      unseen: [U], ranks where the pair was never shown.
      insertions: The rs.

    Returns:
      By arm the median rank, HR@10 and the mean of log2 rank with its standard error, for each r;
      and "rise", by how many doublings of the rank the largest r is above the smallest, by arm, and
      "sink", the paired difference of the two rises: what repetition adds to forgetting.
    """
    logs = {arm: np.log2(values) for arm, values in ranks.items()}
    rises = {arm: values[-1] - values[0] for arm, values in logs.items()}
    sink = rises["repeated"] - rises["random"]
    return {
        "insertions": list(insertions),
        "users": len(unseen),
        "arms": {arm: _per_insertion(values) for arm, values in ranks.items()},
        "not_shown": {key: value[0] for key, value in _per_insertion(unseen[None]).items()},
        "rise": {arm: mean_and_error(values) for arm, values in rises.items()},
        "sink": mean_and_error(sink),
    }


def _per_insertion(ranks: np.ndarray) -> dict[str, list[Any]]:
    return {
        "median_rank": np.median(ranks, axis=1).tolist(),
        "HR@10": np.mean(ranks <= 10, axis=1).tolist(),
        "log2_rank": [mean_and_error(row) for row in np.log2(ranks)],
    }
