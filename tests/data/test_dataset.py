"""The dataset folder and its card: `open` returns the written data and refuses damaged folders."""

import collections
import hashlib
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec import files
from linseqrec.data import card as cards
from linseqrec.data.dataset import Dataset, DatasetError
from linseqrec.data.writing import format_card, write_dataset

ITEMS, TIMES, OFFSETS = [3, 1, 1, 2, 3], [7, 7, 9, 5, 5], [0, 3, 5]


@pytest.fixture
def folder(tmp_path):
    dataset = Dataset.from_arrays(ITEMS, TIMES, OFFSETS, source="test", folds=[0, 0, 2, 0, 1])
    write_dataset(tmp_path / "set", dataset, ["a", "b"], ["x", "y", "z"])
    return tmp_path / "set"


def test_open_returns_the_written_data_set(folder):
    dataset = Dataset.open(folder)
    assert (dataset.num_users, dataset.num_items, dataset.num_events) == (2, 3, 5)
    assert dataset.items.tolist() == ITEMS and dataset.items.dtype == np.int32
    assert dataset.timestamps.tolist() == TIMES and dataset.timestamps.dtype == np.int64
    assert dataset.offsets.tolist() == OFFSETS and dataset.offsets.dtype == np.int64
    assert dataset.folds.tolist() == [0, 0, 2, 0, 1] and dataset.folds.dtype == np.int8
    assert dataset.origin == 5 and dataset.folder == folder
    assert dataset.user_ids().tolist() == ["a", "b"]
    assert dataset.item_ids().tolist() == ["", "x", "y", "z"]
    assert isinstance(dataset.items, np.memmap) and not dataset.items.flags.writeable
    assert {entry.name for entry in folder.parent.iterdir()} == {"set"}


def test_a_folder_s_name_is_no_pattern_for_the_names_of_others(folder):
    own = folder.rename(folder.with_name("set[1]"))
    others = Dataset.from_arrays(ITEMS, TIMES, OFFSETS)
    write_dataset(folder.with_name("set1"), others, ["c", "d"], ["p", "q", "r"])
    dataset = Dataset.open(own)
    assert dataset.user_ids().tolist() == ["a", "b"]
    assert dataset.item_ids().tolist() == ["", "x", "y", "z"]


def test_a_folder_holds_the_documented_files(folder):
    assert {entry.name for entry in folder.iterdir()} == {
        "items.npy",
        "timestamps.npy",
        "offsets.npy",
        "folds.npy",
        "user_ids.parquet",
        "item_ids.parquet",
        "card.json",
    }
    assert pl.read_parquet(folder / "item_ids.parquet").rows() == [(1, "x"), (2, "y"), (3, "z")]
    assert pl.read_parquet(folder / "user_ids.parquet").rows() == [(0, "a"), (1, "b")]


def test_an_existing_data_set_is_not_overwritten(folder):
    with pytest.raises(DatasetError, match=r"set already exists\. Remove it, or choose another"):
        write_dataset(folder, Dataset.open(folder), ["a", "b"], ["x", "y", "z"])


def test_each_user_and_item_needs_one_id(tmp_path):
    dataset = Dataset.from_arrays(ITEMS, TIMES, OFFSETS)
    message = "user_ids holds 1 ids, but the data set has 2 users: pass one id per user"
    with pytest.raises(DatasetError, match=message):
        write_dataset(tmp_path / "set", dataset, ["a"], ["x", "y", "z"])
    message = "item_ids holds 2 ids, but the data set has 3 items: pass one id per item"
    with pytest.raises(DatasetError, match=message):
        write_dataset(tmp_path / "set", dataset, ["a", "b"], ["x", "y"])
    assert not any(tmp_path.iterdir())


def test_the_ids_of_a_data_set_in_memory_are_its_numbers():
    dataset = Dataset.from_arrays(ITEMS, TIMES, OFFSETS)
    assert dataset.user_ids().tolist() == ["0", "1"]
    assert dataset.item_ids().tolist() == ["", "1", "2", "3"]


# Each of these functions returns a function that damages a dataset folder.


