"""Preparation against a plain-Python reference, its filters, and what it refuses."""

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
    """User id to its [(item id, seconds)], in the stored order."""
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
    """Drops one event of a too small user or item after another until none is too small."""
    rows = list(rows)
    while True:
        users = collections.Counter(row[0] for row in rows)
        items = collections.Counter(row[1] for row in rows)
        small = [row for row in rows if users[row[0]] < user_core or items[row[1]] < item_core]
        if not small:
            return rows
        rows.remove(small[0])


def reference(rows, user_core=1, item_core=1, duplicates="keep"):
    """User to [(item, seconds)] by sorting Python lists; rows are (user, item, time)."""
    if duplicates != "keep":
        kept = {}
        for number, row in enumerate(rows):
            if duplicates == "last" or row not in kept:
                kept[row] = number
        rows = [row for number, row in enumerate(rows) if kept[row] == number]
    rows = reference_core(rows, user_core, item_core)
    found = collections.defaultdict(list)
    for user, item, time in sorted(rows, key=lambda row: row[2]):  # stable
        found[str(user)].append((str(item), int(time)))
    return dict(found)


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
    expected = reference(rows, *cores, duplicates)
    arguments = {"user_core": cores[0], "item_core": cores[1], "duplicates": duplicates}
    if not expected:
        with pytest.raises(LogError, match="no events are left"):
            prepare(frame_of(rows), folder, **arguments)
        assert not any(folder.parent.iterdir())
        return
    dataset = prepare(frame_of(rows), folder, **arguments)
    assert histories(dataset) == expected
    assert list(dataset.user_ids()) == sorted(expected)  # single digits: text order is numeric
    assert sorted(set(dataset.items)) == list(range(1, dataset.num_items + 1))
    Dataset.open(folder, verify=True)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, user_core=st.integers(1, 4), item_core=st.integers(1, 4), data=st.data())
def test_core_is_a_fixed_point_whatever_the_order(rows, user_core, item_core, data):
    rows = [(user, item, number) for number, (user, item, _) in enumerate(rows)]

    def core(rows):
        frame = pl.LazyFrame(rows, schema=["user", "item", "row"], orient="row")
        kept = filters.core(nw.from_native(frame), user_core, item_core)
        return set(filters.collect(kept).rows())

    kept = core(rows)
    assert kept == set(reference_core(rows, user_core, item_core))
    assert core(data.draw(st.permutations(rows))) == kept
    assert core(sorted(kept)) == kept


def test_a_chain_unravels_to_nothing(tmp_path):
    """Each round of the core drops one end: it must go on until nothing is left to drop."""
    rows = [(number + step, number, 0) for number in range(12) for step in (0, 1)]
    ring = [(100 + (number + step) % 4, 200 + number, 0) for number in range(4) for step in (0, 1)]
    dataset = prepare(frame_of(rows + ring), tmp_path / "set", user_core=2, item_core=2)
    assert sorted(histories(dataset)) == ["100", "101", "102", "103"]


def test_ids_are_numbered_by_length_then_text(tmp_path):
    rows = [("b", "10", 1), ("b", "9", 2), ("a", "x", 3), ("aa", "9", 1), ("a", "é", 4)]
    dataset = prepare(frame_of(rows), tmp_path / "set")
    assert list(dataset.user_ids()) == ["a", "b", "aa"]
    assert list(dataset.item_ids()) == ["", "9", "x", "é", "10"]
    assert dataset.items.tolist() == [2, 3, 4, 1, 1]


def test_milliseconds_sort_before_they_become_seconds(tmp_path):
    path = tmp_path / "log_standard.csv"
    path.write_text(
        "user_id,video_id,time_ms\n0,1,1649400000900\n0,2,1649400000100\n0,3,1649399999999\n"
    )
    dataset = prepare(path, tmp_path / "set")
    assert histories(dataset) == {"0": [("3", 1649399999), ("2", 1649400000), ("1", 1649400000)]}
    assert dataset.card["reader"]["time_unit"] == "ms"
    assert "milliseconds" in dataset.card["reader"]["times"]


