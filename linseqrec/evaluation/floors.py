"""Floors: recommenders without a gradient. A trained model near them is not working.

Each is fitted on the training events of a split alone and called as `Evaluator.run_scores` wants
it, `floor(users, positions) -> scores [B, N + 1]`. At test time the history before a target, which
includes the validation event, is an input; nothing is learned from it.
"""

import numpy as np
from jaxtyping import Float, Int

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import Split
from linseqrec.events import SECONDS_PER_DAY

# Where the waits of `TimedMarkov` begin, in seconds; the first are shorter.
_WAITS = (1, 60)


def training_events(dataset: Dataset, split: Split) -> np.ndarray:
    """Which events train, bool [E]."""
    ends = np.repeat(split.train_end, np.diff(dataset.offsets))
    return np.arange(dataset.num_events) < ends


def item_counts(dataset: Dataset, split: Split) -> np.ndarray:
    """How often each item occurs in training, int64 [N + 1]."""
    items = np.asarray(dataset.items)[training_events(dataset, split)]
    return np.bincount(items, minlength=dataset.num_items + 1)


class Popularity:
    """Every user is shown the items with the most training events."""

    def __init__(self, dataset: Dataset, split: Split):
        self.scores = item_counts(dataset, split).astype(np.float64)

    def __call__(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Scores float64 [B, N + 1], the same in every row."""
        return np.broadcast_to(self.scores, (len(users), len(self.scores)))


class RecentPopularity(Popularity):
    """Popularity over the last training events only, the same for every user.

    Only for logs with real timestamps: where time is a mere order within each user, no event of one
    user is more recent than another's.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        *,
        days: float | None = None,
        share: float | None = None,
    ):
        """Counts the items of the window.

        Args:
          dataset: The events.
          split: Says which of them train.
          days: The window is the last `days` before the last training event.
          share: Or it holds the latest `share` of the training events, in (0, 1].

        Raises:
          ValueError: Not exactly one of `days` and `share`, or one out of its range.
        """
        train = training_events(dataset, split)
        times = np.asarray(dataset.timestamps)[train]
        if days is not None and share is None:
            if days <= 0:
                raise ValueError(f"days must be positive, got {days}")
            since = times.max() - days * SECONDS_PER_DAY
        elif share is not None and days is None:
            if not 0 < share <= 1:
                raise ValueError(f"share must lie in (0, 1], got {share}")
            first = min(int((1 - share) * len(times)), len(times) - 1)
            since = np.partition(times, first)[first]
        else:
            raise ValueError(f"give one of days and share, got days={days} and share={share}")
        recent = np.asarray(dataset.items)[train][times >= since]
        self.scores = np.bincount(recent, minlength=dataset.num_items + 1).astype(np.float64)


class DecayedMarkov:
    """First-order transitions from each of the last items, the older ones counting less.

    With `c[i, j]` how often item j directly followed item i in training, `n[i]` how often i occurs
    in training, and `h_0, h_1, ...` the history from its last item backwards:

        score(j) = sum over k < last of  decay**k * c[h_k, j] / n[h_k]**0.5

    The square root stands half-way between counts, where frequent items drown the others, and
    probabilities, where an item seen once speaks as loud as one seen a thousand times.

    Source: ours.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        *,
        last: int = 10,
        decay: float = 0.7,
        among: np.ndarray | None = None,
    ):
        """Counts the transitions between neighbouring training events of a user.

        Args:
          dataset: The events.
          split: Says which of them train.
          last: How many of the last items speak.
          decay: The weight of each further item back, in (0, 1].
          among: bool [E], count transitions to these events only; None counts all.

        Raises:
          ValueError: A setting out of its range.
        """
        if last < 1 or not 0 < decay <= 1:
            raise ValueError(f"last must be positive, decay in (0, 1], got {last} and {decay}")
        self._dataset = dataset
        self._weights = decay ** np.arange(last)
        self._offsets, self._next, counts = _transitions(dataset, split, among)
        scale = np.sqrt(np.maximum(item_counts(dataset, split), 1))
        self._values = counts / np.repeat(scale, np.diff(self._offsets))

    def __call__(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Scores float64 [B, N + 1]; 0 for what never followed."""
        num_slots = self._dataset.num_items + 1
        back = positions[:, None] - 1 - np.arange(len(self._weights))
        real = back >= self._dataset.offsets[users][:, None]
        speaking = np.asarray(self._dataset.items)[np.maximum(back, 0)]
        starts = self._offsets[speaking].ravel()
        sizes = np.where(real, self._offsets[speaking + 1] - self._offsets[speaking], 0).ravel()
        # Every transition of every speaking item, one after another: [sum of sizes].
        entries = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        rows = np.repeat(np.repeat(np.arange(len(users)), len(self._weights)), sizes)
        weights = np.repeat(np.tile(self._weights, len(users)), sizes)
        scores = np.bincount(
            rows * num_slots + self._next[entries],
            weights=weights * self._values[entries],
            minlength=len(users) * num_slots,
        )
        return scores.reshape(len(users), num_slots)


