"""Splits: the training events, and the targets of validation and test.

A split does not copy or drop events. It holds the end of each user's training events, and the
indices of the targets in the data set. `Split.description` counts the events and users that the
split leaves out.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from linseqrec.data.dataset import Dataset
from linseqrec.data.rows import enumerate_parts
from linseqrec.errors import UserError

TRAIN, VALIDATION, TEST = 0, 1, 2


class SplitError(UserError, ValueError):
    """These events cannot be split this way. The message says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Targets:
    """Events to predict, each from all earlier events of its user.

    Attributes:
      users: int64 [M], index of each target's user, non-decreasing.
      positions: int64 [M], index of each target in `Dataset.items`. The history of a target is the
        events `offsets[user]:position`, at least one.
    """

    users: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)


@dataclasses.dataclass(frozen=True)
class Split:
    """The training events and targets of one data set.

    Attributes:
      name: The policy: "leave_one_out", "global_temporal" or "folds".
      train_end: int64 [U], index one past each user's last training event.
      validation: The targets for model selection.
      test: The targets for the final test. Their histories include the validation events.
      description: The settings of the policy, the sizes, and the counts of events and users that
        the split leaves out, as a dict that JSON can store.
    """

    name: str
    train_end: np.ndarray
    validation: Targets
    test: Targets
    description: dict[str, Any]

    def check_targets(self) -> None:
        """Raises `SplitError` if there is nothing to select a model by, or to test it on."""
        for name, targets in (("validation", self.validation), ("test", self.test)):
            if not len(targets):
                raise SplitError(
                    f"split {self.name!r} has no {name} targets: take another split, or a larger "
                    "data set"
                )


def leave_one_out(dataset: Dataset) -> Split:
    """A split with each user's last event as test target and the one before for validation.

    A user with fewer than three events has no target, because no training event would remain: all
    of his events are training events. `description["users_too_short"]` counts such users.

    Args:
      dataset: The events, in time order within each user.

    Returns:
      The split.

    Source: the protocol of SASRec (Kang & McAuley, 2018).
    """
    counts = np.diff(dataset.offsets)
    split_users = np.flatnonzero(counts >= 3)
    ends = dataset.offsets[1:].astype(np.int64)
    train_end = ends.copy()
    train_end[split_users] -= 2
    return _make_split(
        dataset,
        "leave_one_out",
        train_end,
        Targets(split_users, ends[split_users] - 2),
        Targets(split_users, ends[split_users] - 1),
        users_too_short=int(len(counts) - len(split_users)),
    )


def global_temporal(
    dataset: Dataset,
    validation_quantile: float,
    test_quantile: float,
    targets: Literal["last", "first", "all"] = "last",
) -> Split:
    """A split at two moments that are the same for all users.

    Events before the first moment are training events. Validation targets lie between the two
    moments, test targets after the second. The history of a target is all earlier events of its
    user. An event exactly at a moment counts as after it, so that a moment never divides events of
    one time.

    Args:
      dataset: The events, in time order within each user.
      validation_quantile: Quantile of all timestamps that is the first moment, in (0, 1).
      test_quantile: Quantile of all timestamps that is the second moment, above
        `validation_quantile` and below 1.
      targets: The targets among a user's events of a period: the last one, the first one, or all.

    Returns:
      The split. Its description counts the training events, the targets without a history, and the
      users without a training event. Such users stay: their later targets have histories.

    Raises:
      SplitError: The quantiles are out of order or fall on one time, `targets` is unknown, or the
        log has no times or no events.

    Source: ours. Why leave-one-out leaks: Ji et al., 2023 ("A critical study on data leakage").
    """
    if not 0 < validation_quantile < test_quantile < 1:
        raise SplitError(
            f"validation_quantile is {validation_quantile} and test_quantile is {test_quantile}: "
            "the quantiles must satisfy 0 < validation_quantile < test_quantile < 1"
        )
    if targets not in ("last", "first", "all"):
        raise SplitError(f'targets is {targets!r}: it must be "last", "first" or "all"')
    if dataset.card["time"].get("order_only"):
        raise SplitError(
            "the log has no times, so that no moment divides all users: use the split leave_one_out"
        )
    if dataset.num_events == 0:
        raise SplitError("the data set holds no events: a global temporal split needs at least one")
    ranks = [
        int(quantile * dataset.num_events) for quantile in (validation_quantile, test_quantile)
    ]
    moments = np.partition(dataset.timestamps, ranks)[ranks]
    if moments[0] == moments[1]:
        raise SplitError(
            f"validation_quantile={validation_quantile} and test_quantile={test_quantile} fall on "
            f"the same time, {moments[0]}: choose quantiles further apart"
        )
    ends = [_leading_ends(dataset, dataset.timestamps < moment) for moment in moments]
    validation, validation_cold = _period_targets(dataset, ends[0], ends[1], targets)
    test, test_cold = _period_targets(dataset, ends[1], dataset.offsets[1:], targets)
    return _make_split(
        dataset,
        "global_temporal",
        ends[0],
        validation,
        test,
        targets=targets,
        validation_quantile=validation_quantile,
        test_quantile=test_quantile,
        validation_from=int(moments[0]),
        test_from=int(moments[1]),
        users_without_training_events=int(np.sum(ends[0] == dataset.offsets[:-1])),
        validation_without_history=validation_cold,
        test_without_history=test_cold,
    )