def test_units_are_told_by_magnitude_where_nothing_names_them(tmp_path):
    for name, ticks in (("s", 1), ("ms", 10**3), ("us", 10**6)):
        rows = [(1, 1, 1_600_000_000 * ticks), (1, 2, 1_600_000_001 * ticks)]
        dataset = prepare(frame_of(rows), tmp_path / name)
        assert dataset.timestamps.tolist() == [1_600_000_000, 1_600_000_001]
        assert dataset.card["reader"]["time_unit"] == name


def test_order_only(tmp_path):
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
    for arguments in ({"duplicates": "first"}, {"time_range": (0, 9)}):
        with pytest.raises(LogError, match="the log has no time"):
            prepare(path, tmp_path / "other", **arguments)


def test_folds_travel_with_their_events(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user,item,timestamp,part\nb,1,3,test\nb,2,2,validation\nb,3,1,train\na,1,9,train\n"
    )
    dataset = prepare(path, tmp_path / "set", columns={"fold": "part"})
    assert dataset.folds.tolist() == [0, 0, 1, 2] and dataset.folds.dtype == np.int8
    assert dataset.card["folds"] == {"train": 2, "validation": 1, "test": 1}
    assert prepare(path, tmp_path / "without").folds is None


def test_the_card_counts_around_each_filter(tmp_path):
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


def test_which_duplicate_is_kept(tmp_path):
    """`first` and `last` differ in what else the event carries, and in its place among ties."""
    rows = [(1, 5, 10, "train"), (1, 6, 10, "train"), (1, 5, 10, "test")]
    frame = pl.DataFrame(rows, schema=["user", "item", "time", "part"], orient="row")
    for policy, items, folds in (("first", [1, 2], [0, 0]), ("last", [2, 1], [0, 2])):
        dataset = prepare(frame, tmp_path / policy, columns={"fold": "part"}, duplicates=policy)
        assert (dataset.items.tolist(), dataset.folds.tolist()) == (items, folds)
    with pytest.raises(LogError, match="row 2: an earlier event has the same user, item and time"):
        prepare(frame, tmp_path / "error", duplicates="error")


def test_data_are_the_same_whatever_file_holds_the_log(tmp_path):
    rows = "u,i,9\nu,j,7\nv,i,8\n"
    logs = {"plain.csv": rows, "packed.csv.gz": rows, "other.csv": rows.replace("v", "w")}
    cards_of = []
    for name, text in logs.items():
        data = ("user,item,timestamp\n" + text).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        cards_of.append(prepare(tmp_path / name, tmp_path / "sets" / name).card)
    plain, packed, other = cards_of
    assert plain["sha256"]["source"] != packed["sha256"]["source"]
    assert differing_data(plain, packed) == []
    assert differing_data(plain, other) == differing_data(other, plain) == ["user_ids"]
    # A card from before ids had digests of their own says nothing of them.
    before = {name: digest for name, digest in other["sha256"].items() if "ids" not in name}
    assert differing_data(plain, other | {"sha256": before}) == []
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
    }
    for name, frame in frames.items():
        dataset = prepare(frame, tmp_path / name, **arguments)
        assert dataset.card["sha256"].items() <= expected.card["sha256"].items(), name
        assert dataset.card["filters"] == expected.card["filters"], name
    # With an order named, the whole preparation runs in the frame's own engine.
    shuffled = duckdb.from_df(table.sample(frac=1, random_state=0))
    dataset = prepare(shuffled, tmp_path / "sql", columns={"row": "number"}, **arguments)
    assert dataset.card["sha256"].items() <= expected.card["sha256"].items()


EVENT = '{"user": "u", "item": "i", "ts": 1}\n'
GOOD = "user,item,timestamp\nu,i,1000\nv,j,1001\n"
NOW = 1_600_000_000

