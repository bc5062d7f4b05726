"""Splits against loops over users, written from the definitions."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import from_folds, global_temporal, leave_one_out
from linseqrec.data.writing import write_dataset


def make(times_of_users, folds=None, **options):
    """A data set whose event i is item i + 1."""
    counts = [len(times) for times in times_of_users]
    times = [time for user in times_of_users for time in user]
    return Dataset.from_arrays(
        np.arange(1, len(times) + 1),
        np.array(times, np.int64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        folds=folds,
        **options,
    )


def pairs(targets):
    return list(zip(targets.users.tolist(), targets.positions.tolist(), strict=True))


histories = st.lists(
    st.lists(st.integers(0, 12), max_size=7).map(sorted), min_size=1, max_size=6
).filter(lambda users: sum(map(len, users)) >= 1)


@settings(max_examples=60, deadline=None)
@given(users=histories)
def test_leave_one_out_targets_the_last_two_events_of_users_with_three_events(users):
    dataset = make(users)
    split = leave_one_out(dataset)
    train_end, validation, test, short, end = [], [], [], 0, 0
    for user, times in enumerate(users):
        end += len(times)
        if len(times) >= 3:
            train_end.append(end - 2)
            validation.append((user, end - 2))
            test.append((user, end - 1))
        else:
            train_end.append(end)
            short += 1
    assert split.train_end.tolist() == train_end
    assert (pairs(split.validation), pairs(split.test)) == (validation, test)
    assert split.description == {
        "split": "leave_one_out",
        "users": len(users),
        "training_events": end - 2 * len(test),
        "validation_targets": len(validation),
        "test_targets": len(test),
        "users_too_short": short,
    }
    assert split.train_end.dtype == split.test.users.dtype == split.test.positions.dtype == np.int64


@settings(max_examples=120, deadline=None)
@given(
    users=histories,
    quantiles=st.sampled_from([(0.3, 0.6), (0.5, 0.9), (0.1, 0.2)]),
    which=st.sampled_from(["last", "first", "all"]),
)
def test_global_temporal_divides_all_users_at_the_same_moments(users, quantiles, which):
    times = sorted(time for user in users for time in user)
    moments = [times[int(quantile * len(times))] for quantile in quantiles]
    if moments[0] == moments[1]:
        message = f"test_quantile={quantiles[1]} fall on the same time, {moments[0]}: choose"
        with pytest.raises(ValueError, match=message):
            global_temporal(make(users), *quantiles, targets=which)
        return
    split = global_temporal(make(users), *quantiles, targets=which)
    # Of both periods, validation and test: the targets, and the number without a history.
    event, train_end, found, cold = 0, [], ([], []), [0, 0]
    for user, times in enumerate(users):
        first = event
        periods = ([], [])
        train_end.append(first)
        for time in times:
            if time >= moments[1]:
                periods[1].append(event)
            elif time >= moments[0]:
                periods[0].append(event)
            else:
                train_end[-1] = event + 1
            event += 1
        for number, period in enumerate(periods):
            chosen = {"last": period[-1:], "first": period[:1], "all": period}[which]
            cold[number] += sum(target == first for target in chosen)
            found[number].extend((user, target) for target in chosen if target > first)
    assert split.train_end.tolist() == train_end
    assert (pairs(split.validation), pairs(split.test)) == found
    description = split.description
    assert [description[f"{part}_without_history"] for part in ("validation", "test")] == cold
    assert description["users_without_training_events"] == sum(
        all(time >= moments[0] for time in user) for user in users
    )
    assert [description["validation_from"], description["test_from"]] == moments
    assert description["targets"] == which
    json.dumps(description)


def test_global_temporal_never_divides_events_of_one_time():
    split = global_temporal(make([[0, 5, 5, 5], [5, 5, 9]]), 0.4, 0.9)
    assert split.train_end.tolist() == [1, 4]
    assert pairs(split.validation) == [(0, 3), (1, 5)]
    assert pairs(split.test) == [(1, 6)]


@pytest.mark.parametrize(
    ("quantiles", "which", "message"),
    [
        (
            (0.9, 0.8),
            "last",
            "validation_quantile is 0.9 and test_quantile is 0.8: the quantiles must satisfy "
            "0 < validation_quantile < test_quantile < 1",
        ),
        ((0.5, 1.0), "last", "test_quantile is 1.0: the quantiles must"),
        ((0.0, 0.5), "last", "validation_quantile is 0.0 .*quantiles must"),
        ((0.5, 0.9), "some", 'targets is \'some\': it must be "last", "first" or "all"'),
    ],
    ids=["decreasing quantiles", "test quantile 1", "validation quantile 0", "unknown targets"],
)
def test_global_temporal_refuses_arguments_out_of_range(quantiles, which, message):
    with pytest.raises(ValueError, match=message):
        global_temporal(make([[1, 2, 3, 4]]), *quantiles, targets=which)


def test_global_temporal_refuses_a_data_set_without_events():
    empty = make([[], []])
    assert len(leave_one_out(empty).test) == 0
    with pytest.raises(ValueError, match="holds no events: .* needs at least one"):
        global_temporal(empty, 0.5, 0.9)


def test_global_temporal_refuses_a_log_without_times():
    with pytest.raises(ValueError, match="the log has no times, .*use the split leave_one_out"):
        global_temporal(make([[0, 1, 2], [0, 1, 2]], order_only=True), 0.5, 0.9)


@settings(max_examples=60, deadline=None)
@given(
    users=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6
    ).filter(lambda users: sum(map(sum, users)) >= 1)
)
def test_events_of_folds_1_and_2_are_targets(users):
    """`users` holds each user's numbers of training, validation and test events."""
    folds = [fold for user in users for fold, count in enumerate(user) for _ in range(count)]
    split = from_folds(make([range(sum(user)) for user in users], folds))
    end, train_end, found, cold = 0, [], ([], []), [0, 0]
    for user, counts in enumerate(users):
        first = end
        train_end.append(end + counts[0])
        end += counts[0]
        for part in (0, 1):
            for target in range(end, end + counts[part + 1]):
                if target == first:
                    cold[part] += 1
                else:
                    found[part].append((user, target))
            end += counts[part + 1]
    assert split.train_end.tolist() == train_end
    assert (pairs(split.validation), pairs(split.test)) == found
    description = split.description
    assert [description[f"{part}_without_history"] for part in ("validation", "test")] == cold
    assert description["users_without_training_events"] == sum(user[0] == 0 for user in users)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([0, 1, 2, 0, 1, 0, 0], "user 0: event 5 has fold 0 after an event with fold 1"),
        ([0, 2, 1, 0, 0, 1, 2], "user ann: event 2 has fold 1 after an event with fold 2"),
    ],
    ids=["train after validation", "validation after test"],
)
def test_folds_that_decrease_are_refused_with_user_and_event(tmp_path, folds, message):
    """The log's ids of users, of which the second is "0"."""
    items = [f"i{item}" for item in range(7)]
    in_memory = make([range(3), range(4)], folds)
    dataset = write_dataset(tmp_path / "set", in_memory, ["ann", "0"], items)
    with pytest.raises(ValueError, match=message):
        from_folds(dataset)


def test_missing_folds_are_refused():
    with pytest.raises(ValueError, match="the data set has no folds: prepare it from a log with"):
        from_folds(make([range(3)]))