class Markov(DecayedMarkov):
    """First-order Markov: what most often followed the last item in training."""

    def __init__(self, dataset: Dataset, split: Split, *, among: np.ndarray | None = None):
        """Counts the transitions, as `DecayedMarkov`."""
        # With one item speaking, the scale of its row changes no rank: these are the plain counts.
        super().__init__(dataset, split, last=1, decay=1.0, among=among)


class TimedMarkov:
    """`Markov` where request times are known: what followed the last item after as long, above all.

    With `w` one of three waits (the same second, less than a minute, longer), `c_w[i, j]` how often
    item j directly followed item i after such a wait in training, and `c` the sum over the waits:

        score(j) = c_w[i, j] + 0.1 c[i, j],  w the time from the last item i to the request

    Events of one second are one basket, or one page of ratings. Source: ours.
    """

    def __init__(self, dataset: Dataset, split: Split):
        """Counts the transitions between neighbouring training events of a user, by their wait."""
        self._times = np.asarray(dataset.timestamps)
        waits = self._wait(np.arange(dataset.num_events))
        self._all = Markov(dataset, split)
        self._by_wait = [
            Markov(dataset, split, among=waits == wait) for wait in range(len(_WAITS) + 1)
        ]

    def __call__(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Scores float64 [B, N + 1], of requests at the targets' own times."""
        waits = self._wait(positions)
        scores = 0.1 * self._all(users, positions)
        for wait, markov in enumerate(self._by_wait):
            rows = np.flatnonzero(waits == wait)
            scores[rows] += markov(users[rows], positions[rows])
        return scores

    def _wait(self, positions: np.ndarray) -> np.ndarray:
        seconds = self._times[positions] - self._times[np.maximum(positions - 1, 0)]
        return np.searchsorted(_WAITS, seconds, side="right")


class PersonalMarkov:
    """What followed the last items before, in a user's own history: the floor where people repeat.

    With `h_0, h_1, ...` the history from its last item backwards, `t[j]` the sum over k < last of
    `1 / (k + 1)` for each time that item j stood k + 1 events after an earlier h_k, `n[j]` how
    often j occurs in the history, `p[j]` the share of j among what followed h_0 in training
    (`Markov`), and `r` the share of training events whose item the user had before:

        score(j) = r (t[j] + prior n[j]) / sum over j of (t[j] + prior n[j]) + (1 - r) p[j]

    A model that reads as much of each history and stays below it recalls less than counting does.
    Where nobody repeats, it is `Markov`. Source: ours.

    Told request times (`timed`), an event of the history that is at least half a day old weighs
    1 + 20 exp(-(d / 1.5 h)^2) times as much in t and n, with d how far its time of day is from the
    request's; and p is `TimedMarkov`'s.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        *,
        last: int = 3,
        prior: float = 0.05,
        max_length: int | None = None,
        timed: bool = False,
    ):
        """Counts transitions, and repeats, among the training events.

        Args:
          dataset: The events.
          split: Says which of them train.
          last: How many of the last items speak.
          prior: What an occurrence weighs beside a transition.
          max_length: The last events of a history that are counted; None counts all of them.
          timed: Whether requests come at the targets' own times.

        Raises:
          ValueError: A setting out of its range.
        """
        if last < 1 or prior <= 0:
            raise ValueError(f"last and prior must be positive, got {last} and {prior}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be positive, got {max_length}")
        self._dataset, self._last, self._prior = dataset, last, prior
        self._max_length, self._timed = max_length, timed
        self._markov = TimedMarkov(dataset, split) if timed else Markov(dataset, split)
        train = training_events(dataset, split)
        items = np.asarray(dataset.items)[train].astype(np.int64)
        users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))[train]
        firsts = len(np.unique(users * (dataset.num_items + 1) + items))
        self.repeat_rate = 1 - firsts / max(len(items), 1)

    def __call__(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Scores float64 [B, N + 1], each row's sum at most 1."""
        num_slots = self._dataset.num_items + 1
        items = np.asarray(self._dataset.items)
        starts = np.asarray(self._dataset.offsets)[users]
        if self._max_length is not None:
            starts = np.maximum(starts, positions - self._max_length)
        lengths = positions - starts
        # Every event of every history, one after another: [sum of lengths].
        rows = np.repeat(np.arange(len(users)), lengths)
        events = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(len(rows))
        near = np.ones(len(rows))
        if self._timed:
            times = np.asarray(self._dataset.timestamps)
            near = _near_in_the_day(times[events], times[positions][rows])
        own = np.bincount(
            rows * num_slots + items[events],
            weights=self._prior * near,
            minlength=len(users) * num_slots,
        )
        for back in range(1, self._last + 1):
            speaking = items[np.maximum(positions - back, 0)][rows]
            followed = (events + back < positions[rows]) & (items[events] == speaking)
            own += np.bincount(
                rows[followed] * num_slots + items[events[followed] + back],
                weights=near[np.flatnonzero(followed) + back] / back,
                minlength=len(users) * num_slots,
            )
        rate = self.repeat_rate
        return rate * _shares(own.reshape(-1, num_slots)) + (1 - rate) * _shares(
            self._markov(users, positions)
        )


def _near_in_the_day(
    times: Int[np.ndarray, " E"], requests: Int[np.ndarray, " E"]
) -> Float[np.ndarray, " E"]:
    """What events weigh in requests, from 1 at another time of day to 21 at the same.

    Events of the last half day weigh 1: they are near because they are of the same session.
    """
    apart = (times - requests) % SECONDS_PER_DAY
    apart = np.minimum(apart, SECONDS_PER_DAY - apart)
    earlier = requests - times >= SECONDS_PER_DAY // 2
    return 1 + 20 * earlier * np.exp(-((apart / 5_400) ** 2))


def _shares(scores: np.ndarray) -> np.ndarray:
    """Each row over its sum; a row of zeros stays one."""
    total = scores.sum(axis=1, keepdims=True)
    return scores / np.where(total > 0, total, 1)


def _transitions(
    dataset: Dataset, split: Split, among: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each item followed each other in training, as a sparse matrix by rows.

    Of the events that followed, those `among` the given ones, bool [E]; None: all.

    Returns:
      offsets int64 [N + 2], so that item i's transitions are `offsets[i] : offsets[i + 1]`; the
      items that followed, ascending within a row; how often.
    """
    num_slots = dataset.num_items + 1
    items = np.asarray(dataset.items).astype(np.int64)
    train = training_events(dataset, split)
    # Training events are the head of a user's events, so a training event that does not begin a
    # user follows a training event.
    follows = train.copy()
    beginnings = np.asarray(dataset.offsets[:-1])
    follows[beginnings[beginnings < len(follows)]] = False
    second = np.flatnonzero(follows if among is None else follows & among)
    pairs, counts = np.unique(items[second - 1] * num_slots + items[second], return_counts=True)
    row_sizes = np.bincount(pairs // num_slots, minlength=num_slots)
    return np.concatenate([[0], np.cumsum(row_sizes)]), pairs % num_slots, counts
