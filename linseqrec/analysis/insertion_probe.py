"""The insertion probe: do repetitions push a rare event out of the state? Ours.

The probe makes its own histories:

    own events, the rare event among them, a few times | r inserted events → the rank of that item

The rare event's item is new to the history. It comes `shown` times, spread over the second half of
the context, so that it can be expected again where users come back to things.

The inserted events are near-copies of the most frequent pattern of the context or, as the control,
as many random events. Forgetting alone raises the rank under both. A state sink raises it more
under the copies.

A softmax window that still holds the event answers for it, whatever the state holds. The same
histories without the item give its rank when the model cannot remember it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from linseqrec.config_fields import Config, ConfigError, Probability
from linseqrec.data.dataset import Dataset
from linseqrec.evaluation.metrics import summarise_users
from linseqrec.events import Events

ARMS = ("repeated", "random")


@dataclasses.dataclass(frozen=True)
class ProbeConfig(Config):
    """How the probe's histories are made.

    Attributes:
      insertions: r, the numbers of events inserted after the context, ascending.
      context: The number of the user's own events.
      shown: How often the rare event comes among them.
      pattern: The number of events of the pattern that is copied.
      noise: The probability that an event of a copy is replaced by an item of its group, all with
        the same probability. Copies are therefore less popular than the random events.
    """

    insertions: tuple[int, ...] = (0, 4, 16, 64, 256)
    context: int = 64
    shown: int = 8
    pattern: int = 4
    noise: Probability = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = sorted(set(self.insertions))
        if not ascending or list(self.insertions) != ascending or ascending[0] < 0:
            raise ConfigError(f"insertions must ascend from 0 or more, got {self.insertions}")
        if not 0 < self.pattern <= self.context:
            raise ConfigError(f"context {self.context} must hold a pattern of {self.pattern}")
        if not 0 < self.shown <= self.context // 2:
            raise ConfigError(f"shown {self.shown} must be 1 to half of context {self.context}")

    @property
    def length(self) -> int:
        """Slots of the longest history."""
        return self.context + self.shown + self.insertions[-1]


@dataclasses.dataclass(frozen=True)
class Probes:
    """The probe's histories.

    Attributes:
      context: int [U, C], the users' own last items.
      start: int [U], the time of the first of them, in seconds since the data's first event. It is
        earlier where the longest history would exceed int32 otherwise.
      step: int [U], seconds between events: the median of the context, or less where the longest
        history would exceed int32 (68 years).
      target: int [U], the rare event's item.
      inserted: Arm to the inserted items, int [U, r] for the largest r. A smaller r takes the first
        of them.
      shown: How often the rare event comes.
    """

    context: np.ndarray
    start: np.ndarray
    step: np.ndarray
    target: np.ndarray
    inserted: dict[str, np.ndarray]
    shown: int

    def events(
        self,
        arm: str,
        insertions: int,
        length: int,
        *,
        shown: bool = True,
        request_times: bool = False,
    ) -> tuple[Events, int]:
        """The histories of an arm, and the slot of their last event.

        Args:
          arm: One of `ARMS`.
          insertions: r.
          length: T, slots to pad the rows to.
          shown: Whether the rare event is among the events.
          request_times: Whether the events carry request times, one step after each event.
        """
        items = self.context
        if shown:
            half = items.shape[1] // 2
            # At equal distances in the second half, beginning right after the first half.
            places = half + np.arange(self.shown) * (items.shape[1] - half) // self.shown
            items = np.insert(items, places, self.target[:, None], axis=1)
        items = np.concatenate([items, self.inserted[arm][:, :insertions]], axis=1)
        users, used = items.shape
        pad = ((0, 0), (0, length - used))
        real = np.pad(np.ones((users, used), np.int32), pad)
        slots = np.arange(length, dtype=np.int64)
        times = self.start[:, None] + self.step[:, None] * slots
        events = Events(
            items=np.pad(items.astype(np.int32), pad),
            timestamps=(times * real).astype(np.int32),
            segment_ids=real,
            positions=(slots * real).astype(np.int32),
            request_times=(
                ((times + self.step[:, None]) * real).astype(np.int32) if request_times else None
            ),
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
    """Draws the probe's histories for the users whose history is long enough.

    Args:
      dataset: The events.
      users: int [M], the user of each history.
      ends: int [M], the absolute index that each history ends before.
      groups: int [N + 1], the group of each item.
      config: The protocol.
      rng: Randomness.

    Returns:
      The probes, in the order of their users.

    Raises:
      ConfigError: If no history is long enough, or the catalogue is too small for a new item.
    """
    long_enough = ends - np.asarray(dataset.offsets)[users] >= config.context
    if not long_enough.any():
        raise ConfigError(
            f"no user has the {config.context} events before its target that the probe needs as "
            "context: set a smaller --context"
        )
    ends = ends[long_enough]
    slots = ends[:, None] - np.arange(config.context, 0, -1)
    context = np.asarray(dataset.items)[slots]
    times = np.asarray(dataset.timestamps)[slots] - dataset.origin
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    longest = config.insertions[-1]
    popular = np.asarray(dataset.items)
    counts = np.bincount(popular, minlength=dataset.num_items + 1).astype(np.float64)
    rows = len(context)
    inserted = {arm: np.empty((rows, longest), np.int64) for arm in ARMS}
    targets = np.empty(rows, np.int64)
    for row, own in enumerate(context):
        pattern = frequent_pattern(own, groups, config.pattern)
        copies = np.resize(pattern, longest)
        for slot in np.flatnonzero(rng.random(longest) < config.noise):
            copies[slot] = rng.choice(members[groups[copies[slot]]])
        inserted["repeated"][row] = copies
        inserted["random"][row] = popular[rng.integers(len(popular), size=longest)]
        taken = np.concatenate([own, *(inserted[arm][row] for arm in ARMS)])
        # Targets are drawn by their frequency, because the vector of an item that hardly occurs
        # recalls nothing.
        free = counts * ~np.isin(np.arange(len(counts)), taken)
        if not free.any():
            raise ConfigError(
                f"the catalogue's {dataset.num_items} items leave none that a history of "
                f"{config.length} events does not hold: lower the largest of insertions"
            )
        targets[row] = rng.choice(len(free), p=free / free.sum())
    step = np.maximum(np.median(np.diff(times, axis=1), axis=1), 1).astype(np.int64)
    # Times beyond int32 would wrap. Only the gaps matter to a model, so the start is moved.
    last, gaps = np.iinfo(np.int32).max, config.length
    step = np.minimum(step, last // gaps)
    start = np.minimum(times[:, 0], last - gaps * step)
    return Probes(context, start, step, targets, inserted, config.shown)


def frequent_pattern(items: np.ndarray, groups: np.ndarray, length: int) -> np.ndarray:
    """The consecutive events that recur most often.

    Patterns are ordered by how often the same items recur in this order, then by the frequency of
    their groups, then by time, the latest first. In a log without repeats only groups recur.

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
    ranks: dict[str, np.ndarray], unseen: dict[str, np.ndarray], insertions: Sequence[int]
) -> dict[str, Any]:
    """Summarises the probe's ranks.

    Args:
      ranks: By arm, [R, U]: ranks of the targets for each r.
      unseen: By arm, [R, U]: ranks in the same histories without the rare event.
      insertions: The values of r.

    Returns:
      arms: For each arm and r: the median rank, HR@10, and the mean of log2 rank with its standard
        error.
      not_shown: The same without the rare event.
      sink: For each r, the doublings of the rank by repeated over random events, paired over users:
        how much repetition adds to forgetting.
      sink_not_shown: The same without the rare event: how much repetition lowers any item that
        does not repeat, when there is no memory of it to lose.
    """
    return {
        "insertions": list(insertions),
        "users": ranks["repeated"].shape[1],
        "arms": {arm: _per_insertion(values) for arm, values in ranks.items()},
        "not_shown": {arm: _per_insertion(values) for arm, values in unseen.items()},
        "sink": _repetition(ranks),
        "sink_not_shown": _repetition(unseen),
    }


def _repetition(ranks: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """Doublings of the rank by repetition over random events, for each r."""
    return [summarise_users(row) for row in np.log2(ranks["repeated"]) - np.log2(ranks["random"])]


def _per_insertion(ranks: np.ndarray) -> dict[str, list[Any]]:
    return {
        "median_rank": np.median(ranks, axis=1).tolist(),
        "HR@10": np.mean(ranks <= 10, axis=1).tolist(),
        "log2_rank": [summarise_users(row) for row in np.log2(ranks)],
    }
