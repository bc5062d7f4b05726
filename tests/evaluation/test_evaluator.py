"""The evaluator on a small log with known vectors, against a loop over targets in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import Targets, leave_one_out
from linseqrec.evaluation import queries
from linseqrec.evaluation.evaluator import Evaluator
from linseqrec.evaluation.metrics import rank_metrics
from linseqrec.evaluation.ranks import NonFiniteScoreError
from tests.evaluation.test_ranks import slow_ranks

ITEMS, WIDTH = 90, 6


def make_dataset(users=45, seed=0):
    """Histories of 3 to 80 events, many of them repeats, over integer-valued item vectors."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 81, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, ITEMS + 1, offsets[-1]).astype(np.int32)
    times = np.concatenate([np.sort(rng.integers(10**9, 10**9 + 10**6, n)) for n in lengths])
    return Dataset.from_arrays(items, times, offsets, num_items=ITEMS)


TABLE = np.random.default_rng(7).integers(-2, 3, (ITEMS + 1, WIDTH)).astype(np.float32)


@jax.jit
def encode(events):
    """A causal toy whose integer arithmetic is exact: it reads items, times and positions."""
    # XLA's own order of summation cannot matter here, so a batch's shape cannot either.
    vectors = jnp.asarray(TABLE)[events.items] * (events.segment_ids > 0)[..., None]
    clock = (events.timestamps % 3 + events.positions % 2)[..., None]
    return jnp.cumsum(vectors, axis=1) + clock


def slow_hidden(dataset, user, position, max_length):
    start = max(dataset.offsets[user], position - max_length)
    window = np.arange(start, position)
    total = TABLE[dataset.items[window]].astype(np.float64).sum(0)
    return total + (dataset.timestamps[position - 1] - dataset.origin) % 3 + (len(window) - 1) % 2


def slow_evaluation(dataset, targets, max_length):
    """Scores by user and the full seen lists, from a loop."""
    pairs = list(zip(targets.users, targets.positions, strict=True))
    hidden = np.stack([slow_hidden(dataset, u, p, max_length) for u, p in pairs])
    seen = [dataset.items[dataset.offsets[u] : p] for u, p in pairs]
    return hidden @ TABLE.T.astype(np.float64), seen


@pytest.mark.parametrize("max_length", [20, 100])
def test_both_filters_equal_the_definition(max_length):
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    scores, seen = slow_evaluation(dataset, targets, max_length)
    items = dataset.items[targets.positions]
    evaluation = Evaluator(
        dataset, targets, max_length=max_length, batch_size=8, filter_seen=("none", "all"), auc=True
    )
    result = evaluation.run(encode, TABLE)
    expected = {"none": slow_ranks(scores, items), "all": slow_ranks(scores, items, seen)}
    for name, ranks in expected.items():
        np.testing.assert_array_equal(result.ranks[name], ranks)
        means, errors = rank_metrics(ranks)
        assert result.standard_errors[name] == errors
        assert {key: result.metrics_by_filter[name][key] for key in means} == means
    assert (expected["none"] != expected["all"]).any()
    assert result.metrics is result.metrics_by_filter["none"]

    # AUCs, pair by pair.
    for name in expected:
        shares, own, others = [], [], []
        for row, item in enumerate(items):
            removed = set(seen[row]) if name == "all" else set()
            rest = [i for i in range(1, ITEMS + 1) if i != item and i not in removed]
            others.extend(scores[row, rest])
            own.append(scores[row, item])
            shares.append(_share([scores[row, item]], scores[row, rest]))
        assert result.metrics_by_filter[name]["GAUC"] == pytest.approx(np.mean(shares), abs=1e-12)
        assert result.metrics_by_filter[name]["AUC"] == pytest.approx(_share(own, others))


def _share(targets, others):
    difference = np.subtract.outer(np.asarray(targets), np.asarray(others))
    return np.mean((difference > 0) + (difference == 0) / 2)


def test_batch_size_padded_lengths_and_item_block_change_nothing():
    dataset = make_dataset()
    targets = leave_one_out(dataset).validation
    results = [
        Evaluator(
            dataset, targets, max_length=40, filter_seen=("all", "none"), auc=True, **settings
        ).run(encode, TABLE)
        for settings in (
            {"batch_size": 64, "padded_lengths": [40]},
            {"batch_size": 1, "padded_lengths": [5, 12, 40]},
            {"batch_size": 7, "item_block": 64},
        )
    ]
    for result in results[1:]:
        for name in ("none", "all"):
            np.testing.assert_array_equal(result.ranks[name], results[0].ranks[name])
        assert result.summary()["metrics"] == results[0].summary()["metrics"]
        assert result.summary()["buckets"] == results[0].summary()["buckets"]


