"""Counting baselines: recommenders without a gradient, which a trained model has to beat.

Each baseline is fitted on the training events of a split alone. It is a `SparseScorer` for
`Evaluator.run_scores`: its memory grows with the events that it counts, and not with users x items
or items x items. At test time the history before a target, which includes the validation event, is
an input; the baseline learns nothing from it.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import Split, item_counts, training_events
from linseqrec.evaluation.queries import events_before
from linseqrec.evaluation.sparse_scores import (
    SharedScores,
    SparseScorer,
    SparseScores,
    distinct,
    weighted_sum,
)
from linseqrec.events import SECONDS_PER_DAY

# Where the second and the third wait of `TimedMarkov` begin, in seconds.
_WAITS = (1, 60)


def fit_baselines(
    dataset: Dataset, split: Split, *, max_length: int | None = None, request_times: bool = False
) -> dict[str, SparseScorer]:
    """The baselines that stand beside every model's results.

    Args:
      dataset: The events.
      split: Says which of them train.
      max_length: Adds a Personal Markov that counts as many events of a history as a model reads;
        None adds none.
      request_times: Whether the models are told request times. Adds the baselines that use them.

    Returns:
      Name to baseline. Recent popularity is left out where the log has no timestamps, Personal
      popularity where no training event repeats an earlier item of its user.
    """
    baselines: dict[str, SparseScorer] = {"Popularity": Popularity(dataset, split)}
    if not dataset.card["time"]["order_only"]:
        baselines["Recent popularity"] = RecentPopularity(dataset, split, share=0.1)
    personal = PersonalPopularity(dataset, split)
    if personal.repeat_rate:
        baselines["Personal popularity"] = personal
    baselines["Markov"] = Markov(dataset, split)
    baselines["Decayed Markov"] = DecayedMarkov(dataset, split)
    baselines["Personal Markov"] = PersonalMarkov(dataset, split)
    if max_length is not None:
        baselines[f"Personal Markov, last {max_length} events"] = PersonalMarkov(
            dataset, split, max_length=max_length
        )
    if request_times:
        baselines["Timed Markov"] = TimedMarkov(dataset, split)
        baselines["Timed Personal Markov"] = PersonalMarkov(dataset, split, timed=True)
    return baselines


class Popularity(SparseScorer):
    """Scores each item by its training events, the same for every user."""

    def __init__(self, dataset: Dataset, split: Split):
        self._shared = SharedScores(item_counts(dataset, split).astype(np.float64))

    def sparse(self, users: np.ndarray, positions: np.ndarray) -> SparseScores:
        """Scores without exceptions."""
        return SparseScores(self._shared, len(users), np.zeros(0, np.int64), np.zeros(0))

    def sizes(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Zeros."""
        return np.zeros(len(users), np.int64)


