"""The dataset folder and its card: what is written is what opens, and nothing else does."""

import collections
import hashlib
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data import card as cards
from linseqrec.data.dataset import Dataset, DatasetError, write_dataset

ITEMS, TIMES, OFFSETS = [3, 1, 1, 2, 3], [7, 7, 9, 5, 5], [0, 3, 5]


@pytest.fixture
def folder(tmp_path):
    dataset = Dataset.from_arrays(ITEMS, TIMES, OFFSETS, source="test", folds=[0, 0, 2, 0, 1])
    write_dataset(tmp_path / "set", dataset, ["a", "b"], ["x", "y", "z"])
    return tmp_path / "set"


def test_what_is_written_opens(folder):
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


def test_the_files_are_those_of_the_design(folder):
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


def test_a_folder_is_not_written_twice(folder):
    with pytest.raises(DatasetError, match="already exists"):
        write_dataset(folder, Dataset.open(folder), ["a", "b"], ["x", "y", "z"])


def test_ids_must_be_one_each(tmp_path):
    dataset = Dataset.from_arrays(ITEMS, TIMES, OFFSETS)
    with pytest.raises(DatasetError, match="1 user ids were given for 2 users"):
        write_dataset(tmp_path / "set", dataset, ["a"], ["x", "y", "z"])
    with pytest.raises(DatasetError, match="2 item ids were given for 3 items"):
        write_dataset(tmp_path / "set", dataset, ["a", "b"], ["x", "y"])
    with pytest.raises(DatasetError, match="no original ids"):
        dataset.user_ids()
    assert not any(tmp_path.iterdir())


def replace(name, change):
    """Rewrites one array of a folder."""

    def damage(folder):
        array = np.load(folder / f"{name}.npy").copy()
        np.save(folder / f"{name}.npy", change(array))

    return damage


def rewrite_card(change):
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


def cut(name):
    def damage(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-4])

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