def test_short_histories_are_read_in_narrow_batches_where_it_pays(monkeypatch):
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    widths = []

    def watch(events):
        widths.append(events.items.shape[1])
        return encode(events)

    for worth, expected in ((250_000, {80}), (100, {80, 40, 20, 10}), (500, {80, 40})):
        monkeypatch.setattr(queries, "SLOTS_WORTH_A_COMPILATION", worth)
        widths.clear()
        Evaluator(dataset, targets, max_length=80, batch_size=4).run(watch, TABLE)
        assert set(widths) == expected


def test_scores_at_hand_give_the_result_of_the_model_that_made_them():
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    scores, _ = slow_evaluation(dataset, targets, 30)
    row_of = {int(p): row for row, p in enumerate(targets.positions)}
    evaluation = Evaluator(
        dataset, targets, max_length=30, batch_size=16, filter_seen=("none", "all"), auc=True
    )
    by_model = evaluation.run(encode, TABLE)
    by_scores = evaluation.run_scores(lambda users, p: scores[[row_of[int(i)] for i in p]])
    assert by_scores.metrics_by_filter == by_model.metrics_by_filter
    assert by_scores.protocol == by_model.protocol | {"max_length": None}
    with pytest.raises(ValueError, match=r"\(16, 91\), got \(16, 90\)"):
        evaluation.run_scores(lambda users, positions: np.zeros((len(users), ITEMS)))


def test_a_seen_target_is_ranked_and_counted():
    # User 0 repeats the target, user 1 does not; both have seen the two best items.
    items = np.array([1, 2, 3, 3, 1, 2, 4, 3], np.int32)
    dataset = Dataset.from_arrays(items, np.arange(8), np.array([0, 4, 8]), num_items=5)
    targets = Targets(np.array([0, 1]), np.array([3, 7]))
    evaluation = Evaluator(dataset, targets, max_length=4, filter_seen=("none", "all"))
    scores = np.array([[99.0, 5, 4, 3, 2, 1]])
    result = evaluation.run_scores(lambda users, positions: scores.repeat(len(users), 0))
    np.testing.assert_array_equal(result.ranks["none"], [3, 3])
    np.testing.assert_array_equal(result.ranks["all"], [1, 1])
    np.testing.assert_array_equal(result.target_seen, [True, False])
    assert result.protocol["targets_among_seen"] == 1


def test_the_filter_reaches_beyond_the_window():
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    scores, seen = slow_evaluation(dataset, targets, 2)
    items = dataset.items[targets.positions]
    result = Evaluator(dataset, targets, max_length=2, filter_seen="all").run(encode, TABLE)
    np.testing.assert_array_equal(result.ranks["all"], slow_ranks(scores, items, seen))
    in_window = slow_ranks(scores, items, [row[-2:] for row in seen])
    assert (in_window != result.ranks["all"]).any()


def test_the_filter_holds_all_of_a_long_history():
    # 400 events; only the first is of item 1, the best of all.
    items = np.array([1, *[2] * 398, 3], np.int32)
    dataset = Dataset.from_arrays(items, np.arange(400), np.array([0, 400]), num_items=3)
    evaluation = Evaluator(
        dataset, leave_one_out(dataset).test, max_length=10, filter_seen=("none", "all")
    )
    scores = np.array([[0.0, 3, 2, 1]])
    result = evaluation.run_scores(lambda users, positions: scores.repeat(len(users), 0))
    assert (result.ranks["none"], result.ranks["all"]) == (3, 1)


def test_many_targets_of_one_user_each_have_their_own_history():
    dataset = make_dataset(users=3)
    positions = np.arange(dataset.offsets[1] + 1, dataset.offsets[2])
    targets = Targets(np.full(len(positions), 1), positions)
    scores, seen = slow_evaluation(dataset, targets, 15)
    result = Evaluator(dataset, targets, max_length=15, batch_size=9, filter_seen="all").run(
        encode, TABLE
    )
    np.testing.assert_array_equal(result.lengths, np.arange(1, len(positions) + 1))
    np.testing.assert_array_equal(
        result.ranks["all"], slow_ranks(scores, dataset.items[positions], seen)
    )
    assert (result.protocol["users"], result.protocol["targets"]) == (1, len(positions))