def from_folds(dataset: Dataset) -> Split:
    """The log's own split, `Dataset.folds` (0 train, 1 validation, 2 test).

    Every event of folds 1 and 2 is a target, except the first event of a user, which has no
    history. The description counts these events.

    Args:
      dataset: A data set with folds.

    Returns:
      The split.

    Raises:
      SplitError: The data set has no folds, or the folds of a user decrease: his events must be
        training, then validation, then test events. The message names the user by the log's id.
    """
    if dataset.folds is None:
        raise SplitError(
            "the data set has no folds: prepare it from a log with a fold column, or use the split "
            "leave_one_out or global_temporal"
        )
    folds = np.asarray(dataset.folds)
    decreases = np.flatnonzero(np.diff(folds) < 0) + 1
    # The fold may decrease at the first event of a user.
    decreases = decreases[~np.isin(decreases, dataset.offsets)]
    if len(decreases):
        event = int(decreases[0])
        user = int(np.searchsorted(dataset.offsets, event, side="right")) - 1
        user_id = dataset.user_ids()[user]
        raise SplitError(
            f"user {user_id}: event {event} has fold {folds[event]} after an event with fold "
            f"{folds[event - 1]}. In time order, a user's events must be train, then validation, "
            f"then test. The folds decrease at {len(decreases)} events in all"
        )
    train_end = _leading_ends(dataset, folds == TRAIN)
    validation_end = _leading_ends(dataset, folds <= VALIDATION)
    validation, validation_cold = _period_targets(dataset, train_end, validation_end, "all")
    test, test_cold = _period_targets(dataset, validation_end, dataset.offsets[1:], "all")
    return _make_split(
        dataset,
        "folds",
        train_end,
        validation,
        test,
        users_without_training_events=int(np.sum(train_end == dataset.offsets[:-1])),
        validation_without_history=validation_cold,
        test_without_history=test_cold,
    )


def _leading_ends(dataset: Dataset, selected: np.ndarray) -> np.ndarray:
    """int64 [U], index one past each user's selected events, which are his first ones.

    Args:
      dataset: The events.
      selected: bool [E], True at the first events of each user and at no later ones.
    """
    running = np.concatenate([[0], np.cumsum(selected, dtype=np.int64)])
    return dataset.offsets[:-1] + running[dataset.offsets[1:]] - running[dataset.offsets[:-1]]


def _period_targets(
    dataset: Dataset, start: np.ndarray, end: np.ndarray, targets: str
) -> tuple[Targets, int]:
    """The targets among each user's events `start:end` [U], and the number without a history."""
    first = start.astype(np.int64)
    last = end.astype(np.int64)
    if targets == "last":
        first = np.maximum(first, last - 1)
    elif targets == "first":
        last = np.minimum(last, first + 1)
    # Only the first event of a user has no history.
    cold = (first == dataset.offsets[:-1]) & (first < last)
    first = first + cold
    users, within = enumerate_parts(last - first)
    return Targets(users, first[users] + within), int(cold.sum())


def _make_split(
    dataset: Dataset,
    name: str,
    train_end: np.ndarray,
    validation: Targets,
    test: Targets,
    **details: Any,
) -> Split:
    """The split, with its sizes and the policy's own `details` in the description."""
    description = {
        "split": name,
        "users": dataset.num_users,
        "training_events": int(np.sum(train_end - dataset.offsets[:-1])),
        "validation_targets": len(validation),
        "test_targets": len(test),
        **details,
    }
    return Split(name, train_end, validation, test, description)


def training_events(dataset: Dataset, split: Split) -> np.ndarray:
    """The events that train, bool [E]."""
    ends = np.repeat(split.train_end, np.diff(dataset.offsets))
    return np.arange(dataset.num_events) < ends


def item_counts(dataset: Dataset, split: Split) -> np.ndarray:
    """The number of training events of each item, int64 [N + 1]."""
    items = np.asarray(dataset.items)[training_events(dataset, split)]
    return np.bincount(items, minlength=dataset.num_items + 1)
