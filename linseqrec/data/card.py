"""The card: what is known of a data set, measured from its arrays and carried with every result."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars as pl

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BLOCK_EVENTS = 4_000_000  # events examined at a time, so that the card costs constant memory
_BLOCK_BYTES = 1 << 22
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
    """Measures a data set.

    Args:
      items: int32 [E], ids from 1.
      timestamps: int64 [E], seconds, non-decreasing within a user.
      offsets: int64 [U + 1].
      num_items: N.
      source: Where the events come from, in words or as a file name.
      folds: int8 [E] or None (0 train, 1 validation, 2 test).
      order_only: The log has no time; timestamps are positions within the user's history.

    Returns:
      A JSON-able dict. Rates are shares of all events (or users) in [0, 1].
    """
    num_users, num_events = len(offsets) - 1, len(items)
    lengths = np.diff(offsets)
    ties, distinct_triples, distinct_pairs = 0, 0, 0
    for first, last in _user_blocks(offsets):
        begin, end = int(offsets[first]), int(offsets[last])
        item = np.asarray(items[begin:end], dtype=np.int64)
        time = np.asarray(timestamps[begin:end])
        user = np.repeat(np.arange(last - first), lengths[first:last])
        new = np.ones(end - begin, dtype=bool)  # the event opens a (user, time) group
        new[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
        ties += int(np.count_nonzero(~new))
        distinct_triples += _count_distinct((np.cumsum(new) - 1) * (num_items + 1) + item)
        distinct_pairs += _count_distinct(user * (num_items + 1) + item)
    last_event = offsets[1:][lengths >= 2] - 1
    tied_last = int(np.count_nonzero(timestamps[last_event] == timestamps[last_event - 1]))
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
            "users_with_tied_last": tied_last,
            "user_rate": _rate(tied_last, num_users),
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


def format_card(card: Mapping[str, Any]) -> str:
    """The card as a few lines to read."""
    rows = [("source", f"{card['source']}")]
    reader = card.get("reader")
    if reader:
        columns = ", ".join(f"{role} = {column}" for role, column in reader["columns"].items())
        rows.append(("reader", f"{reader['format']} ({columns})"))
        if reader["ignored_columns"]:
            rows.append(("ignored columns", ", ".join(reader["ignored_columns"])))
        rows.append(("times", reader["times"]))
        rows.append(("read", _format_counts(card["read"])))
        rows += [(step["filter"], _format_counts(step["after"])) for step in card["filters"]]
        if not card["filters"]:
            rows.append(("filters", "none"))
    rows.append(("data set", _format_counts(card["counts"])))
    lengths = (f"{name} {value:,.5g}" for name, value in card["lengths"].items())
    rows.append(("events per user", ", ".join(lengths)))
    time = card["time"]
    if time["order_only"]:
        rows.append(("time", "order only"))
    else:
        days = (time["last"] - time["first"]) / 86_400
        rows.append(("time", f"{time['first']} to {time['last']} s ({days:,.1f} days)"))
        ties = card["ties"]
        rows.append(
            ("ties", f"{ties['event_rate']:.1%} of events, {ties['user_rate']:.1%} of users' last")
        )
        rows.append(("duplicates", f"{card['duplicates']['rate']:.2%} of events"))
    rows.append(("repeats", f"{card['repeats']['rate']:.1%} of events"))
    if card["folds"]:
        rows.append(("folds", ", ".join(f"{name} {n:,}" for name, n in card["folds"].items())))
    rows += [(f"sha256 {name}", digest) for name, digest in card["sha256"].items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def differing_data(card: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two data sets, by the digests in their cards.

    Which log they were made from, packed or not, and the bytes of the Parquet files that hold the
    ids are no part of the data.

    Args:
      card: One's.
      other: The other's.

    Returns:
      Names of arrays, "user_ids" and "item_ids"; empty if the data are the same. The ids count
      where both cards have digests of what they say: those of a data set in memory, or written
      before there were any, do not.
    """
    one, two = card["sha256"], other["sha256"]
    arrays = [name for name in _ARRAYS if one.get(name) != two.get(name)]
    ids = [name for name in _IDS if name in one and name in two and one[name] != two[name]]
    return arrays + ids


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that make a data set."""
    found = {"python": platform.python_version()}
    for library in ("linseqrec", "numpy", "polars", "narwhals"):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "not installed"
    return found


def sha256_of_array(array: np.ndarray) -> str:
    """The SHA-256 of an array's elements, little-endian in C order (no header, no dtype)."""
    digest = hashlib.sha256()
    flat = array.reshape(-1)
    step = max(1, _BLOCK_BYTES // array.itemsize)
    for begin in range(0, len(flat), step):
        block = flat[begin : begin + step]
        digest.update(np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def sha256_of_texts(texts: "pl.Series") -> str:
    """The SHA-256 of texts: of their lengths in bytes, int64 little-endian, then of their UTF-8."""
    lengths = texts.str.len_bytes().to_numpy().astype("<i8")
    return hashlib.sha256(lengths.tobytes() + "".join(texts).encode()).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _user_blocks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of users whose events together are about `_BLOCK_EVENTS` (at least one user)."""
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


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in ("users", "items", "events"))