def test_a_model_that_diverged_is_refused_with_its_users():
    dataset = make_dataset()
    split = leave_one_out(dataset)
    bad = [3, 31]
    last_items = dataset.items[split.test.positions - 1]

    def diverged(events):
        last = events.segment_ids.sum(1) - 1
        item = events.items[np.arange(len(last)), last]
        rows = np.isin(item, last_items[bad])
        return jnp.where(jnp.asarray(rows)[:, None, None], jnp.nan, encode(events))

    named = split.test.users[np.isin(last_items, last_items[bad])]
    evaluation = Evaluator(dataset, split.test, max_length=50, batch_size=64)
    with pytest.raises(NonFiniteScoreError, match="for users") as caught:
        evaluation.run(diverged, TABLE)
    assert set(caught.value.rows) == set(named)


def test_coverage_and_popularity_are_those_of_the_lists():
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    scores, seen = slow_evaluation(dataset, targets, 25)
    counts = np.arange(ITEMS + 1) ** 2
    result = Evaluator(
        dataset, targets, max_length=25, filter_seen="all", list_size=5, item_counts=counts
    ).run(encode, TABLE)
    lists = []
    for row, position in enumerate(targets.positions):
        removed = set(seen[row].tolist()) - {int(dataset.items[position])}
        kept = [item for item in range(1, ITEMS + 1) if item not in removed]
        lists.append(sorted(kept, key=lambda item: (-scores[row, item], item))[:5])  # noqa: B023
    shown = np.array(lists)
    assert result.metrics["coverage@5"] == len(set(shown.ravel().tolist())) / ITEMS
    assert result.metrics["popularity@5"] == pytest.approx(np.mean(shown.astype(float) ** 2))


def test_the_summary_states_the_protocol_and_the_dump_recomputes_it(tmp_path):
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    evaluation = Evaluator(
        dataset,
        targets,
        max_length=33,
        filter_seen=("none", "all"),
        ties="pessimistic",
        split="test",
        bucket_edges=(0, 10, 40),
    )
    result = evaluation.run(encode, TABLE)
    summary = json.loads(json.dumps(result.summary()))
    assert summary["protocol"] == {
        "split": "test",
        "filter_seen": ["none", "all"],
        "ties": "pessimistic",
        "candidates": "all items",
        "request_time": "hidden",
        "max_length": 33,
        "num_items": ITEMS,
        "targets": 45,
        "users": 45,
        "targets_among_seen": int(result.target_seen.sum()),
        "bucket_edges": [0, 10, 40],
    }
    assert [b["targets"] for b in summary["buckets"]["all"]] == [
        int(((low <= result.lengths) & (result.lengths < high)).sum())
        for low, high in ((0, 10), (10, 40), (40, 99))
    ]
    path = result.save(tmp_path / "run" / "test.npz")
    assert [p.name for p in path.parent.iterdir()] == ["test.npz"]
    with np.load(path) as dump:
        assert json.loads(str(dump["protocol"])) == summary["protocol"]
        for name in ("none", "all"):
            means, _ = rank_metrics(dump[f"rank_{name}"])
            assert {key: summary["metrics"][name][key] for key in means} == means
        np.testing.assert_array_equal(dump["user"], targets.users)
        np.testing.assert_array_equal(dump["target"], dataset.items[targets.positions])
        np.testing.assert_array_equal(
            dump["length"], targets.positions - dataset.offsets[targets.users]
        )
        np.testing.assert_array_equal(dump["target_seen"], result.target_seen)
    with pytest.raises(ValueError, match="npz file"):
        result.save(tmp_path / "test.csv")


def test_settings_that_make_no_sense_are_refused():
    dataset = make_dataset(users=4)
    targets = leave_one_out(dataset).test
    none = Targets(targets.users[:0], targets.positions[:0])
    first = Targets(np.array([2]), dataset.offsets[[2]])
    for given, settings, message in (
        (none, {"split": "test"}, "the test split holds no targets"),
        (first, {}, "1 of 1 targets have no event before them"),
        (targets, {"max_length": 0}, "must be positive"),
        (targets, {"filter_seen": "some"}, "filter_seen must be"),
        (targets, {"filter_seen": ()}, "filter_seen must be"),
        (targets, {"padded_lengths": [4, 8]}, "end at max_length=10"),
    ):
        with pytest.raises(ValueError, match=message):
            Evaluator(dataset, given, **{"max_length": 10} | settings)
    with pytest.raises(ValueError, match="90 rows, the catalogue of 90 items needs 91"):
        Evaluator(dataset, targets, max_length=10).run(encode, TABLE[1:])