# What is wrong: file name, content, arguments, what the message must say.
BAD = {
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
        "no column 'sku' for the item",
    ),
    "too few fields": ("a.csv", GOOD + "u,i\n", {}, "line 4: 2 fields, expected 3"),
    "too many fields": ("a.csv", GOOD + "u,i,3,\n" + GOOD, {}, "line 4: 4 fields, expected 3"),
    "too few in ::": (
        "ratings.dat",
        "1::2::3::4\n" * 3 + "1::2::3\n",
        {},
        "line 4: 3 fields, expected 4",
    ),
    "single colon": (
        "ratings.dat",
        "1::2::3::4\n1::2:3::4\n",
        {"format": "movielens-dat"},
        "line 2: 3 fields",
    ),
    "a lone id": ("a.txt", "1 2\n1\n", {}, "line 2: 1 fields, expected 2"),
    "blank line": ("a.csv", GOOD + "\nu,i,3\n", {}, "line 4: the line is blank"),
    "non-numeric time": (
        "a.csv",
        GOOD + "u,i,soon\n",
        {},
        "line 4: the time is missing or no number. The line: 'u,i,soon'",
    ),
    "empty time": ("a.csv", GOOD + "u,i,\n", {}, "line 4: the time is missing or no number"),
    "NaN time": ("a.csv", GOOD + "u,i,nan\n", {}, "line 4: the time is NaN or infinite"),
    "infinite time": ("a.csv", GOOD + "u,i,inf\n", {}, "line 4: the time is NaN or infinite"),
    "negative time": ("u.data", "1\t2\t3\t4\n1\t2\t3\t-4\n", {}, "line 2: the time is negative"),
    "no ISO time": (
        "a.txt",
        "0\t2010-10-19T23:55:27Z\t1\t1\tp\n0\tyesterday\t1\t1\tp\n",
        {"format": "checkins"},
        "line 2: the time is missing or no number",
    ),
    "milliseconds after seconds": (
        "a.csv",
        GOOD + f"u,i,{NOW}000\n",
        {},
        "line 4: the time reads as milliseconds, but the log's first as seconds",
    ),
    "seconds after milliseconds": (
        "log_a.csv",
        f"user_id,video_id,time_ms\n1,2,{NOW}000\n1,2,{NOW}\n",
        {},
        "line 3: the time reads as seconds, but the log's first as milliseconds",
    ),
    "milliseconds for seconds": (
        "ratings.csv",
        f"userId,movieId,rating,timestamp\n1,2,3,{NOW}000\n",
        {},
        "line 2: the time reads as milliseconds, not seconds: say time_unit=ms",
    ),
    "beyond int32": (
        "a.csv",
        "user,item,timestamp\nu,i,7\nv,j,9000000000\n",
        {},
        "line 3: the times span 8999999993 s",
    ),
    "empty user": ("a.csv", GOOD + ",i,5\n", {}, "line 4: the user id is missing"),
    "null item": (
        "a.csv",
        GOOD + "u,NULL,5\n",
        {},
        "line 4: the item id is missing. The line: 'u,NULL,5'",
    ),
    "quoted nothing": ("a.csv", GOOD + 'u,"",5\n', {}, "line 4: the item id is missing"),
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
        "line 2: ts is no number: '1'",
    ),
    "json cut": ("a.json", EVENT + EVENT[:15] + "\n", {}, "line 2: no JSON object"),
    "json NaN": (
        "a.json",
        EVENT + EVENT.replace("1", "NaN"),
        {},
        "line 2: no JSON object: NaN is not JSON",
    ),
    "json scalar": ("a.json", EVENT + "5\n", {}, "line 2: no JSON object"),
    "rating wanted": ("a.csv", GOOD, {"min_rating": 4}, "min_rating needs a rating column"),
    "bad rating": (
        "ratings.csv",
        "userId,movieId,rating,timestamp\n1,2,five,3\n",
        {"min_rating": 4},
        "line 2: the rating is missing or no number",
    ),
    "unknown fold": (
        "a.csv",
        "user,item,ts,part\nu,i,1,train\nu,i,2,dev\n",
        {"columns": {"fold": "part"}},
        "line 3: the fold is none of train, validation, test",
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
        "line 1: the header repeats ['ts']",
    ),
    "open quote": ("a.csv", GOOD + 'u,"i,5\nv,j,6\n', {}, "line 4: "),
    "stray quote": (
        "a.csv",
        GOOD + 'u,i"k,5\nv,j,6\n',
        {},
        "line 4: a quote stands inside an unquoted field",
    ),
    "quoted line end": (
        "a.csv",
        GOOD + 'u,"i\nk",5\n',
        {},
        "line 4: a quoted field runs over the end of the line",
    ),
    "not UTF-8": ("a.csv", GOOD.encode() + b"u,\xe9t\xe9,5\n", {}, "line 4: the text is not UTF-8"),
    "UTF-16": ("a.csv", GOOD.encode("utf-16"), {}, "this is UTF-16 text"),
    "HTML": (
        "a.csv",
        "\n<!DOCTYPE html>\n<html><body>404</body></html>\n",
        {},
        "line 1: this is HTML or XML, not a log",
    ),
    "ZIP": ("a.csv", b"PK\x03\x04rest", {}, "this is a ZIP archive"),
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
    "damaged parquet": ("a.parquet", b"PAR1 and no more", {}, "cannot be read"),
    "nothing rated so high": (
        "u.data",
        "1\t2\t3\t4\n1\t3\t3\t5\n",
        {"min_rating": 4},
        "no events are left of 2 after [rating >= 4]",
    ),
    "nothing in the core": ("a.csv", GOOD, {"user_core": 2}, "no events are left of 2 after [core"),
    "nothing in the range": (
        "a.csv",
        GOOD,
        {"time_range": (5, 9), "time_unit": "s"},
        "no events are left of 2 after [5 <= time < 9]",
    ),
    "range without unit": ("a.csv", GOOD, {"time_range": (5, 9)}, "time_range needs the unit"),
    "no such file": (None, "", {}, "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_logs_are_refused_with_file_line_and_reason(tmp_path, case):
    name, content, arguments, message = BAD[case]
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
        {"user": [1.0, 2.0], "item": [1, 2], "ts": [1, 2]},
        "the user column 'user' holds Float64",
    ),
    "text time": (
        {"user": [1, 2], "item": [1, 2], "ts": ["1", "2"]},
        "the timestamp column 'ts' holds String",
    ),
    "null time": ({"user": [1, 2], "item": [1, 2], "ts": [1, None]}, "row 1: the time is missing"),
    "NaN time": (
        {"user": [1, 2], "item": [1, 2], "ts": [float("nan"), 1]},
        "row 0: the time is NaN",
    ),
    "no rows": ({"user": [], "item": [], "ts": []}, "frame"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames_are_refused_with_row_and_reason(tmp_path, case):
    columns, message = BAD_FRAMES[case]
    with pytest.raises(LogError, match=re.escape(message)):
        prepare(pl.DataFrame(columns, strict=False), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_bad_arguments_are_refused(tmp_path):
    rows = frame_of([(1, 1, 1)])
    for arguments, message in (
        ({"duplicates": "drop"}, "choose among keep, first, last, error"),
        ({"user_core": 0}, "at least 1"),
        ({"time_range": (5, 5)}, "the first must be less"),
        ({"format": "csv"}, "a frame has none"),
        ({"spark": object()}, "spark reads files"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(rows, tmp_path / "set", **arguments)
    with pytest.raises(LogError, match="neither a file nor a frame"):
        prepare([1, 2], tmp_path / "set")


def test_a_time_range_spares_what_lies_outside_it(tmp_path):
    """Taobao's log holds times before 1970 and after 2030; cutting them is the caller's word."""
    path = tmp_path / "UserBehavior.csv"
    path.write_text("1,2,3,pv,-5\n1,2,3,pv,1511544070\n1,4,3,buy,1511561733\n1,2,3,pv,9000000000\n")
    with pytest.raises(LogError, match="line 1: the time is negative"):
        prepare(path, tmp_path / "set")
    dataset = prepare(path, tmp_path / "set", time_range=(1511539200, 1512316800))
    assert histories(dataset) == {"1": [("2", 1511544070), ("4", 1511561733)]}
    assert dataset.card["filters"][0]["before"]["events"] == 4
    halves = (1511544070, 1511561733)  # the first is kept, the second is not
    assert prepare(path, tmp_path / "half", time_range=halves).timestamps.tolist() == [1511544070]
    for wrong in ("", "nan", "inf", "soon"):
        path.write_text(f"1,2,3,pv,1511544070\n1,2,3,pv,{wrong}\n")
        with pytest.raises(LogError, match="line 2: the time is"):
            prepare(path, tmp_path / "wrong", format="taobao", time_range=halves)


def test_a_taken_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "set").mkdir()
    prepare(frame_of([(1, 1, 1)]), tmp_path / "set")  # an empty folder is free
    with pytest.raises(DatasetError, match="already exists"):
        prepare(tmp_path / "no log", tmp_path / "set")


KILLED = """
import os, signal, sys
import numpy as np
from linseqrec.data import dataset as module
from linseqrec.data.prepare import prepare

owner, name, calls = {"save": (np, "save", 2), "sync": (module, "_sync", 4),
                      "rename": (os, "rename", 1)}[sys.argv[1]]
function, count = getattr(owner, name), [0]

def deadly(*arguments, **options):
    count[0] += 1
    if count[0] == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)

setattr(owner, name, deadly)
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
    (left,) = folder.parent.iterdir()
    assert left.name.startswith(".set.partial-")
    if moment != "rename":  # by then it is complete, but for its name
        with pytest.raises(DatasetError, match=r"no card\.json"):
            Dataset.open(left)
    prepare(path, folder)
    Dataset.open(folder)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("linseqrec.data.dataset._sync", full)
    with pytest.raises(OSError, match="no space left"):
        prepare(frame_of([(1, 1, 1)]), tmp_path / "sets" / "set")
    assert not any((tmp_path / "sets").iterdir())


def test_movielens_sequences_are_the_published_ones(tmp_path):
    """A stable sort of the raw ratings gives the file that SASRec's line of papers uses."""
    raw = prepare(real_log("ml-1m/ratings.tsv.gz"), tmp_path / "raw")
    published = prepare(real_log("ml-1m/ml-1m.txt.gz"), tmp_path / "published")
    assert (raw.num_users, raw.num_items, raw.num_events) == (6040, 3416, 999_611)
    # The files number users and items differently. Users with a length of their own are the same
    # in both; they name items, which tell more users, until one renaming must carry all over.
    ours, theirs = sequences(raw), sequences(published)
    to_theirs = np.zeros(raw.num_items + 1, dtype=np.int32)
    for _ in range(4):
        named = np.isin(np.arange(published.num_items + 1), to_theirs)
        by_view = unique_keys({user: np.where(named[row], row, 0) for user, row in theirs.items()})
        views = unique_keys({user: to_theirs[row] for user, row in ours.items()})
        for view in views.keys() & by_view.keys():
            to_theirs[ours[views[view]]] = theirs[by_view[view]]
    assert sorted(to_theirs) == list(range(3417))
    renamed = collections.Counter(to_theirs[row].tobytes() for row in ours.values())
    assert renamed == collections.Counter(row.tobytes() for row in theirs.values())
    assert raw.card["ties"]["user_rate"] > 0.4  # so that the order of ties has been put to a test


def sequences(dataset):
    return dict(enumerate(np.split(np.asarray(dataset.items), dataset.offsets[1:-1])))


def unique_keys(rows):
    """Content to key, of rows whose content is nobody else's."""
    users = collections.defaultdict(list)
    for user, row in rows.items():
        users[row.astype(np.int32).tobytes()].append(user)
    return {content: found[0] for content, found in users.items() if len(found) == 1}
