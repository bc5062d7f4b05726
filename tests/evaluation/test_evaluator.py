"""The evaluator's results on a small log equal a loop over targets in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import Targets, leave_one_out
from linseqrec.data.writing import write_dataset
from linseqrec.evaluation import queries
from linseqrec.evaluation.baselines import PersonalMarkov
from linseqrec.evaluation.evaluator import Evaluator
from linseqrec.evaluation.metrics import rank_metrics
from linseqrec.evaluation.ranks import NonFiniteScoreError
from tests.evaluation.test_ranks import slow_ranks

ITEMS, WIDTH = 90, 6


def make_dataset(users=45, seed=0):
    """Histories of 3 to 80 events, of which many repeat an item."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 81, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, ITEMS + 1, offsets[-1]).astype(np.int32)
    times = np.concatenate([np.sort(rng.integers(10**9, 10**9 + 10**6, n)) for n in lengths])
    return Dataset.from_arrays(items, times, offsets, num_items=ITEMS)


def with_names(dataset, folder):
    """The data set with user ids that are other users' numbers: the last user is "0"."""
    users = [str(user) for user in reversed(range(dataset.num_users))]
    return write_dataset(folder, dataset, users, [f"i{item}" for item in range(ITEMS)])


TABLE = np.random.default_rng(7).integers(-2, 3, (ITEMS + 1, WIDTH)).astype(np.float32)


@jax.jit
def encode(events):
    """A causal toy model that reads items, times and positions.

    Its vectors are integers, so float32 sums are exact in any order and a batch's shape does not
    change a result.
    """
    vectors = jnp.asarray(TABLE)[events.items] * (events.segment_ids > 0)[..., None]
    clock = (events.timestamps % 3 + events.positions % 2)[..., None]
    return jnp.cumsum(vectors, axis=1) + clock


def slow_hidden(dataset, user, position, max_length):
    start = max(dataset.offsets[user], position - max_length)
    window = np.arange(start, position)
    total = TABLE[dataset.items[window]].astype(np.float64).sum(0)
    return total + (dataset.timestamps[position - 1] - dataset.origin) % 3 + (len(window) - 1) % 2


def slow_evaluation(dataset, targets, max_length):
    """Scores [M, N + 1] of the toy model in float64, and each target's seen items, from loops."""
    pairs = list(zip(targets.users, targets.positions, strict=True))
    hidden = np.stack([slow_hidden(dataset, u, p, max_length) for u, p in pairs])
    seen = [dataset.items[dataset.offsets[u] : p] for u, p in pairs]
    return hidden @ TABLE.T.astype(np.float64), seen


@pytest.mark.parametrize("max_length", [20, 100])
def test_ranks_and_metrics_equal_the_definition_under_both_filters(max_length):
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

    for name in expected:
        group_aucs, target_scores, all_others = [], [], []
        for row, item in enumerate(items):
            removed = set(seen[row]) if name == "all" else set()
            # A seen target loses to every candidate.
            own = -np.inf if item in removed else scores[row, item]
            others = [i for i in range(1, ITEMS + 1) if i != item and i not in removed]
            all_others.extend(scores[row, others])
            target_scores.append(own)
            group_aucs.append(_slow_auc([own], scores[row, others]))
        found = result.metrics_by_filter[name]
        assert found["GAUC"] == pytest.approx(np.mean(group_aucs), abs=1e-12)
        assert found["AUC"] == pytest.approx(_slow_auc(target_scores, all_others))


def _slow_auc(targets, others):
    """The share of pairs in which the target scores higher; a tie counts one half."""
    difference = np.subtract.outer(np.asarray(targets), np.asarray(others))
    return np.mean((difference > 0) + (difference == 0) / 2)


def test_batch_size_padded_lengths_and_item_block_do_not_change_results():
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


@pytest.mark.parametrize(
    ("slots_worth_a_compilation", "expected"),
    [(250_000, {80}), (500, {80, 40}), (100, {80, 40, 20, 10})],
)
def test_narrow_batches_are_used_if_they_save_enough_slots(
    monkeypatch, slots_worth_a_compilation, expected
):
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    widths = []

    def record_width(events):
        widths.append(events.items.shape[1])
        return encode(events)

    monkeypatch.setattr(queries, "SLOTS_WORTH_A_COMPILATION", slots_worth_a_compilation)
    Evaluator(dataset, targets, max_length=80, batch_size=4).run(record_width, TABLE)
    assert set(widths) == expected


def test_a_model_and_the_function_of_its_scores_have_the_same_result():
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