def change_array(name, change):
    def damage(folder):
        array = np.load(folder / f"{name}.npy").copy()
        np.save(folder / f"{name}.npy", change(array))

    return damage


def change_card(change):
    def damage(folder):
        card = json.loads((folder / "card.json").read_text())
        change(card)
        (folder / "card.json").write_text(json.dumps(card))

    return damage


def flip_a_byte(name):
    def damage(folder):
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)

    return damage


def truncate(name):
    def damage(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-4])

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


# The damage, the error message, and whether only `verify=True` finds the damage.
DAMAGED = {
    "no card": (remove("card.json"), "no dataset folder: it has no card.json", False),
    "no array": (remove("timestamps.npy"), "timestamps.npy is missing, but card.json names", False),
    "no ids": (remove("item_ids.parquet"), "item_ids.parquet is missing.*prepare the", True),
    "card of other types": (
        change_card(lambda card: card.update(arrays=[])),
        r"card.json is damaged \(arrays is a list, not an object\): prepare",
        False,
    ),
    "edited times": (
        change_card(lambda card: card["time"].update(first=4)),
        "card.json says that the times run from 4 to 9, but they run from 5 to 9: prepare",
        True,
    ),
    "truncated card": (truncate("card.json"), "card.json is not JSON .*: prepare the data", False),
    "truncated array": (truncate("items.npy"), "items.npy is not a readable .npy file", False),
    "flipped item": (flip_a_byte("items.npy"), "items.npy is not the file that card.json", True),
    "flipped time": (flip_a_byte("timestamps.npy"), "timestamps.npy is not the file", True),
    "flipped fold": (flip_a_byte("folds.npy"), "folds.npy is not the file .*damaged: prep", True),
    "flipped id": (flip_a_byte("user_ids.parquet"), "user_ids.parquet is not the file", True),
    "another type": (
        change_array("items", lambda a: a.astype(np.int64)),
        r"items.npy holds int64 \[5\], but card.json says int32",
        False,
    ),
    "another length": (
        change_array("items", lambda a: a[:-1]),
        r"\[4\], but card.json says int32 \[5\]: prepare the data set again",
        False,
    ),
    "other offsets": (
        change_array("offsets", lambda a: a[[0, 2, 1]]),
        "offsets run from 0 to 3: they must run from 0 to 5",
        False,
    ),
    "other counts": (
        change_card(lambda card: card["counts"].update(users=3)),
        "card.json counts {'users': 3.*but the arrays hold {'users': 2",
        False,
    ),
    "fewer items": (
        change_card(lambda card: card["counts"].update(items=2)),
        "event 0 has item 3; ids run from 1 to 2",
        True,
    ),
    "no digests": (
        change_card(lambda card: card.pop("sha256")),
        r"card.json is damaged \(it has no sha256\)",
        False,
    ),
    "no items": (
        change_card(lambda card: card["arrays"].pop("items")),
        r"names the arrays \['folds', 'offsets', 'timestamps'\] instead of \['items', ",
        False,
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_folder_that_disagrees_with_its_card_is_refused(folder, case):
    damage, message, needs_verification = DAMAGED[case]
    damage(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        Dataset.open(folder)
    assert str(folder) in str(caught.value)
    if needs_verification:
        Dataset.open(folder, verify=False)
    else:
        with pytest.raises(DatasetError, match=message):
            Dataset.open(folder, verify=False)


INVALID_ARRAYS = {
    "padding item": (([0, 1], [1, 1], [0, 2]), "event 0 has item 0; ids run from 1 to 1"),
    "item beyond N": (([1, 5], [1, 1], [0, 2], 4), "event 1 has item 5; ids run from 1 to 4"),
    "decreasing time": (
        ([1, 1, 1], [1, 5, 4], [0, 1, 3]),
        "timestamps of user 1 decrease at event 2. Sort the events",
    ),
    "time beyond int32": (
        ([1, 1], [0, 2**31], [0, 1, 2]),
        "timestamps span 2147483648 s: at most 2147483647 s",
    ),
    "decreasing offsets": (([1, 1], [1, 1], [0, 2, 1, 2]), "offsets decrease after user 1"),
    "offsets end early": (([1, 1], [1, 1], [0, 1]), "from 0 to 1: they must run from 0 to 2"),
    "offsets begin late": (([1, 1], [1, 1], [1, 2]), "from 1 to 2: they must run from 0 to 2"),
    "no offsets": (([], [], []), "offsets are empty: they must run from 0 to 0"),
    "fewer times": (([1, 1], [1], [0, 2]), "2 items, but 1 timestamps"),
    "float items": (
        ([1.0, 2.0], [1, 1], [0, 2]),
        r"items is an array of float64 \(2,\): it must be integers with one axis",
    ),
    "two axes": (([[1, 1]], [1, 1], [0, 2]), r"items is an array of int64 \(1, 2\): it must be"),
    "item beyond int32": (
        ([1, 2**31], [1, 1], [0, 2]),
        "items holds values from 1 to 2147483648: it must fit int32",
    ),
}


@pytest.mark.parametrize("case", INVALID_ARRAYS)
@pytest.mark.parametrize("block", [1, 2, 1 << 22])
def test_invalid_arrays_are_refused_in_blocks_of_every_size(case, block, monkeypatch):
    monkeypatch.setattr("linseqrec.data.dataset._BLOCK", block)
    arguments, message = INVALID_ARRAYS[case]
    with pytest.raises(DatasetError, match=message):
        Dataset.from_arrays(*arguments)


def test_unknown_or_missing_folds_are_refused():
    message = r"event 1 has fold 3: folds must be 0 \(train\), 1 \(validation\) or 2 \(test\)"
    with pytest.raises(DatasetError, match=message):
        Dataset.from_arrays([1, 1], [1, 1], [0, 2], folds=[0, 3])
    with pytest.raises(DatasetError, match="2 items, but 1 folds"):
        Dataset.from_arrays([1, 1], [1, 1], [0, 2], folds=[0])


def test_extreme_data_sets_are_accepted():
    """Decreasing time between users, negative times, the longest span, a user without events."""
    dataset = Dataset.from_arrays([1, 2], [2**31 - 5, -4], [0, 1, 1, 2])
    assert dataset.origin == -4 and dataset.num_users == 3
    empty = Dataset.from_arrays([], [], [0])
    assert (empty.num_users, empty.num_items, empty.num_events) == (0, 0, 0)


HISTORIES = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=8),
    min_size=1,
    max_size=8,
)


@settings(max_examples=80, deadline=None)
@given(histories=HISTORIES, block=st.sampled_from([1, 5, 1 << 22]))
def test_the_card_equals_counts_from_a_loop_over_events(histories, block):
    histories = [sorted(history, key=lambda event: event[1]) for history in histories]
    events = [event for history in histories for event in history]
    offsets = np.cumsum([0, *map(len, histories)])
    previous, cards._BLOCK_EVENTS = cards._BLOCK_EVENTS, block
    try:
        card = Dataset.from_arrays(*zip(*events, strict=True), offsets, 4).card
    finally:
        cards._BLOCK_EVENTS = previous

    ties = ascending = repeats = duplicates = tied_last = 0
    for history in histories:
        seen = collections.Counter()
        for index, (item, time) in enumerate(history):
            tied = index > 0 and history[index - 1][1] == time
            ties += tied
            ascending += tied and item > history[index - 1][0]
            repeats += seen[item] > 0
            duplicates += seen[item, time] > 0
            seen.update([item, (item, time)])
        tied_last += len(history) > 1 and history[-1][1] == history[-2][1]
    lengths = [len(history) for history in histories]
    assert card["counts"] == {"users": len(histories), "items": 4, "events": len(events)}
    assert (card["ties"]["events"], card["ties"]["users_with_tied_last"]) == (ties, tied_last)
    assert card["ties"]["ascending_rate"] == (ascending / ties if ties else 0)
    assert card["ties"]["user_rate"] == tied_last / len(histories)
    assert card["duplicates"] == {"events": duplicates, "rate": duplicates / len(events)}
    assert card["repeats"] == {"events": repeats, "rate": repeats / len(events)}
    times = [time for _, time in events]
    assert (card["time"]["first"], card["time"]["last"]) == (min(times), max(times))
    assert card["lengths"]["min"] == min(lengths) and card["lengths"]["max"] == max(lengths)
    assert card["lengths"]["mean"] == pytest.approx(np.mean(lengths))
    assert card["lengths"]["50%"] == np.median(lengths)
    assert card["lengths"]["5%"] <= card["lengths"]["25%"] <= card["lengths"]["95%"]
    json.dumps(card)


def test_digests_cover_the_elements_and_the_texts(folder, tmp_path):
    card = Dataset.open(folder).card
    expected = hashlib.sha256(np.array(ITEMS, "<i4").tobytes()).hexdigest()
    assert card["sha256"]["items"] == expected
    ids = (folder / "user_ids.parquet").read_bytes()
    assert card["sha256"]["user_ids.parquet"] == hashlib.sha256(ids).hexdigest()
    hashed = np.array([1, 1], "<i8").tobytes() + b"ab"
    assert card["sha256"]["user_ids"] == hashlib.sha256(hashed).hexdigest()
    hashed = np.array([2, 0], "<i8").tobytes() + "é".encode()
    assert files.sha256_of_texts(pl.Series(["é", ""])) == hashlib.sha256(hashed).hexdigest()
    large = np.arange(3_000_001, dtype=np.int64)  # several blocks, the last one not full
    assert files.sha256_of_array(large) == hashlib.sha256(large.tobytes()).hexdigest()
    assert files.sha256_of_array(large.astype(">i8")) == files.sha256_of_array(large)


def test_format_card_shows_counts_and_rates():
    dataset = Dataset.from_arrays(ITEMS, TIMES, OFFSETS, source="a test", folds=[0, 0, 2, 0, 1])
    lines = dict(line.split("  ", 1) for line in format_card(dataset.card).splitlines())
    lines = {name: text.strip() for name, text in lines.items()}
    assert lines["source"] == "a test"
    assert lines["data set"] == "2 users, 3 items, 5 events"
    ascending = "50% of them in ascending order of items"
    assert lines["ties"] == f"40.0% of events ({ascending}), 50.0% of users' last"
    assert lines["repeats"] == "20.0% of events"
    assert lines["folds"] == "train 3, validation 1, test 1"
    assert lines["time"] == "1970-01-01 00:00:05 to 1970-01-01 00:00:09 UTC (5 to 9 s, 0.0 days)"
    sorted_by_item = Dataset.from_arrays([1, 2, 3], [7, 7, 7], [0, 3])
    ascending = "100% of them in ascending order of items; see --tied_order"
    assert f"66.7% of events ({ascending}), " in format_card(sorted_by_item.card)
    order = Dataset.from_arrays([1], [0], [0, 1], order_only=True)
    assert "order only" in format_card(order.card)


@pytest.mark.parametrize("content", ["no Parquet", "too few", "other columns"])
def test_ids_that_cannot_be_read_are_refused(content, folder):
    path = folder / "user_ids.parquet"
    if content == "no Parquet":
        path.write_bytes(b"PAR1")
    else:
        column = "id" if content == "too few" else "name"
        pl.DataFrame({"index": [0], column: ["a"]}).write_parquet(path)
    with pytest.raises(DatasetError, match="user_ids.parquet .*: prepare the data set again"):
        Dataset.open(folder, verify=False).user_ids()


@pytest.mark.filterwarnings("ignore:Data type alias")  # One of the flips makes it.
def test_a_flipped_bit_in_a_header_is_no_crash(folder):
    path = folder / "items.npy"
    good = path.read_bytes()
    refused = 0
    for place in range(8 * 128):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            Dataset.open(folder, verify=False)
        except DatasetError as error:
            assert "items.npy" in str(error) or "items" in str(error)
            refused += 1
    assert refused > 300


def test_a_link_to_an_empty_folder_may_be_written(folder, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_dataset(tmp_path / "link", Dataset.open(folder), ["a", "b"], ["x", "y", "z"])
    assert (tmp_path / "link").is_symlink()
    assert Dataset.open(tmp_path / "link").items.tolist() == ITEMS
