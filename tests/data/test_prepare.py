"""`prepare` against a plain-Python reference, its filters, and its errors."""

import collections
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import narwhals as nw
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data import filters
from linseqrec.data.card import differing_data
from linseqrec.data.dataset import Dataset, DatasetError
from linseqrec.data.prepare import prepare
from linseqrec.data.readers import LogError
from tests.real_logs import real_log


def histories(dataset):
    """The [(item id, seconds)] of each user id, in the stored order."""
    items, users = dataset.item_ids(), dataset.user_ids()
    return {
        str(user): [
            (str(items[item]), int(time))
            for item, time in zip(
                dataset.items[begin:end], dataset.timestamps[begin:end], strict=True
            )
        ]
        for user, begin, end in zip(users, dataset.offsets, dataset.offsets[1:], strict=False)
    }


def reference_core(rows, user_core, item_core):
    """The rows after dropping events of users and items with too few events, one by one."""
    rows = list(rows)
    while True:
        users = collections.Counter(row[0] for row in rows)
        items = collections.Counter(row[1] for row in rows)
        too_rare = [row for row in rows if users[row[0]] < user_core or items[row[1]] < item_core]
        if not too_rare:
            return rows
        rows.remove(too_rare[0])


def reference_histories(rows, user_core=1, item_core=1, duplicates="keep"):
    """The [(item, seconds)] of each user, by sorting Python lists; rows are (user, item, time)."""
    if duplicates != "keep":
        number_to_keep = {}
        for number, row in enumerate(rows):
            if duplicates == "last" or row not in number_to_keep:
                number_to_keep[row] = number
        rows = [row for number, row in enumerate(rows) if number_to_keep[row] == number]
    rows = reference_core(rows, user_core, item_core)
    histories_of = collections.defaultdict(list)
    for user, item, time in sorted(rows, key=lambda row: row[2]):  # a stable sort
        histories_of[str(user)].append((str(item), int(time)))
    return dict(histories_of)


ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60
)


def frame_of(rows):
    return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


@settings(max_examples=40, deadline=None)
@given(
    rows=ROWS,
    cores=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    duplicates=st.sampled_from(["keep", "first", "last"]),
)
def test_prepare_equals_the_reference(tmp_path_factory, rows, cores, duplicates):
    folder = tmp_path_factory.mktemp("prepared") / "set"
    expected = reference_histories(rows, *cores, duplicates)
    arguments = {"user_core": cores[0], "item_core": cores[1], "duplicates": duplicates}
    if not expected:
        with pytest.raises(LogError, match="no events are left of .*Choose a weaker filter"):
            prepare(frame_of(rows), folder, **arguments)
        assert not any(folder.parent.iterdir())
        return
    dataset = prepare(frame_of(rows), folder, **arguments)
    assert histories(dataset) == expected
    assert list(dataset.user_ids()) == sorted(expected)  # ids of one digit sort alike as text
    assert sorted(set(dataset.items)) == list(range(1, dataset.num_items + 1))
    Dataset.open(folder, verify=True)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, user_core=st.integers(1, 4), item_core=st.integers(1, 4), data=st.data())
def test_the_core_is_a_fixed_point_and_does_not_depend_on_the_order(
    rows, user_core, item_core, data
):
    rows = [(user, item, number) for number, (user, item, _) in enumerate(rows)]

    def core(rows):
        frame = pl.LazyFrame(rows, schema=["user", "item", "row"], orient="row")
        result = filters.core(nw.from_native(frame), user_core, item_core)
        return set(filters.collect(result).rows())

    remaining = core(rows)
    assert remaining == set(reference_core(rows, user_core, item_core))
    assert core(data.draw(st.permutations(rows))) == remaining
    assert core(sorted(remaining)) == remaining


def test_the_core_repeats_until_no_event_is_dropped(tmp_path):
    """Each round drops one end of a chain of users and items; the ring must remain."""
    rows = [(number + step, number, 0) for number in range(12) for step in (0, 1)]
    ring = [(100 + (number + step) % 4, 200 + number, 0) for number in range(4) for step in (0, 1)]
    dataset = prepare(frame_of(rows + ring), tmp_path / "set", user_core=2, item_core=2)
    assert sorted(histories(dataset)) == ["100", "101", "102", "103"]


def test_a_random_tied_order_moves_tied_events_only(tmp_path):
    """Baskets of twenty products in ascending order, as many logs write them."""
    rows = [
        (user, item, time)
        for time in range(30)
        for user in range(3)
        for item in range(100 * (time % 4), 100 * (time % 4) + 20)
    ]
    logged, drawn, again = (
        prepare(frame_of(rows), tmp_path / name, tied_order=order)
        for name, order in (("logged", "log"), ("drawn", "random"), ("again", "random"))
    )
    for before, after in zip(histories(logged).values(), histories(drawn).values(), strict=True):
        assert sorted(before, key=lambda event: event[1]) == before != after
        assert [time for _, time in after] == [time for _, time in before]
        for start in range(0, len(before), 20):
            assert set(after[start : start + 20]) == set(before[start : start + 20])
    np.testing.assert_array_equal(drawn.items, again.items)
    assert logged.card["ties"]["ascending_rate"] == 1
    assert 0.45 < drawn.card["ties"]["ascending_rate"] < 0.55
    assert drawn.card["reader"]["tied_order"] == "random"


def test_a_random_tied_order_keeps_a_split_of_the_log_in_order(tmp_path):
    folds = ("train", "train", "validation", "test", "test")
    rows = [(user, item, 5, fold) for user in range(9) for item, fold in enumerate(folds)]
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp", "fold"], orient="row")
    dataset = prepare(frame, tmp_path / "set", columns={"fold": "fold"}, tied_order="random")
    by_user = np.asarray(dataset.folds).reshape(9, 5)
    np.testing.assert_array_equal(np.diff(by_user) >= 0, True)
    firsts = np.asarray(dataset.items).reshape(9, 5)[:, 0]
    assert len(set(firsts)) == 2