def test_a_seen_target_is_a_miss_under_the_filter_and_is_counted():
    # User 0 has seen the target, user 1 has not. Both have seen the two best items.
    items = np.array([1, 2, 3, 3, 1, 2, 4, 3], np.int32)
    dataset = Dataset.from_arrays(items, np.arange(8), np.array([0, 4, 8]), num_items=5)
    targets = Targets(np.array([0, 1]), np.array([3, 7]))
    evaluation = Evaluator(dataset, targets, max_length=4, filter_seen=("none", "all"))
    scores = np.array([[99.0, 5, 4, 3, 2, 1]])
    result = evaluation.run_scores(lambda users, positions: scores.repeat(len(users), 0))
    np.testing.assert_array_equal(result.ranks["none"], [3, 3])
    np.testing.assert_array_equal(result.ranks["all"], [np.inf, 1])
    np.testing.assert_array_equal(result.target_seen, [True, False])
    assert result.protocol["targets_among_seen"] == 1
    # The catalogue has fewer items than the largest cut-off.
    assert result.metrics_by_filter["all"]["HR@500"] == 0.5


def test_the_filter_removes_items_from_before_the_model_window():
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    scores, seen = slow_evaluation(dataset, targets, 2)
    items = dataset.items[targets.positions]
    result = Evaluator(dataset, targets, max_length=2, filter_seen="all").run(encode, TABLE)
    np.testing.assert_array_equal(result.ranks["all"], slow_ranks(scores, items, seen))
    in_window = slow_ranks(scores, items, [row[-2:] for row in seen])
    assert (in_window != result.ranks["all"]).any()


def test_the_filter_removes_the_first_item_of_a_long_history():
    # Of 400 events only the first is of item 1, which scores best.
    items = np.array([1, *[2] * 398, 3], np.int32)
    dataset = Dataset.from_arrays(items, np.arange(400), np.array([0, 400]), num_items=3)
    evaluation = Evaluator(
        dataset, leave_one_out(dataset).test, max_length=10, filter_seen=("none", "all")
    )
    scores = np.array([[0.0, 3, 2, 1]])
    result = evaluation.run_scores(lambda users, positions: scores.repeat(len(users), 0))
    assert (result.ranks["none"], result.ranks["all"]) == (3, 1)


def make_long_dataset():
    """40 short histories, and between them one of 3,000 events and one of 700."""
    rng = np.random.default_rng(4)
    lengths = rng.integers(3, 30, 42)
    lengths[[7, 30]] = 3_000, 700
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, ITEMS + 1, offsets[-1]).astype(np.int32)
    # 60 items only: else the user of the long history would have seen the whole catalogue.
    items[offsets[7] : offsets[8] - 1] %= 60
    items[offsets[7] : offsets[8] - 1] += 1
    return Dataset.from_arrays(items, np.arange(offsets[-1]), offsets, num_items=ITEMS)