# What befell the folder, what the message says, and whether only a full check can notice.
DAMAGED = {
    "no card": (remove("card.json"), "no dataset folder: it has no card.json", False),
    "no array": (remove("timestamps.npy"), "timestamps.npy is missing", False),
    "no ids": (remove("item_ids.parquet"), "item_ids.parquet is missing", True),
    "cut card": (cut("card.json"), "card.json is no JSON", False),
    "cut array": (cut("items.npy"), "items.npy is no readable .npy file", False),
    "flipped item": (flip_a_byte("items.npy"), "items.npy is not what card.json describes", True),
    "flipped time": (flip_a_byte("timestamps.npy"), "timestamps.npy is not what", True),
    "flipped fold": (flip_a_byte("folds.npy"), "folds.npy is not what card.json", True),
    "flipped id": (flip_a_byte("user_ids.parquet"), "user_ids.parquet is not what", True),
    "another type": (replace("items", lambda a: a.astype(np.int64)), "int64 .* says int32", False),
    "another length": (replace("items", lambda a: a[:-1]), r"\[4\].* says int32 \[5\]", False),
    "other offsets": (replace("offsets", lambda a: a[[0, 2, 1]]), "run from 0 to 5", False),
    "other counts": (
        rewrite_card(lambda c: c["counts"].update(users=3)),
        "card.json counts",
        False,
    ),
    "fewer items": (
        rewrite_card(lambda c: c["counts"].update(items=2)),
        "event 0 has item 3; ids run from 1 to 2",
        True,
    ),
    "no digests": (rewrite_card(lambda c: c.pop("sha256")), r"lacks \['sha256'\]", False),
    "no items": (rewrite_card(lambda c: c["arrays"].pop("items")), "names arrays", False),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_folder_that_disagrees_with_its_card_is_refused(folder, case):
    damage, message, only_verified = DAMAGED[case]
    damage(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        Dataset.open(folder)
    assert str(folder) in str(caught.value)
    if only_verified:
        Dataset.open(folder, verify=False)
    else:
        with pytest.raises(DatasetError, match=message):
            Dataset.open(folder, verify=False)


NO_DATASET = {
    "padding item": (([0, 1], [1, 1], [0, 2]), "event 0 has item 0; ids run from 1 to 1"),
    "item beyond N": (([1, 5], [1, 1], [0, 2], 4), "event 1 has item 5; ids run from 1 to 4"),
    "time falls": (([1, 1, 1], [1, 5, 4], [0, 1, 3]), "user 1 decrease at event 2"),
    "time beyond int32": (([1, 1], [0, 2**31], [0, 1, 2]), "span 2147483648 s"),
    "offsets fall": (([1, 1], [1, 1], [0, 2, 1, 2]), "offsets decrease after user 1"),
    "offsets end early": (([1, 1], [1, 1], [0, 1]), "offsets must run from 0 to 2"),
    "offsets begin late": (([1, 1], [1, 1], [1, 2]), "offsets must run from 0 to 2"),
    "no offsets": (([], [], []), "offsets must run from 0 to 0"),
    "fewer times": (([1, 1], [1], [0, 2]), "2 items, but 1 timestamps"),
    "float items": (([1.0, 2.0], [1, 1], [0, 2]), "items must be integers"),
    "two axes": (([[1, 1]], [1, 1], [0, 2]), "items must be integers"),
    "item beyond int32": (([1, 2**31], [1, 1], [0, 2]), "items does not fit int32"),
}


@pytest.mark.parametrize("case", NO_DATASET)
@pytest.mark.parametrize("block", [1, 2, 1 << 22])
def test_arrays_that_are_no_data_set_are_refused(case, block, monkeypatch):
    monkeypatch.setattr("linseqrec.data.dataset._BLOCK", block)
    arguments, message = NO_DATASET[case]
    with pytest.raises(DatasetError, match=message):
        Dataset.from_arrays(*arguments)


def test_folds_are_zero_to_two():
    with pytest.raises(DatasetError, match="folds must be 0, 1 or 2"):
        Dataset.from_arrays([1, 1], [1, 1], [0, 2], folds=[0, 3])
    with pytest.raises(DatasetError, match="2 items, but 1 folds"):
        Dataset.from_arrays([1, 1], [1, 1], [0, 2], folds=[0])


def test_limits_that_just_fit():
    """A fall in time between users, negative times, the widest span, a user without events."""
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
def test_the_card_says_what_the_events_are(histories, block):
    histories = [sorted(history, key=lambda event: event[1]) for history in histories]
    events = [event for history in histories for event in history]
    offsets = np.cumsum([0, *map(len, histories)])
    previous, cards._BLOCK_EVENTS = cards._BLOCK_EVENTS, block
    try:
        card = Dataset.from_arrays(*zip(*events, strict=True), offsets, 4).card
    finally:
        cards._BLOCK_EVENTS = previous

    ties = repeats = duplicates = tied_last = 0
    for history in histories:
        seen = collections.Counter()
        for index, (item, time) in enumerate(history):
            ties += index > 0 and history[index - 1][1] == time
            repeats += seen[item] > 0
            duplicates += seen[item, time] > 0
            seen.update([item, (item, time)])
        tied_last += len(history) > 1 and history[-1][1] == history[-2][1]
    lengths = [len(history) for history in histories]
    assert card["counts"] == {"users": len(histories), "items": 4, "events": len(events)}
    assert (card["ties"]["events"], card["ties"]["users_with_tied_last"]) == (ties, tied_last)
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


def test_digests_are_of_the_elements(folder, tmp_path):
    card = Dataset.open(folder).card
    expected = hashlib.sha256(np.array(ITEMS, "<i4").tobytes()).hexdigest()
    assert card["sha256"]["items"] == expected
    ids = (folder / "user_ids.parquet").read_bytes()
    assert card["sha256"]["user_ids.parquet"] == hashlib.sha256(ids).hexdigest()
    said = np.array([1, 1], "<i8").tobytes() + b"ab"
    assert card["sha256"]["user_ids"] == hashlib.sha256(said).hexdigest()
    said = np.array([2, 0], "<i8").tobytes() + "é".encode()
    assert cards.sha256_of_texts(pl.Series(["é", ""])) == hashlib.sha256(said).hexdigest()
    large = np.arange(3_000_001, dtype=np.int64)  # more than one block, and a part
    assert cards.sha256_of_array(large) == hashlib.sha256(large.tobytes()).hexdigest()
    assert cards.sha256_of_array(large.astype(">i8")) == cards.sha256_of_array(large)


def test_the_card_reads_well():
    dataset = Dataset.from_arrays(ITEMS, TIMES, OFFSETS, source="a test", folds=[0, 0, 2, 0, 1])
    lines = dict(line.split("  ", 1) for line in cards.format_card(dataset.card).splitlines())
    lines = {name: text.strip() for name, text in lines.items()}
    assert lines["source"] == "a test"
    assert lines["data set"] == "2 users, 3 items, 5 events"
    assert lines["ties"] == "40.0% of events, 50.0% of users' last"
    assert lines["repeats"] == "20.0% of events"
    assert lines["folds"] == "train 3, validation 1, test 1"
    assert lines["time"] == "5 to 9 s (0.0 days)"
    order = Dataset.from_arrays([1], [0], [0, 1], order_only=True)
    assert "order only" in cards.format_card(order.card)