def test_ids_are_numbered_by_length_then_text(tmp_path):
    rows = [("b", "10", 1), ("b", "9", 2), ("a", "x", 3), ("aa", "9", 1), ("a", "é", 4)]
    dataset = prepare(frame_of(rows), tmp_path / "set")
    assert list(dataset.user_ids()) == ["a", "b", "aa"]
    assert list(dataset.item_ids()) == ["", "9", "x", "é", "10"]
    assert dataset.items.tolist() == [2, 3, 4, 1, 1]


def test_events_sort_by_milliseconds_before_times_become_seconds(tmp_path):
    path = tmp_path / "log_standard.csv"
    path.write_text(
        "user_id,video_id,time_ms\n0,1,1649400000900\n0,2,1649400000100\n0,3,1649399999999\n"
    )
    dataset = prepare(path, tmp_path / "set")
    assert histories(dataset) == {"0": [("3", 1649399999), ("2", 1649400000), ("1", 1649400000)]}
    assert dataset.card["reader"]["time_unit"] == "ms"
    assert "milliseconds" in dataset.card["reader"]["times"]


def test_the_time_unit_is_detected_from_the_size_of_the_values(tmp_path):
    for name, ticks in (("s", 1), ("ms", 10**3), ("us", 10**6)):
        rows = [(1, 1, 1_600_000_000 * ticks), (1, 2, 1_600_000_001 * ticks)]
        dataset = prepare(frame_of(rows), tmp_path / name)
        assert dataset.timestamps.tolist() == [1_600_000_000, 1_600_000_001]
        assert dataset.card["reader"]["time_unit"] == name