@pytest.mark.parametrize("scorer", ["model", "function", "baseline"])
def test_one_long_history_widens_no_batch(monkeypatch, scorer):
    dataset = make_long_dataset()
    targets = leave_one_out(dataset).test
    table = np.random.default_rng(5).normal(size=TABLE.shape).astype(np.float32)
    evaluation = Evaluator(
        dataset, targets, max_length=20, batch_size=16, filter_seen=("none", "all"), auc=True
    )
    baseline = PersonalMarkov(dataset, leave_one_out(dataset))
    scores = {"baseline": baseline, "function": lambda *arguments: baseline(*arguments)}

    def run():
        if scorer == "model":
            return evaluation.run(encode, table)
        return evaluation.run_scores(scores[scorer])

    expected, sizes = run(), []
    items_before, events_before = queries.items_before, queries.events_before

    def padded(*arguments):
        seen = items_before(*arguments)
        sizes.append(seen.shape)
        return seen

    def counted(starts, ends):
        sizes.append((len(starts), max(1, int((ends - starts).sum()) // len(starts))))
        return events_before(starts, ends)

    monkeypatch.setattr(queries, "items_before", padded)
    monkeypatch.setattr(queries, "events_before", counted)
    monkeypatch.setattr("linseqrec.evaluation.baselines.events_before", counted)
    monkeypatch.setattr(queries, "NUMBERS_AT_ONCE", 2_000)
    result = run()
    assert max(rows for rows, _ in sizes) > 1
    assert all(rows == 1 or rows * width <= 2_000 for rows, width in sizes), sizes
    for name in ("none", "all"):
        np.testing.assert_array_equal(result.ranks[name], expected.ranks[name])
    assert result.metrics_by_filter == expected.metrics_by_filter


def test_each_target_of_one_user_has_its_own_history():
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


def test_nan_scores_are_an_error_that_names_the_users(tmp_path):
    dataset = with_names(make_dataset(), tmp_path / "set")
    split = leave_one_out(dataset)
    bad_targets = [3, 31]
    last_items = dataset.items[split.test.positions - 1]

    def diverged(events):
        last = events.segment_ids.sum(1) - 1
        item = events.items[np.arange(len(last)), last]
        rows = np.isin(item, last_items[bad_targets])
        return jnp.where(jnp.asarray(rows)[:, None, None], jnp.nan, encode(events))

    bad_users = split.test.users[np.isin(last_items, last_items[bad_targets])]
    evaluation = Evaluator(dataset, split.test, max_length=50, batch_size=64)
    with pytest.raises(NonFiniteScoreError, match="for users") as caught:
        evaluation.run(diverged, TABLE)
    assert set(caught.value.rows) == set(dataset.user_ids()[bad_users])


def test_coverage_and_popularity_equal_the_definition():
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    scores, seen = slow_evaluation(dataset, targets, 25)
    counts = np.arange(ITEMS + 1) ** 2
    result = Evaluator(
        dataset, targets, max_length=25, filter_seen="all", list_size=5, item_counts=counts
    ).run(encode, TABLE)
    lists = []
    for row in range(len(targets)):
        removed = set(seen[row].tolist())
        best_first = np.argsort(-scores[row, 1:], kind="stable") + 1
        lists.append([item for item in best_first if item not in removed][:5])
    recommended = np.array(lists)
    assert result.metrics["coverage@5"] == len(set(recommended.ravel().tolist())) / ITEMS
    assert result.metrics["popularity@5"] == pytest.approx(np.mean(recommended.astype(float) ** 2))


def test_the_summary_has_the_protocol_and_the_saved_ranks_give_its_metrics(tmp_path):
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
        "seen_targets": "missed",
        "bucket_edges": [0, 10, 40],
    }
    assert [b["targets"] for b in summary["buckets"]["all"]] == [
        int(((low <= result.lengths) & (result.lengths < high)).sum())
        for low, high in ((0, 10), (10, 40), (40, 99))
    ]
    path = result.save(tmp_path / "run" / "test.npz")
    assert [p.name for p in path.parent.iterdir()] == ["test.npz"]
    with np.load(path) as file:
        assert json.loads(str(file["protocol"])) == summary["protocol"]
        for name in ("none", "all"):
            means, _ = rank_metrics(file[f"rank_{name}"])
            assert {key: summary["metrics"][name][key] for key in means} == means
        np.testing.assert_array_equal(file["user"], targets.users)
        np.testing.assert_array_equal(file["target"], dataset.items[targets.positions])
        np.testing.assert_array_equal(
            file["length"], targets.positions - dataset.offsets[targets.users]
        )
        np.testing.assert_array_equal(file["target_seen"], result.target_seen)
    with pytest.raises(ValueError, match="npz file"):
        result.save(tmp_path / "test.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "must be positive"),
        ({"filter_seen": "some"}, "filter_seen must be"),
        ({"filter_seen": ()}, "filter_seen must be"),
        ({"padded_lengths": [4, 8]}, "end at max_length=10"),
    ],
    ids=["no length", "unknown filter", "no filter", "other last width"],
)
def test_invalid_settings_are_errors(settings, message):
    dataset = make_dataset(users=4)
    with pytest.raises(ValueError, match=message):
        Evaluator(dataset, leave_one_out(dataset).test, **{"max_length": 10} | settings)


def test_a_split_without_targets_or_with_a_first_event_is_an_error():
    dataset = make_dataset(users=4)
    targets = leave_one_out(dataset).test
    no_targets = Targets(targets.users[:0], targets.positions[:0])
    with pytest.raises(ValueError, match="the test split has no targets"):
        Evaluator(dataset, no_targets, max_length=10, split="test")
    first_event = Targets(np.array([2]), dataset.offsets[[2]])
    with pytest.raises(ValueError, match="1 of 1 targets have no event before them"):
        Evaluator(dataset, first_event, max_length=10)


def test_a_table_of_another_catalogue_is_an_error():
    dataset = make_dataset(users=4)
    evaluation = Evaluator(dataset, leave_one_out(dataset).test, max_length=10)
    with pytest.raises(ValueError, match="90 rows, but the catalogue of 90 items needs 91"):
        evaluation.run(encode, TABLE[1:])
