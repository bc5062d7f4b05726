"""Splits: which events train, and which are predicted in validation and in test.

A split never copies or drops events: it says where each user's training events end and names the
targets by their index in the data set. Whatever it leaves out it counts, in `Split.description`.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from linseqrec.data.dataset import Dataset
from linseqrec.errors import UserError

TRAIN, VALIDATION, TEST = 0, 1, 2


class SplitError(UserError, ValueError):
    """A split that these events do not admit: says why, and what would do."""


@dataclasses.dataclass(frozen=True)
class Targets:
    """Events to be predicted, each from all events of its user before it.

    Attributes:
      users: int64 [M], index of each target's user, non-decreasing.
      positions: int64 [M], index of each target in `Dataset.items`; its history is the events
        `offsets[user] : position`, at least one.
    """

    users: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)


@dataclasses.dataclass(frozen=True)
class Split:
    """One data set's division into training events and targets.

    Attributes:
      name: The policy: "leave_one_out", "global_temporal" or "folds".
      train_end: int64 [U], index one past each user's last training event.
      validation: What is predicted to select a model.
      test: What is predicted once, after selection; histories include the validation events.
      description: JSON-able: the policy's settings, the sizes, and what was left out and why.
    """

    name: str
    train_end: np.ndarray
    validation: Targets
    test: Targets
    description: dict[str, Any]


def leave_one_out(dataset: Dataset) -> Split:
    """Each user's last event is the test target, the second-last the validation target.

    A user with fewer than three events could not keep an event to train on: all his events train
    and none is a target. `description["users_too_short"]` counts such users.

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
    return _described(
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
    """Everything before one moment trains; targets lie after it, for all users alike.

    The moments are quantiles of all events' times. An event at exactly the moment lies after it, so
    that events of one time are never divided. Validation targets lie between the two moments, test
    targets after the second; a target's history is everything its user did before it, whenever.

    Args:
      dataset: The events, in time order within each user.
      validation_quantile: Share of events before the first moment, in (0, 1).
      test_quantile: Share of events before the second moment, above `validation_quantile`, below 1.
      targets: Which of a user's events in a period are predicted: his last, his first, or all.

    Returns:
      The split. Its description counts the events before each moment, the users without any
      training event (kept: their later targets have histories), and the targets without history.

    Raises:
      SplitError: Quantiles out of order, an unknown `targets`, a log without times, or two moments
        that coincide.

    Source: ours; why leave-one-out leaks: Ji et al., 2023 ("A critical study on data leakage").
    """
    if not 0 < validation_quantile < test_quantile < 1:
        raise SplitError(
            "the quantiles must satisfy 0 < validation_quantile < test_quantile < 1, got "
            f"validation_quantile={validation_quantile}, test_quantile={test_quantile}"
        )
    if targets not in ("last", "first", "all"):
        raise SplitError(f'targets must be "last", "first" or "all", got {targets!r}')
    if dataset.card["time"].get("order_only"):
        raise SplitError(
            "this log has no time, only each user's order, so no moment divides all users alike; "
            "use leave_one_out"
        )
    if dataset.num_events == 0:
        raise SplitError("the data set holds no events, so its time has no quantiles")
    ranks = [int(q * dataset.num_events) for q in (validation_quantile, test_quantile)]
    moments = np.partition(dataset.timestamps, ranks)[ranks]
    if moments[0] == moments[1]:
        raise SplitError(
            f"quantiles {validation_quantile} and {test_quantile} fall on the same time "
            f"({moments[0]}): no event can lie between them; choose quantiles further apart"
        )
    ends = [_count_to(dataset, dataset.timestamps < moment) for moment in moments]
    validation, no_history = _period(dataset, ends[0], ends[1], targets)
    test, no_history_test = _period(dataset, ends[1], dataset.offsets[1:], targets)
    return _described(
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
        validation_without_history=no_history,
        test_without_history=no_history_test,
    )


def from_folds(dataset: Dataset) -> Split:
    """The split that the log brought: `Dataset.folds` (0 train, 1 validation, 2 test).

    Every event of folds 1 and 2 is a target, except a user's very first event, which has no history
    (counted in the description).

    Args:
      dataset: A data set with folds.

    Returns:
      The split.

    Raises:
      SplitError: No folds, a fold that is not 0, 1 or 2, or a user whose folds are not
        train* validation* test* in time order.
    """
    if dataset.folds is None:
        raise SplitError(
            "the data set has no folds: prepare it from a log with a fold column, or use "
            "leave_one_out or global_temporal"
        )
    folds = np.asarray(dataset.folds)
    unknown = np.flatnonzero((folds < TRAIN) | (folds > TEST))
    if len(unknown):
        raise SplitError(
            f"fold {folds[unknown[0]]} of event {unknown[0]} is none of 0 (train), 1 (validation), "
            "2 (test)"
        )
    backwards = np.flatnonzero(np.diff(folds) < 0) + 1
    # A step down in the fold is right where it is also a step to the next user.
    backwards = backwards[~np.isin(backwards, dataset.offsets)]
    if len(backwards):
        event = int(backwards[0])
        user = int(np.searchsorted(dataset.offsets, event, side="right")) - 1
        raise SplitError(
            f"user {user}: fold {folds[event]} (event {event}) follows fold {folds[event - 1]}; "
            "each user's events must be train, then validation, then test in time order "
            f"({len(backwards)} such places in all)"
        )
    train_end = _count_to(dataset, folds == TRAIN)
    validation_end = _count_to(dataset, folds <= VALIDATION)
    validation, no_history = _period(dataset, train_end, validation_end, "all")
    test, no_history_test = _period(dataset, validation_end, dataset.offsets[1:], "all")
    return _described(
        dataset,
        "folds",
        train_end,
        validation,
        test,
        users_without_training_events=int(np.sum(train_end == dataset.offsets[:-1])),
        validation_without_history=no_history,
        test_without_history=no_history_test,
    )


def _count_to(dataset: Dataset, before: np.ndarray) -> np.ndarray:
    """Index one past each user's leading events for which `before` [E] holds, int64 [U]."""
    running = np.concatenate([[0], np.cumsum(before, dtype=np.int64)])
    return dataset.offsets[:-1] + running[dataset.offsets[1:]] - running[dataset.offsets[:-1]]


def _period(
    dataset: Dataset, start: np.ndarray, end: np.ndarray, targets: str
) -> tuple[Targets, int]:
    """Targets among each user's events `start:end` [U], and how many had no history."""
    first = start.astype(np.int64)
    last = end.astype(np.int64)
    if targets == "last":
        first = np.maximum(first, last - 1)
    elif targets == "first":
        last = np.minimum(last, first + 1)
    # Only a user's first event of all has no history.
    cold = (first == dataset.offsets[:-1]) & (first < last)
    first = first + cold
    counts = last - first
    users = np.repeat(np.arange(dataset.num_users), counts)
    within = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Targets(users, first[users] + within), int(cold.sum())


def _described(
    dataset: Dataset,
    name: str,
    train_end: np.ndarray,
    validation: Targets,
    test: Targets,
    **more: Any,
) -> Split:
    """The split with the sizes every description states."""
    description = {
        "split": name,
        "users": dataset.num_users,
        "training_events": int(np.sum(train_end - dataset.offsets[:-1])),
        "validation_targets": len(validation),
        "test_targets": len(test),
        **more,
    }
    return Split(name, train_end, validation, test, description)