class RecentPopularity(Popularity):
    """Popularity over the latest training events only, the same for every user.

    It needs a log with real timestamps. Where a log has only an order within each user, events of
    different users have no order.
    """

    def __init__(self, dataset: Dataset, split: Split, *, share: float):
        """Counts the items in a window of time.

        Args:
          dataset: The events.
          split: Says which of them train.
          share: The share of the training events that the window holds, the latest ones, in (0, 1].

        Raises:
          ValueError: If the share is out of range.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        train = training_events(dataset, split)
        times = np.asarray(dataset.timestamps)[train]
        first = min(int((1 - share) * len(times)), len(times) - 1)
        since = np.partition(times, first)[first]
        recent = np.asarray(dataset.items)[train][times >= since]
        counts = np.bincount(recent, minlength=dataset.num_items + 1)
        self._shared = SharedScores(counts.astype(np.float64))


class PersonalPopularity(SparseScorer):
    """Popularity in the user's own history, mixed with `Popularity`: for logs of many repeats.

    With r as in `PersonalMarkov`, q[j] the share of j among the training events, and k how many
    events ago an event of the history was, from 1:

        w[j]      sum over the history's events of item j of  (k + 10) ** -0.5
        score(j) = r w[j] / sum over j of w[j] + (1 - r) q[j]

    It needs no order within a basket, where Markov counts transitions that mean nothing. Source:
    ours; without the weights of age it is the personal top list of next-basket recommendation.
    """

    def __init__(self, dataset: Dataset, split: Split):
        """Counts items, and repeats, among the training events."""
        self._dataset, self.repeat_rate = dataset, _repeat_rate(dataset, split)
        counts = item_counts(dataset, split).astype(np.float64)
        shares = counts / max(counts.sum(), 1)
        self._shared = SharedScores((1 - self.repeat_rate) * shares)

    def sparse(self, users: np.ndarray, positions: np.ndarray) -> SparseScores:
        """Scores; the sum of a row is at most 1."""
        starts = np.asarray(self._dataset.offsets)[users]
        rows, events = events_before(starts, positions)
        num_slots = len(self._shared.scores)
        items = np.asarray(self._dataset.items[events])
        keys, places = distinct(rows * num_slots + items, len(users) * num_slots)
        weights = (positions[rows] - events + 10.0) ** -0.5
        own = np.bincount(places, weights=weights, minlength=len(keys))
        own = _shares(SparseScores(self._shared, len(users), keys, own)).values
        values = self.repeat_rate * own + self._shared.scores[keys % num_slots]
        return SparseScores(self._shared, len(users), keys, values)

    def sizes(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The number of events of a history."""
        return positions - np.asarray(self._dataset.offsets)[users]