def test_the_timestamps_of_a_log_without_times_are_positions(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("2 5\n1 7\n2 5\n1 6\n2 4\n")
    dataset = prepare(path, tmp_path / "set", item_core=1)
    assert histories(dataset) == {
        "1": [("7", 0), ("6", 1)],
        "2": [("5", 0), ("5", 1), ("4", 2)],
    }
    assert dataset.card["time"]["order_only"]
    assert "order only" in dataset.card["reader"]["times"]
    assert dataset.card["repeats"]["events"] == 1
    with pytest.raises(LogError, match="no events are tied: leave --tied_order=random out"):
        prepare(path, tmp_path / "other", tied_order="random")
    for arguments in ({"duplicates": "first"}, {"time_range": (0, 9)}):
        with pytest.raises(LogError, match="the log has no times, .*Leave both out"):
            prepare(path, tmp_path / "other", **arguments)


def test_folds_stay_with_their_events(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user,item,timestamp,part\nb,1,3,test\nb,2,2,validation\nb,3,1,train\na,1,9,train\n"
    )
    dataset = prepare(path, tmp_path / "set", columns={"fold": "part"})
    assert dataset.folds.tolist() == [0, 0, 1, 2] and dataset.folds.dtype == np.int8
    assert dataset.card["folds"] == {"train": 2, "validation": 1, "test": 1}
    assert prepare(path, tmp_path / "without").folds is None


def test_the_card_counts_events_before_and_after_each_filter(tmp_path):
    rows = [
        (1, 1, 100, 5.0), (1, 1, 100, 4.0), (1, 2, 101, 5.0), (2, 1, 102, 5.0), (2, 2, 103, 2.0),
        (2, 2, 104, 5.0), (3, 1, 105, 5.0), (1, 3, 999, 5.0),
    ]  # fmt: skip
    frame = pl.DataFrame(rows, schema=["user", "item", "time", "stars"], orient="row")
    dataset = prepare(
        frame,
        tmp_path / "set",
        time_unit="s",
        time_range=(0, 500),
        min_rating=4,
        duplicates="last",
        user_core=2,
        item_core=2,
    )
    card = json.loads((tmp_path / "set" / "card.json").read_text())
    assert card == dataset.card
    assert card["read"] == {"users": 3, "items": 3, "events": 8}
    steps = [(step["filter"], step["after"]) for step in card["filters"]]
    assert steps == [
        ("0 <= time < 500", {"users": 3, "items": 2, "events": 7}),
        ("rating >= 4", {"users": 3, "items": 2, "events": 6}),
        ("last of events equal in user, item and time", {"users": 3, "items": 2, "events": 5}),
        ("core: users >= 2 events, items >= 2", {"users": 2, "items": 2, "events": 4}),
    ]
    before = [card["read"], *(after for _, after in steps)]
    assert [step["before"] for step in card["filters"]] == before[:-1]
    assert card["counts"] == steps[-1][1]
    assert histories(dataset) == {"1": [("1", 100), ("2", 101)], "2": [("1", 102), ("2", 104)]}


def test_behaviours_choose_events(tmp_path):
    """Of formats with such a column, and of one that the caller names: text, JSON and frames."""
    taobao = tmp_path / "UserBehavior.csv"
    rows = [(1, 7, 3, "pv", 90), (1, 8, 3, "buy", 91), (2, 8, 3, "cart", 92), (2, 9, 3, "buy", 93)]
    taobao.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    bought = {"1": [("8", 91)], "2": [("9", 93)]}
    dataset = prepare(taobao, tmp_path / "bought", behaviours=["buy"])
    assert histories(dataset) == bought
    (step,) = dataset.card["filters"]
    assert (step["filter"], step["after"]["events"]) == ("behaviour buy", 2)
    both = prepare(taobao, tmp_path / "both", behaviours=["buy", "cart"])
    assert histories(both) == bought | {"2": [("8", 92), ("9", 93)]}
    assert prepare(taobao, tmp_path / "all").num_events == 4
    columns = ["user", "item", "at", "done"]
    frame = pl.DataFrame(
        [(user, item, time, int(kind == "buy")) for user, item, _, kind, time in rows],
        schema=columns,
        orient="row",
    )
    frame.write_ndjson(tmp_path / "log.json")
    frame.write_parquet(tmp_path / "log.parquet")
    for log in (frame, tmp_path / "log.json", tmp_path / "log.parquet"):
        folder = tmp_path / f"of {getattr(log, 'suffix', 'frame')}"
        roles = {"timestamp": "at", "behaviour": "done"}
        dataset = prepare(log, folder, columns=roles, time_unit="s", behaviours=["1"])
        assert histories(dataset) == bought


def test_first_and_last_keep_different_duplicates(tmp_path):
    """The fold of the event, and its place among events of equal time, tell which one stays."""
    rows = [(1, 5, 10, "train"), (1, 6, 10, "train"), (1, 5, 10, "test")]
    frame = pl.DataFrame(rows, schema=["user", "item", "time", "part"], orient="row")
    for policy, items, folds in (("first", [1, 2], [0, 0]), ("last", [2, 1], [0, 2])):
        dataset = prepare(frame, tmp_path / policy, columns={"fold": "part"}, duplicates=policy)
        assert (dataset.items.tolist(), dataset.folds.tolist()) == (items, folds)
    message = "row 2: an earlier event has the same user, item and time, and --duplicates is error"
    with pytest.raises(LogError, match=message):
        prepare(frame, tmp_path / "error", duplicates="error")


def test_differing_data_ignores_the_log_file(tmp_path):
    rows = "u,i,9\nu,j,7\nv,i,8\n"
    logs = {"plain.csv": rows, "compressed.csv.gz": rows, "other.csv": rows.replace("v", "w")}
    cards_of = []
    for name, text in logs.items():
        data = ("user,item,timestamp\n" + text).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        cards_of.append(prepare(tmp_path / name, tmp_path / "sets" / name).card)
    plain, compressed, other = cards_of
    assert plain["sha256"]["source"] != compressed["sha256"]["source"]
    assert differing_data(plain, compressed) == []
    assert differing_data(plain, other) == differing_data(other, plain) == ["user_ids"]
    # The ids cannot be compared with an older card, which has no digests of ids.
    without_ids = {name: digest for name, digest in other["sha256"].items() if "ids" not in name}
    assert differing_data(plain, other | {"sha256": without_ids}) == []
    changed = plain["sha256"] | {"timestamps": "0", "folds": "1"}
    assert differing_data(plain, plain | {"sha256": changed}) == ["timestamps", "folds"]


def test_every_kind_of_frame_gives_the_same_data_set(tmp_path):
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    table = pandas.DataFrame(
        {
            "user": generator.integers(0, 12, 200),
            "item": [f"i{item}" for item in generator.integers(0, 30, 200)],
            "timestamp": generator.integers(1000, 1100, 200),
            "rating": generator.integers(1, 6, 200),
            "number": np.arange(200),
        }
    )
    arguments = {"min_rating": 2, "user_core": 5, "item_core": 4, "duplicates": "last"}
    table.to_csv(tmp_path / "log.csv", index=False)
    expected = prepare(tmp_path / "log.csv", tmp_path / "file", **arguments)
    assert expected.num_events > 100 and expected.card["filters"][-1]["after"]["items"] < 30
    relation = duckdb.from_df(table)
    dated = table.assign(timestamp=pandas.to_datetime(table["timestamp"], unit="s", utc=True))
    polars = pl.DataFrame({name: table[name].to_list() for name in table})
    frames = {
        "pandas": table,
        "pandas-dated": dated,
        "pandas-shuffled-index": table.set_index(table.index[::-1]),
        "polars": polars,
        "polars-lazy": polars.lazy(),
        "polars-category": polars.with_columns(pl.col("item").cast(pl.Categorical)),
        "pyarrow": polars.to_arrow(),
        "duckdb": relation,
        "duckdb-dated": duckdb.from_df(dated),
    }
    for name, frame in frames.items():
        dataset = prepare(frame, tmp_path / name, **arguments)
        assert dataset.card["sha256"].items() <= expected.card["sha256"].items(), name
        assert dataset.card["filters"] == expected.card["filters"], name
    # With a row column, the whole preparation runs in the frame's own engine.
    for name, frame in (("numbers", table), ("dates", dated)):
        shuffled = duckdb.from_df(frame.sample(frac=1, random_state=0))
        columns = {"row": "number"}
        dataset = prepare(shuffled, tmp_path / f"sql-{name}", columns=columns, **arguments)
        assert dataset.card["sha256"].items() <= expected.card["sha256"].items(), name


EVENT = '{"user": "u", "item": "i", "ts": 1}\n'
GOOD = "user,item,timestamp\nu,i,1000\nv,j,1001\n"
NOW = 1_600_000_000

# File name, content, arguments, and the error message.
BAD_LOGS = {
    "missing column": (
        "a.csv",
        "user,item,rating\nu,i,1\n",
        {},
        "no column for the timestamp among user, item, rating",
    ),
    "missing named column": (
        "a.csv",
        GOOD,
        {"columns": {"item": "sku"}},
        "no column 'sku' for the item among user, item, timestamp. Name it: --columns=item=COL",
    ),
    "too few fields": (
        "a.csv",
        GOOD + "u,i\n",
        {},
        "line 4: the line has 2 fields: it must have 3",
    ),
    "too many fields": (
        "a.csv",
        GOOD + "u,i,3,\n" + GOOD,
        {},
        "line 4: the line has 4 fields: it must have 3",
    ),
    "too few fields with ::": (
        "ratings.dat",
        "1::2::3::4\n" * 3 + "1::2::3\n",
        {},
        "line 4: the line has 3 fields: it must have 4",
    ),
    "single colon": (
        "ratings.dat",
        "1::2::3::4\n1::2:3::4\n",
        {"format": "movielens-dat"},
        "line 2: the line has 3 fields",
    ),
    "part of ::": (
        "ratings.dat",
        "1::2::3::4\n1::2::3::4:5\n",
        {"format": "movielens-dat"},
        "line 2: the line has ':' outside a separator '::'. Choose a separator that no field has",
    ),
    "a single id": ("a.txt", "1 2\n1\n", {}, "line 2: the line has 1 fields: it must have 2"),
    "blank line": ("a.csv", GOOD + "\nu,i,3\n", {}, "line 4: the line is blank. Delete it"),
    "non-numeric time": (
        "a.csv",
        GOOD + "u,i,soon\n",
        {},
        "line 4: the time 'soon' cannot be read. A time is a number of seconds, milliseconds",
    ),
    "empty time": (
        "a.csv",
        GOOD + "u,i,\n",
        {},
        "line 4: the time is missing. 1 of 3 events have no time. To drop them, set --drop_",
    ),
    "NaN time": ("a.csv", GOOD + "u,i,nan\n", {}, "line 4: the time is missing"),
    "infinite time": ("a.csv", GOOD + "u,i,inf\n", {}, "line 4: the time 'inf' cannot be read"),
    "negative time": (
        "u.data",
        "1\t2\t3\t4\n1\t2\t3\t-4\n",
        {},
        "line 2: the time -4 is negative, or before 1970. To drop such events, set --time_range="
        "0,END",
    ),
    "no ISO time": (
        "a.txt",
        "0\t2010-10-19T23:55:27Z\t1\t1\tp\n0\tyesterday\t1\t1\tp\n",
        {"format": "checkins"},
        "line 2: the time 'yesterday' cannot be read. A time is a number",
    ),
    "milliseconds after seconds": (
        "a.csv",
        GOOD + f"u,i,{NOW}000\n",
        {},
        f"line 4: the time {NOW}000 reads as milliseconds, but the first time of the log reads as "
        "seconds",
    ),
    "seconds after milliseconds": (
        "log_a.csv",
        f"user_id,video_id,time_ms\n1,2,{NOW}000\n1,2,{NOW}\n",
        {},
        f"line 3: the time {NOW} reads as seconds, but the first time of the log reads as "
        "milliseconds",
    ),
    "milliseconds for seconds": (
        "ratings.csv",
        f"userId,movieId,rating,timestamp\n1,2,3,{NOW}000\n",
        {},
        f"line 2: the time {NOW}000 reads as milliseconds, but the time unit is s (seconds). "
        "Set --time_unit=ms",
    ),
    "beyond int32": (
        "a.csv",
        "user,item,timestamp\nu,i,7\nv,j,4000000000\n",
        {},
        "line 3: the times span 3999999993 s, from 7 to 4000000000; at most 2147483647 s",
    ),
    "empty user": ("a.csv", GOOD + ",i,5\n", {}, "line 4: the user id is missing"),
    "null item": (
        "a.csv",
        GOOD + "u,NULL,5\n",
        {},
        "line 4: the item id is missing. 1 of 3 events have no user or no item id. To drop them, "
        "set --drop_missing. The line: 'u,NULL,5'",
    ),
    "empty quotes": ("a.csv", GOOD + 'u,"",5\n', {}, "line 4: the item id is missing"),
    "json null": (
        "a.json",
        EVENT + EVENT.replace('"u"', "null"),
        {},
        "line 2: the user id is missing",
    ),
    "json without a field": (
        "a.json",
        EVENT + '{"user": "u", "item": "i"}\n',
        {},
        "line 2: the time is missing",
    ),
    "json text for a number": (
        "a.json",
        EVENT + EVENT.replace("1", '"1"'),
        {},
        "line 2: ts is '1': it must be a number",
    ),
    "json text for a rating beside a date": (
        "a.json",
        '{"user": 1, "item": 2, "rating": 3, "ts": "2024-01-31"}\n'
        '{"user": 1, "item": 2, "rating": "good", "ts": "2024-01-31"}\n',
        {"min_rating": 2},
        "line 2: rating is 'good': it must be a number",
    ),
    "truncated json": (
        "a.json",
        EVENT + EVENT[:15] + "\n",
        {},
        "line 2: the line is not a JSON object",
    ),
    "json NaN": (
        "a.json",
        EVENT + EVENT.replace("1", "NaN"),
        {},
        "line 2: the line is not a JSON object: NaN is not JSON",
    ),
    "json scalar": ("a.json", EVENT + "5\n", {}, "line 2: the line is not a JSON object"),
    "no column of behaviours": (
        "log.csv",
        "user,item,timestamp\nu,i,1\n",
        {"behaviours": ["buy"]},
        "behaviours=buy needs a column of behaviours. Name it: --columns=behaviour=COLUMN",
    ),
    "no event with such a behaviour": (
        "UserBehavior.csv",
        "1,2,3,pv,9\n1,3,3,cart,10\n1,4,3,pv,11\n",
        {"behaviours": ["pv", "purchase"]},
        "no event has the behaviour purchase. Behaviours: pv, cart",
    ),
    "no rating column": (
        "a.csv",
        GOOD,
        {"min_rating": 4},
        "min_rating=4 needs a rating column. Name it: --columns=rating=COLUMN",
    ),
    "bad rating": (
        "ratings.csv",
        "userId,movieId,rating,timestamp\n1,2,five,3\n",
        {"min_rating": 4},
        "line 2: the rating 'five' must be a finite number",
    ),
    "unknown fold": (
        "a.csv",
        "user,item,ts,part\nu,i,1,train\nu,i,2,dev\n",
        {"columns": {"fold": "part"}},
        "line 3: the fold must be one of train, validation, test",
    ),
    "duplicate": (
        "a.csv",
        GOOD + "v,j,1001\n",
        {"duplicates": "error"},
        "line 4: an earlier event has the same user, item and time",
    ),
    "repeated header": (
        "a.csv",
        "user,item,ts,ts\nu,i,1,2\n",
        {},
        "line 1: the header repeats ['ts']: each name must be unique",
    ),
    "open quote": ("a.csv", GOOD + 'u,"i,5\nv,j,6\n', {}, "line 4: "),
    "quote inside a field": (
        "a.csv",
        GOOD + 'u,i"k,5\nv,j,6\n',
        {},
        "line 4: a quote is inside an unquoted field. Quote the whole field",
    ),
    "quote inside a field beside a pipe": (
        "a.csv",
        'user|item|timestamp\n"u"|"i|k"|5\nv|j"k|6\n',
        {},
        "line 3: a quote is inside an unquoted field. Quote the whole field",
    ),
    "quoted line end": (
        "a.csv",
        GOOD + 'u,"i\nk",5\n',
        {},
        "line 4: a quoted field contains a line end. Write each event on one line",
    ),
    "not UTF-8": (
        "a.csv",
        GOOD.encode() + b"u,\xe9t\xe9,5\n",
        {},
        "line 4: the text is not UTF-8. Convert it: iconv",
    ),
    "UTF-16": ("a.csv", GOOD.encode("utf-16"), {}, "this is UTF-16 text. Convert it to UTF-8"),
    "HTML": (
        "a.csv",
        "\n<!DOCTYPE html>\n<html><body>404</body></html>\n",
        {},
        "line 1: this is HTML or XML, not a log. It may be the error page of a failed download",
    ),
    "ZIP": ("a.csv", b"PK\x03\x04rest", {}, "this is a ZIP archive. Unpack it"),
    "empty file": ("a.csv", "", {}, "the file is empty"),
    "empty gzip": ("a.csv.gz", gzip.compress(b""), {}, "the file is empty"),
    "white space": ("a.csv", "\n \n", {}, "the file is empty"),
    "header only": ("a.csv", "user,item,timestamp\n", {}, "has no events"),
    "truncated gzip": (
        "a.csv.gz",
        gzip.compress(GOOD.encode() * 50)[:-9],
        {},
        "the gzip file is truncated or damaged",
    ),
    "damaged gzip": (
        "a.csv.gz",
        gzip.compress(GOOD.encode())[:-6] + bytes(6),
        {},
        "the gzip file is truncated or damaged",
    ),
    "damaged parquet": ("a.parquet", b"PAR1 and no more", {}, "cannot be read: "),
    "a time of 0 beside dates": (
        "a.csv",
        "user,item,timestamp\nu,i,1600000000\nu,j,0\n",
        {},
        "line 3: the time is 0, the year 1970, beside times after 1990: it may stand for a missing",
    ),
    "times before ratings": (
        "u.data",
        "1\t2\t1600000013\t4\n1\t3\t1600000010\t5\n",
        {},
        "cannot detect the format from the first line '1\\t2\\t1600000013\\t4'",
    ),
    "numbers as a header": (
        "a.csv",
        "0,1,2\n5,6,1600000000\n",
        {"columns": {"user": 0, "item": 1, "timestamp": 2}},
        "line 1 looks like a header: '0,1,2'. Name the columns by it",
    ),
    "a header before pairs": ("pairs.txt", "user item\n1 2\n", {}, "line 1 looks like a header"),
    "no event with such a rating": (
        "u.data",
        "1\t2\t3\t4\n1\t3\t3\t5\n",
        {"min_rating": 4},
        "no events are left of 2 after the filter [rating >= 4]. Choose a weaker filter",
    ),
    "no event in the core": (
        "a.csv",
        GOOD,
        {"user_core": 2},
        "no events are left of 2 after the filter [core",
    ),
    "no event in the time range": (
        "a.csv",
        GOOD,
        {"time_range": (5, 9), "time_unit": "s"},
        "no events are left of 2 after the filter [5 <= time < 9]",
    ),
    "time range of two units": (
        "a.csv",
        f"user,item,timestamp\nu,i,{NOW}\nv,j,{NOW}000\n",
        {"time_range": (0, NOW + 1)},
        "line 3: this time reads as milliseconds, but the first time of the log reads as seconds, "
        "so that --time_range needs the unit. Write all times in one unit, or set --time_unit=s to",
    ),
    "time range of calendar dates": (
        "a.csv",
        "user,item,timestamp\nu,i,20240131\nv,j,20240201\n",
        {"time_range": (0, NOW)},
        "line 2: the time 20240131 looks like the calendar date 2024-01-31",
    ),
    "no such file": (None, "", {}, "no such file"),
    "gzip padded with zeros": (
        "a.csv.gz",
        gzip.compress(GOOD.encode()) + bytes(512),
        {},
        "the engine cannot read the gzip file (invalid gzip header), although it is sound: bytes "
        "that are no gzip, such as zeros, may follow its end. Write it anew: gunzip -c ",
    ),
    "text after gzip": (
        "a.csv.gz",
        gzip.compress(GOOD.encode()) + GOOD.encode(),
        {},
        "the gzip file is truncated or damaged (Not a gzipped file (b'us'))",
    ),
    "zeros": ("a.csv", GOOD.encode() + bytes(99), {}, "line 4: the line has a zero byte. The file"),
    "UTF-16 without mark": (
        "a.csv",
        GOOD.encode("utf-16-le"),
        {},
        "line 1: the line has a zero byte. The file is damaged, or is not UTF-8",
    ),
    "old line ends": (
        "a.csv",
        GOOD.replace("\n", "\r"),
        {},
        r"lines end with \r alone. Convert it: tr '\r' '\n'",
    ),
    "json object as an id": (
        "a.json",
        EVENT + EVENT.replace('"i"', '{"$oid": "5"}'),
        {},
        'line 2: item is {"$oid": "5"}: an id must be text or a number. Write one value of it as',
    ),
    "json array as an id": (
        "a.json",
        EVENT + EVENT.replace('"u"', '["u", 1]'),
        {},
        'line 2: user is ["u", 1]: an id must be text or a number',
    ),
    "json zero character in an id": (
        "a.json",
        EVENT + EVENT.replace('"u"', r'"u\u0000"'),
        {},
        "line 2: the user id has a zero character",
    ),
    "json lone surrogate in an id": (
        "a.json",
        EVENT + EVENT.replace('"u"', r'"\ud800"'),
        {},
        "line 2: the user id has a zero character, or in JSON a lone surrogate",
    ),
    "some ids as floats": (
        "a.csv",
        GOOD.replace("u", "17", 2).replace("17ser", "user").replace("v", "18.0"),
        {},
        "line 3: the user id ends with .0, but other user ids, such as 17, do not. Write all of",
    ),
    "events without ids": (
        "a.csv",
        GOOD + ",i,3\nu,,4\n,NULL,5\n",
        {},
        "line 4: the user id is missing. 3 of 5 events have no user or no item id. To drop them, "
        "set --drop_missing.",
    ),
    "no event with ids": (
        "a.csv",
        "user,item,timestamp\n,i,3\nu,,4\n",
        {"drop_missing": True},
        "none of its 2 events has a user id and an item id",
    ),
}


@pytest.mark.parametrize("case", BAD_LOGS)
def test_bad_logs_are_refused_with_file_line_and_reason(tmp_path, case):
    name, content, arguments, message = BAD_LOGS[case]
    path = tmp_path / (name or "absent.csv")
    if name:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LogError, match=re.escape(message)) as caught:
        prepare(path, tmp_path / "set", **arguments)
    assert str(caught.value).startswith(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ([name] if name else [])


BAD_FRAMES = {
    "null id": (
        {"user": ["u", None], "item": [1, 2], "ts": [1, 2]},
        "row 1: the user id is missing",
    ),
    "float id": (
        {"user": [1.0, 2.5], "item": [1, 2], "ts": [1, 2]},
        "row 1: the user id 2.5 is not a whole number that its column of floats holds exactly. "
        "Ids must be integers or text: cast the column",
    ),
    "text time": (
        {"user": [1, 2], "item": [1, 2], "ts": ["1", "2"]},
        "row 0: the time 1 is a number, but the log's times are read as ISO 8601 text. Write all "
        "times in one form. If all are numbers in a column of text, cast the column",
    ),
    "null time": ({"user": [1, 2], "item": [1, 2], "ts": [1, None]}, "row 1: the time is missing"),
    "NaN time": (
        {"user": [1, 2], "item": [1, 2], "ts": [float("nan"), 1]},
        "row 0: the time is missing",
    ),
    "nested user": (
        {"user": [[1], [2]], "item": [1, 2], "ts": [1, 2]},
        "the user column 'user' holds List(Int64): ids must be integers or text. Write one value",
    ),
    "nested item": (
        {"user": [1, 2], "item": [{"a": 1}, {"a": 2}], "ts": [1, 2]},
        "the item column 'item' holds Struct({'a': Int64}): ids must be integers or text",
    ),
    "large float id": (
        {"user": [2.0**53, 1.0], "item": [1, 2], "ts": [1, 2]},
        "row 0: the user id 9007199254740992.0 is not a whole number that its column of floats",
    ),
    "no rows": ({"user": [], "item": [], "ts": []}, "frame"),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet"])
def test_whole_numbers_written_as_floats_are_integers(tmp_path, name, missing):
    """pandas makes floats of integers as soon as one of them is missing."""
    pandas = pytest.importorskip("pandas")
    user = [17850.0, -20000000.0, 17850.0, *([float("nan")] * missing)]
    table = pandas.DataFrame({"user": user, "item": "i", "ts": range(1000, 1003 + missing)})
    if name == "a.csv":
        table.to_csv(tmp_path / name, index=False)
        assert "17850.0" in (tmp_path / name).read_text()
    elif name == "a.json":
        table.to_json(tmp_path / name, orient="records", lines=True)
    else:
        pl.from_pandas(table).write_parquet(tmp_path / name)
    for log in (tmp_path / name, table):
        folder = tmp_path / f"set of {type(log).__name__}"
        dataset = prepare(log, folder, drop_missing=missing)
        assert histories(dataset) == {
            "17850": [("i", 1000), ("i", 1002)],
            "-20000000": [("i", 1001)],
        }
        counts = {"users": 2, "items": 1, "events": 3}
        assert dataset.card["read"] == counts | {"events": 3 + missing}
        filters = [{"before": dataset.card["read"], "after": counts}] * missing
        filters += [{"before": counts, "after": counts}] * missing  # all have times
        assert [
            {name: step[name] for name in ("before", "after")} for step in dataset.card["filters"]
        ] == filters


def test_ids_that_are_not_all_numbers_keep_their_text(tmp_path):
    """Also brackets, which begin arrays of JSON but not only these."""
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\n1.0,1.10,1\nv1.0,1.0,2\n{5},[6],3\n")
    assert histories(prepare(path, tmp_path / "set")) == {
        "1.0": [("1.10", 1)],
        "v1.0": [("1.0", 2)],
        "{5}": [("[6]", 3)],
    }
    path = tmp_path / "log.json"
    path.write_text(EVENT.replace('"i"', '"{i}"'))
    assert histories(prepare(path, tmp_path / "other")) == {"u": [("{i}", 1)]}


def test_dropped_events_need_no_valid_time(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(GOOD + ",i,soon\nu,,20240131\nw,NaN,7\n")
    dataset = prepare(path, tmp_path / "set", drop_missing=True, user_core=1)
    assert histories(dataset) == {"u": [("i", 1000)], "v": [("j", 1001)]}
    assert dataset.card["filters"] == [
        {
            "filter": "events with a user id and an item id",
            "before": {"users": 3, "items": 2, "events": 5},
            "after": {"users": 2, "items": 2, "events": 2},
        },
        {
            "filter": "events with a time",
            "before": {"users": 2, "items": 2, "events": 2},
            "after": {"users": 2, "items": 2, "events": 2},
        },
    ]


def test_events_without_a_time_or_a_rating_are_dropped_by_reason(tmp_path):
    """From text, JSON, Parquet and frames; only a `min_rating` needs ratings."""
    pandas, duckdb = pytest.importorskip("pandas"), pytest.importorskip("duckdb")
    table = pl.DataFrame(
        {
            "user": ["u", None, "u", "v", "v", "v"],
            "item": ["i", "i", "j", "j", "k", "i"],
            "time": [None, NOW, NOW, NOW + 1, None, NOW + 2],
            "rating": [5.0, 5.0, None, 4.0, None, 1.0],
        }
    )
    dated = table.with_columns(pl.from_epoch("time"))
    table.write_csv(tmp_path / "a.csv")
    dated.write_csv(tmp_path / "dates.csv", null_value="NULL", datetime_format="%Y-%m-%d %H:%M:%S")
    table.write_ndjson(tmp_path / "a.json")
    dated.write_parquet(tmp_path / "dates.parquet")
    frame = table.to_pandas()
    logs = {
        **{path.name: path for path in sorted(tmp_path.iterdir())},
        "polars": table,
        "pandas": frame,
        "pandas dates": frame.assign(time=pandas.to_datetime(frame["time"], unit="s")),
        "duckdb": duckdb.from_df(frame.assign(row=range(6))),
    }
    assert frame["time"].isna().sum() == 2 and len(logs) == 8
    for name, log in logs.items():
        columns = {"row": "row"} if name == "duckdb" else {}
        dataset = prepare(log, tmp_path / f"times of {name}", drop_missing=True, columns=columns)
        assert dataset.card["counts"]["events"] == 3, name
        arguments = {"drop_missing": True, "min_rating": 4.0, "columns": columns}
        dataset = prepare(log, tmp_path / f"set of {name}", **arguments)
        assert histories(dataset) == {"v": [("j", NOW + 1)]}, name
        assert [(step["filter"], step["after"]["events"]) for step in dataset.card["filters"]] == [
            ("events with a user id and an item id", 5),
            ("events with a time", 3),
            ("events with a rating", 2),
            ("rating >= 4", 1),
        ], name
        message = (
            "the time is missing. 2 of 6 events have no time. To drop them, set --drop_missing"
        )
        with pytest.raises(LogError, match=message):
            prepare(log, tmp_path / "no", columns=columns)
        time_range = (NOW, NOW + 9)
        with pytest.raises(LogError, match=message):
            prepare(log, tmp_path / "no", columns=columns, time_range=time_range)
    path = tmp_path / "rated.csv"
    table.filter(pl.col("time").is_not_null()).write_csv(path)
    message = (
        "line 3: the rating is missing. 1 of 4 events have no rating. To drop them, set --drop"
    )
    with pytest.raises(LogError, match=message):
        prepare(path, tmp_path / "no", min_rating=4)


def test_a_rating_in_text_that_is_no_number_is_missed_only_by_a_min_rating(tmp_path):
    """A column may bear the name of a rating and hold something else."""
    pandas, duckdb = pytest.importorskip("pandas"), pytest.importorskip("duckdb")
    table = pl.DataFrame(
        {"user": ["u"] * 3, "item": ["i", "j", "k"], "ts": [7, 8, 9], "stars": ["5", "", "4.5"]}
    )
    films = table.with_columns(stars=pl.Series(["5", "PG-13", None]))
    refused = re.escape("row 1: the rating 'PG-13' must be a finite number")
    for name, convert in {
        "csv": lambda frame: frame.write_csv(tmp_path / "a.csv") or tmp_path / "a.csv",
        "parquet": lambda frame: frame.write_parquet(tmp_path / "a.p") or tmp_path / "a.p",
        "polars": lambda frame: frame,
        "polars-lazy": lambda frame: frame.lazy(),
        "polars-category": lambda frame: frame.cast({"stars": pl.Categorical}),
        "pandas": lambda frame: frame.to_pandas(),
        "pandas-objects": lambda frame: frame.to_pandas().astype({"stars": object}),
        "pandas-mixed": lambda frame: pandas.DataFrame(
            frame.to_dict(as_series=False) | {"stars": [5, *frame["stars"][1:]]}
        ),
        "pyarrow": lambda frame: frame.to_arrow(),
        "duckdb": lambda frame: duckdb.from_arrow(frame.to_arrow()),
    }.items():
        arguments = {"min_rating": 4.5, "drop_missing": True}
        dataset = prepare(convert(table), tmp_path / f"numbers of {name}", **arguments)
        assert histories(dataset) == {"u": [("i", 7), ("k", 9)]}, name
        dataset = prepare(convert(films), tmp_path / f"films of {name}")
        assert dataset.num_events == 3, name
        row = "line 3: .*'PG-13'" if name == "csv" else refused
        with pytest.raises(LogError, match=row):
            prepare(convert(films), tmp_path / "no", min_rating=1)


def test_paths_that_cannot_be_read_are_named_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "log.csv").write_text(GOOD)
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("log.csv/log.csv", "no such file"),
        ("link.csv", f"this is a link to {tmp_path / 'gone.csv'}, which does not exist"),
        ("folder", r"the folder has no file \*\.parquet"),
        ("pipe", "is neither a file nor a folder of Parquet files"),
        ("x" * 300, "cannot be read: File name too long"),
    ):
        with pytest.raises(LogError, match=message):
            prepare(tmp_path / name, tmp_path / "set")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    # The tests may run as root, for whom every file can be read.
    monkeypatch.setattr("linseqrec.data.readers.raw_lines.open_bytes", refuse)
    with pytest.raises(LogError, match="log.csv: cannot be read: Permission denied"):
        prepare(tmp_path / "log.csv", tmp_path / "set")


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames_are_refused_with_row_and_reason(tmp_path, case):
    columns, message = BAD_FRAMES[case]
    with pytest.raises(LogError, match=re.escape(message)):
        prepare(pl.DataFrame(columns, strict=False), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_frames_whose_columns_are_not_named_apart_are_refused(tmp_path):
    pandas = pytest.importorskip("pandas")
    repeated = pandas.DataFrame([[1, 2, 3]], columns=["user", "item", "item"])
    numbered = pandas.DataFrame([[1, 2, 3]])  # of `read_csv(..., header=None)`
    advice = re.escape('such as 0. Name all columns: frame.columns = ["user", "item", ...]')
    for frame, message in (
        (repeated, "the frame repeats a column: each name must be unique"),
        (numbered, advice),
    ):
        for columns in ({}, {"user": 0, "item": 1, "timestamp": 2}):
            with pytest.raises(LogError, match=message):
                prepare(frame, tmp_path / "set", columns=columns)


def test_bad_arguments_are_refused(tmp_path):
    rows = frame_of([(1, 1, 1)])
    for arguments, message in (
        ({"duplicates": "drop"}, "duplicates='drop' must be one of keep, first, last, error"),
        ({"tied_order": "item"}, "tied_order='item' must be one of log, random"),
        ({"user_core": 0}, "user_core=0 must be at least 1"),
        ({"item_core": -1}, "item_core=-1 must be at least 1"),
        ({"time_range": (5, 5)}, r"time_range=\(5, 5\): the first time must be smaller"),
        ({"format": "csv"}, "format='csv' is for files, but the log is a frame: leave it out"),
        ({"separator": ";"}, "separator=';' is for files, but the log is a frame: leave it out"),
        ({"spark": object()}, "spark is for files, but the log is a frame.*leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(rows, tmp_path / "set", **arguments)
    with pytest.raises(LogError, match="neither a file nor a frame"):
        prepare([1, 2], tmp_path / "set")


def test_events_outside_the_time_range_need_no_valid_time(tmp_path):
    """Taobao's log holds times before 1970 and after 2030; only a `time_range` drops them."""
    path = tmp_path / "UserBehavior.csv"
    path.write_text("1,2,3,pv,-5\n1,2,3,pv,1511544070\n1,4,3,buy,1511561733\n1,2,3,pv,9000000000\n")
    with pytest.raises(LogError, match="line 1: the time -5 is negative"):
        prepare(path, tmp_path / "set")
    dataset = prepare(path, tmp_path / "set", time_range=(1511539200, 1512316800))
    assert histories(dataset) == {"1": [("2", 1511544070), ("4", 1511561733)]}
    assert dataset.card["filters"][0]["before"]["events"] == 4
    time_range = (1511544070, 1511561733)  # holds its first time, but not its second
    dataset = prepare(path, tmp_path / "half", time_range=time_range)
    assert dataset.timestamps.tolist() == [1511544070]
    for wrong in ("", "nan", "inf", "soon"):
        path.write_text(f"1,2,3,pv,1511544070\n1,2,3,pv,{wrong}\n")
        with pytest.raises(LogError, match="line 2: the time "):
            prepare(path, tmp_path / "wrong", format="taobao", time_range=time_range)


def test_a_time_range_needs_no_unit_that_can_be_detected(tmp_path):
    """Wrong times outside of the range do not decide the unit."""
    for name, times, time_range, kept in (
        ("seconds", (-5, NOW, NOW + 9, 9 * 10**9), (NOW, NOW + 5), NOW),
        ("milliseconds", (0, 1000 * NOW, 1000 * NOW + 9000, -5), (NOW, NOW + 5), NOW),
        ("from another zero", (7, 3, -1), (0, 5), 3),
    ):
        (tmp_path / name).write_text(
            "\n".join(["user,item,time", *(f"u,i,{time}" for time in times), ""])
        )
        dataset = prepare(tmp_path / name, tmp_path / f"set of {name}", time_range=time_range)
        assert histories(dataset) == {"u": [("i", kept)]}


def test_an_existing_folder_is_refused_before_the_log_is_read(tmp_path):
    (tmp_path / "set").mkdir()
    prepare(frame_of([(1, 1, 1)]), tmp_path / "set")  # an empty folder is accepted
    with pytest.raises(DatasetError, match="already exists"):
        prepare(tmp_path / "no log", tmp_path / "set")


# A program that kills itself in the middle of `prepare`: at a call of the function named first.
KILLED = """
import os, signal, sys
import numpy as np
from linseqrec.data import writing as module
from linseqrec.data.prepare import prepare

owner, name, calls = {"save": (np, "save", 2), "sync": (module, "_sync", 4),
                      "rename": (os, "rename", 1)}[sys.argv[1]]
function, count = getattr(owner, name), [0]

def kill_at_last_call(*arguments, **options):
    count[0] += 1
    if count[0] == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)

setattr(owner, name, kill_at_last_call)
prepare(sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("moment", ["save", "sync", "rename"])
def test_a_killed_prepare_leaves_no_data_set(tmp_path, moment):
    path, folder = tmp_path / "log.csv", tmp_path / "sets" / "set"
    path.write_text(GOOD)
    command = [sys.executable, "-c", KILLED, moment, str(path), str(folder)]
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True)
    assert ended.returncode == -9, ended.stderr.decode()
    assert not folder.exists()
    (partial,) = folder.parent.iterdir()
    assert partial.name.startswith(".set.partial-")
    if moment != "rename":  # before the rename, the partial folder is already complete
        with pytest.raises(DatasetError, match=r"no card\.json"):
            Dataset.open(partial)
    prepare(path, folder)
    Dataset.open(folder)


def test_a_failed_write_leaves_no_files(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("linseqrec.data.writing._sync", fail)
    with pytest.raises(OSError, match="no space left"):
        prepare(frame_of([(1, 1, 1)]), tmp_path / "sets" / "set")
    assert not any((tmp_path / "sets").iterdir())


def test_movielens_1m_histories_equal_the_published_ones(tmp_path):
    """A stable sort of the raw ratings gives the file that SASRec and later papers use."""
    raw = prepare(real_log("ml-1m/ratings.tsv.gz"), tmp_path / "raw")
    published = prepare(real_log("ml-1m/ml-1m.txt.gz"), tmp_path / "published")
    assert (raw.num_users, raw.num_items, raw.num_events) == (6040, 3416, 999_611)
    # The two files number users and items differently. Users with a unique length are the same in
    # both files and map the items of one file to those of the other. Known items identify more
    # users, and so on, until all items are mapped.
    raw_rows, published_rows = histories_by_user(raw), histories_by_user(published)
    to_published = np.zeros(raw.num_items + 1, dtype=np.int32)
    for _ in range(4):
        known = np.isin(np.arange(published.num_items + 1), to_published)
        published_users = users_of_unique_rows(
            {user: np.where(known[row], row, 0) for user, row in published_rows.items()}
        )
        raw_users = users_of_unique_rows(
            {user: to_published[row] for user, row in raw_rows.items()}
        )
        for row in raw_users.keys() & published_users.keys():
            to_published[raw_rows[raw_users[row]]] = published_rows[published_users[row]]
    assert sorted(to_published) == list(range(3417))
    renamed = collections.Counter(to_published[row].tobytes() for row in raw_rows.values())
    assert renamed == collections.Counter(row.tobytes() for row in published_rows.values())
    assert raw.card["ties"]["user_rate"] > 0.4  # the order of tied events matters


def histories_by_user(dataset):
    return dict(enumerate(np.split(np.asarray(dataset.items), dataset.offsets[1:-1])))


def users_of_unique_rows(rows):
    """The user of each row (as bytes) that no other user has."""
    users_of = collections.defaultdict(list)
    for user, row in rows.items():
        users_of[row.astype(np.int32).tobytes()].append(user)
    return {row: users[0] for row, users in users_of.items() if len(users) == 1}


def test_a_row_column_of_text_is_refused(tmp_path):
    """As text, 10 stands before 2."""
    frame = pl.DataFrame({"user": ["a"] * 3, "item": ["x", "y", "z"], "line": ["1", "10", "2"]})
    with pytest.raises(LogError, match="row column 'line' holds String: it must hold integers"):
        prepare(frame, tmp_path / "set", columns={"row": "line"}, time_unit="order")
