"""The card: counts, rates and digests of a data set, stored beside every result."""

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from linseqrec.files import sha256_of_array

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# The card reads the arrays in blocks, so that its memory does not grow with the data set.
_BLOCK_EVENTS = 4_000_000
_ARRAYS = ("items", "timestamps", "offsets", "folds")
_IDS = ("user_ids", "item_ids")


def make_card(
    items: np.ndarray,
    timestamps: np.ndarray,
    offsets: np.ndarray,
    num_items: int,
    *,
    source: str,
    folds: np.ndarray | None = None,
    order_only: bool = False,
) -> dict[str, Any]:
    """The card of a data set, as a dict that JSON can store.

    Args:
      items: int32 [E], ids from 1.
      timestamps: int64 [E], seconds, non-decreasing within a user.
      offsets: int64 [U + 1]; the events of user u are `offsets[u]:offsets[u + 1]`.
      num_items: N.
      source: Where the events come from, in words or as a file name.
      folds: int8 [E] (0 train, 1 validation, 2 test) or None.
      order_only: The log has no times; timestamps are positions within the user's history.

    Returns:
      Sizes, history lengths, rates, digests and library versions. A rate is a share of all events,
      or of all users, in [0, 1]:

      - ties: events with the time of the same user's event before them; users whose last two events
        have the same time. "ascending_rate" is the share of the tied events whose item number is
        larger than that of the event before: a half, if their order says nothing.
      - duplicates: events that repeat an earlier event's user, item and time.
      - repeats: events that repeat an earlier event's user and item.
    """
    num_users, num_events = len(offsets) - 1, len(items)
    lengths = np.diff(offsets)
    ties, ascending, distinct_triples, distinct_pairs = 0, 0, 0, 0
    for first, last in _user_blocks(offsets):
        begin, end = int(offsets[first]), int(offsets[last])
        item = np.asarray(items[begin:end], dtype=np.int64)
        time = np.asarray(timestamps[begin:end])
        user = np.repeat(np.arange(last - first), lengths[first:last])
        # The first event of each (user, time) pair. Events of one pair are contiguous.
        is_first = np.ones(end - begin, dtype=bool)
        is_first[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
        ties += int(np.count_nonzero(~is_first))
        ascending += int(np.count_nonzero(~is_first[1:] & (item[1:] > item[:-1])))
        distinct_triples += _count_distinct((np.cumsum(is_first) - 1) * (num_items + 1) + item)
        distinct_pairs += _count_distinct(user * (num_items + 1) + item)
    last_event = offsets[1:][lengths >= 2] - 1
    users_with_tied_last = int(
        np.count_nonzero(timestamps[last_event] == timestamps[last_event - 1])
    )
    first_time = int(timestamps.min()) if num_events else 0
    last_time = int(timestamps.max()) if num_events else 0
    arrays = {"items": items, "timestamps": timestamps, "offsets": offsets}
    if folds is not None:
        arrays["folds"] = folds
    return {
        "source": source,
        "counts": {"users": num_users, "items": int(num_items), "events": num_events},
        "lengths": {
            "min": int(lengths.min()),
            **{
                f"{100 * q:g}%": float(value)
                for q, value in zip(QUANTILES, np.quantile(lengths, QUANTILES), strict=True)
            },
            "max": int(lengths.max()),
            "mean": num_events / num_users,
        }
        if num_users
        else {},
        "ties": {
            "events": ties,
            "event_rate": _rate(ties, num_events),
            "ascending_rate": _rate(ascending, ties),
            "users_with_tied_last": users_with_tied_last,
            "user_rate": _rate(users_with_tied_last, num_users),
        },
        "duplicates": {
            "events": num_events - distinct_triples,
            "rate": _rate(num_events - distinct_triples, num_events),
        },
        "repeats": {
            "events": num_events - distinct_pairs,
            "rate": _rate(num_events - distinct_pairs, num_events),
        },
        "time": {
            "first": first_time,
            "last": last_time,
            "unit": "seconds",
            "utc": None if order_only else [utc(first_time), utc(last_time)],
            "order_only": order_only,
        },
        "folds": None
        if folds is None
        else {
            name: int(np.count_nonzero(folds == code))
            for code, name in enumerate(("train", "validation", "test"))
        },
        "arrays": {
            name: {"dtype": str(array.dtype), "shape": list(array.shape)}
            for name, array in arrays.items()
        },
        "sha256": {name: sha256_of_array(array) for name, array in arrays.items()},
        "versions": versions(),
    }


def utc(seconds: int) -> str:
    """The date and time of seconds since 1970, in UTC: "2024-01-31 23:59:59"."""
    return str(np.datetime64(seconds, "s")).replace("T", " ")


def differing_data(card: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the arrays and ids that differ between two data sets; empty if they are equal.

    The function compares the digests in the cards. It ignores the digests of the log file and of
    the Parquet files: a compressed log, or another version of Polars, changes their bytes without
    changing the data.

    Args:
      card: The card of one data set.
      other: The card of the other data set.

    Returns:
      Names of arrays, "user_ids" and "item_ids". The ids are compared only if both cards hold
      their digests. A data set in memory has none, and older cards have none.
    """
    digests, others = card["sha256"], other["sha256"]
    arrays = [name for name in _ARRAYS if digests.get(name) != others.get(name)]
    ids = [
        name
        for name in _IDS
        if name in digests and name in others and digests[name] != others[name]
    ]
    return arrays + ids


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that prepare a data set."""
    version_of = {"python": platform.python_version()}
    for library in ("linseqrec", "numpy", "polars", "narwhals"):
        try:
            version_of[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            version_of[library] = "not installed"
    return version_of


def _user_blocks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of users with at most `_BLOCK_EVENTS` events, or of one user."""
    first, num_users = 0, len(offsets) - 1
    while first < num_users:
        last = int(np.searchsorted(offsets, offsets[first] + _BLOCK_EVENTS, side="right")) - 1
        last = min(max(last, first + 1), num_users)
        yield first, last
        first = last


def _count_distinct(keys: np.ndarray) -> int:
    keys = np.sort(keys)
    return int(np.count_nonzero(np.diff(keys))) + (len(keys) > 0)


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