class DecayedMarkov(SparseScorer):
    """First-order transitions from each of the last items; an older item has a lower weight.

    With `c[i, j]` how often item j directly followed item i in training, `n[i]` how often i occurs
    in training, and `h_0, h_1, ...` the history from its last item backwards:

        score(j) = sum over k < last of  decay**k * c[h_k, j] / n[h_k]**0.5

    The square root is a compromise. With plain counts, frequent items dominate the sum; with
    probabilities, an item that occurs once weighs as much as one that occurs a thousand times.

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
          last: How many of the last items are used.
          decay: The factor of each further item back, in (0, 1].
          among: bool [E], the events whose transitions are counted; None counts all.

        Raises:
          ValueError: If a setting is out of its range.
        """
        if last < 1 or not 0 < decay <= 1:
            raise ValueError(f"last must be positive, decay in (0, 1], got {last} and {decay}")
        self._dataset = dataset
        self._weights = decay ** np.arange(last)
        self._offsets, self._next, counts = _transitions(dataset, split, among)
        scale = np.sqrt(np.maximum(item_counts(dataset, split), 1))
        self._values = counts / np.repeat(scale, np.diff(self._offsets))
        self._shared = _no_scores(dataset.num_items)

    def sparse(self, users: np.ndarray, positions: np.ndarray) -> SparseScores:
        """Scores; 0 for items that never followed."""
        starts, sizes = (array.ravel() for array in self._transitions_of(users, positions))
        # Every transition of every last item, one after another: [sum of sizes].
        number, entries = events_before(starts, starts + sizes)
        rows, back = np.divmod(number, len(self._weights))
        num_slots = len(self._shared.scores)
        keys, places = distinct(rows * num_slots + self._next[entries], len(users) * num_slots)
        weights = self._weights[back] * self._values[entries]
        values = np.bincount(places, weights=weights, minlength=len(keys))
        return SparseScores(self._shared, len(users), keys, values)

    def sizes(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The number of transitions of the last items."""
        return self._transitions_of(users, positions)[1].sum(1)

    def _transitions_of(
        self, users: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the transitions of each last item begin, and how many there are, both [B, last]."""
        back = positions[:, None] - 1 - np.arange(len(self._weights))
        real = back >= self._dataset.offsets[users][:, None]
        last_items = np.asarray(self._dataset.items)[np.maximum(back, 0)]
        starts = self._offsets[last_items]
        return starts, np.where(real, self._offsets[last_items + 1] - starts, 0)


class Markov(DecayedMarkov):
    """First-order Markov: scores items by how often they followed the last item in training."""

    def __init__(self, dataset: Dataset, split: Split, *, among: np.ndarray | None = None):
        """Counts the transitions, as `DecayedMarkov`."""
        # With one last item, the scale of its row changes no rank: these are the plain counts.
        super().__init__(dataset, split, last=1, decay=1.0, among=among)


class TimedMarkov(SparseScorer):
    """`Markov` with known request times: favours items that followed after a similar wait.

    A wait w is the same second, less than a minute, or longer. `c_w[i, j]` is how often item j
    directly followed item i after such a wait in training, and `c` is the sum over the waits:

        score(j) = c_w[i, j] + 0.1 c[i, j],  w the time from the last item i to the request

    Events of one second are usually one basket, or one page of ratings. Source: ours.
    """

    def __init__(self, dataset: Dataset, split: Split):
        """Counts the transitions between neighbouring training events of a user, by their wait."""
        self._times = np.asarray(dataset.timestamps)
        waits = self._wait(np.arange(dataset.num_events))
        self._all = Markov(dataset, split)
        self._by_wait = [
            Markov(dataset, split, among=waits == wait) for wait in range(len(_WAITS) + 1)
        ]

    def sparse(self, users: np.ndarray, positions: np.ndarray) -> SparseScores:
        """Scores for requests at the targets' own times."""
        waits = self._wait(positions)
        scores = self._all.sparse(users, positions)
        parts = [(0.1, scores)]
        for wait, markov in enumerate(self._by_wait):
            rows = np.flatnonzero(waits == wait)
            part = markov.sparse(users[rows], positions[rows])
            own, items = np.divmod(part.keys, part.num_slots)
            keys = rows[own] * part.num_slots + items
            parts.append((1.0, dataclasses.replace(part, num_rows=len(users), keys=keys)))
        return weighted_sum(parts)

    def sizes(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The number of transitions of the last item."""
        return self._all.sizes(users, positions)

    def _wait(self, positions: np.ndarray) -> np.ndarray:
        seconds = self._times[positions] - self._times[np.maximum(positions - 1, 0)]
        return np.searchsorted(_WAITS, seconds, side="right")


class PersonalMarkov(SparseScorer):
    """Markov on the user's own history, mixed with `Markov`: the baseline for logs with repeats.

    Let `h_0, h_1, ...` be the history from its last item backwards, and

        t[j]   sum over k < last of 1 / (k + 1), for each time that item j stood k + 1 events after
               an earlier h_k
        n[j]   how often j occurs in the history
        p[j]   the share of j among the items that followed h_0 in training (`Markov`)
        r      the share of training events whose item the user had before

        score(j) = r (t[j] + prior n[j]) / sum over j of (t[j] + prior n[j]) + (1 - r) p[j]

    A model that reads as much of each history and has lower metrics recalls less than counting
    does. Where no user repeats an item, the baseline is `Markov`. Source: ours.

    With request times (`timed`), p is `TimedMarkov`'s. An event of the history that is at least
    half a day old then has a weight of 1 + 20 exp(-(d / 1.5 h)^2) in t and n. Here d is the
    distance between its time of day and the request's.
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
          last: How many of the last items are used.
          prior: The weight of an occurrence, relative to a transition.
          max_length: How many of a history's last events are counted; None counts all of them.
          timed: Whether the request times, which are the targets' own times, are used.

        Raises:
          ValueError: If a setting is out of its range.
        """
        if last < 1 or prior <= 0:
            raise ValueError(f"last and prior must be positive, got {last} and {prior}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be positive, got {max_length}")
        self._dataset, self._last, self._prior = dataset, last, prior
        self._max_length, self._timed = max_length, timed
        self._markov = TimedMarkov(dataset, split) if timed else Markov(dataset, split)
        self.repeat_rate = _repeat_rate(dataset, split)

    def sparse(self, users: np.ndarray, positions: np.ndarray) -> SparseScores:
        """Scores; the sum of a row is at most 1."""
        others = self._markov.sparse(users, positions)
        items = self._dataset.items
        rows, events = events_before(self._starts(users, positions), positions)
        own_items = np.asarray(items[events])
        near = np.ones(len(rows))
        if self._timed:
            times = self._dataset.timestamps
            near = _near_in_the_day(times[events], times[positions][rows])
        num_slots = others.num_slots
        keys, places = distinct(rows * num_slots + own_items, len(users) * num_slots)
        own = np.bincount(places, weights=self._prior * near, minlength=len(keys))
        for back in range(1, self._last + 1):
            last_item = items[np.maximum(positions - back, 0)][rows]
            followed = (events + back < positions[rows]) & (own_items == last_item)
            after = np.flatnonzero(followed) + back
            own += np.bincount(places[after], weights=near[after] / back, minlength=len(keys))
        history = dataclasses.replace(others, keys=keys, values=own)
        rate = self.repeat_rate
        return weighted_sum([(rate, _shares(history)), (1 - rate, _shares(others))])

    def sizes(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The number of events of a history, and of transitions of its last item."""
        lengths = positions - self._starts(users, positions)
        return lengths + self._markov.sizes(users, positions)

    def _starts(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The first event that counts, of each history."""
        starts = np.asarray(self._dataset.offsets)[users]
        if self._max_length is None:
            return starts
        return np.maximum(starts, positions - self._max_length)


@functools.lru_cache(maxsize=1)
def _no_scores(num_items: int) -> SharedScores:
    """The shared scores of all baselines that count transitions: 0 for each item."""
    return SharedScores(np.zeros(num_items + 1))


def _near_in_the_day(
    times: Int[np.ndarray, " E"], requests: Int[np.ndarray, " E"]
) -> Float[np.ndarray, " E"]:
    """Weights of events by time of day: 21 at the request's time of day, down to 1 far from it.

    Events of the last half day weigh 1. They are close to the request because they belong to the
    same session.
    """
    apart = (times - requests) % SECONDS_PER_DAY
    apart = np.minimum(apart, SECONDS_PER_DAY - apart)
    earlier = requests - times >= SECONDS_PER_DAY // 2
    return 1 + 20 * earlier * np.exp(-((apart / 5_400) ** 2))


def _repeat_rate(dataset: Dataset, split: Split) -> float:
    """The share of the training events whose item the user had before."""
    train = training_events(dataset, split)
    items = np.asarray(dataset.items)[train].astype(np.int64)
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))[train]
    firsts = len(np.unique(users * (dataset.num_items + 1) + items))
    return 1 - firsts / max(len(items), 1)


def _shares(scores: SparseScores) -> SparseScores:
    """Each row divided by its sum; a row of zeros stays a row of zeros."""
    rows = scores.keys // scores.num_slots
    total = np.bincount(rows, weights=scores.values, minlength=scores.num_rows)
    return dataclasses.replace(scores, values=scores.values / np.where(total > 0, total, 1)[rows])


def _transitions(
    dataset: Dataset, split: Split, among: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each item followed each other item in training, as a sparse matrix by rows.

    Args:
      dataset: The events.
      split: Says which of them train.
      among: bool [E], the events whose transitions are counted; None counts all.

    Returns:
      offsets: int64 [N + 2]; item i's transitions are `offsets[i] : offsets[i + 1]`.
      items: The items that followed, ascending within a row.
      counts: How often.
    """
    num_slots = dataset.num_items + 1
    items = np.asarray(dataset.items).astype(np.int64)
    train = training_events(dataset, split)
    # A user's training events come before his other events. So every training event follows
    # another one, except a user's first.
    follows = train.copy()
    beginnings = np.asarray(dataset.offsets[:-1])
    follows[beginnings[beginnings < len(follows)]] = False
    second = np.flatnonzero(follows if among is None else follows & among)
    pairs, counts = np.unique(items[second - 1] * num_slots + items[second], return_counts=True)
    row_sizes = np.bincount(pairs // num_slots, minlength=num_slots)
    return np.concatenate([[0], np.cumsum(row_sizes)]), pairs % num_slots, counts
