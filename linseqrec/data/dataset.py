"""`Dataset`, a prepared log, and the dataset folder that stores it on disk.

A dataset folder holds these files:

items.npy         int32 [E]
timestamps.npy    int64 [E]
offsets.npy       int64 [U + 1]
folds.npy         int8 [E], only if the log has a fold column
user_ids.parquet  columns `index`, `id`: the log's own user ids, as text
item_ids.parquet  the same for items
card.json         counts, rates and digests (`card.py`)
"""

import dataclasses
import tokenize
from pathlib import Path
from typing import Any, cast

import numpy as np

from linseqrec.data import card as cards
from linseqrec.errors import UserError, first_line
from linseqrec.files import check_form, parse_json, sha256_of_array, sha256_of_file

_DTYPES: dict[str, np.dtype] = {
    "items": np.dtype(np.int32),
    "timestamps": np.dtype(np.int64),
    "offsets": np.dtype(np.int64),
    "folds": np.dtype(np.int8),
}
# Elements that one check reads at a time, so that a memory-mapped array never fills the memory.
_BLOCK = 1 << 22
_PREPARE_AGAIN = "prepare the data set again."
# What programs read of a card.
_CARD = {
    "arrays": {str: {"dtype": str, "shape": [int]}},
    "counts": {"users": int, "items": int, "events": int},
    "sha256": {str: str},
    "time": {"first": int, "last": int, "order_only": bool},
}


class DatasetError(UserError, ValueError):
    """The arrays are not a data set, or disagree with their card."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The events of all users, user after user, in time order within each user.

    Attributes:
      items: int32 [E], item ids from 1. Id 0 is padding and never occurs here.
      timestamps: int64 [E], seconds since the epoch of the log, non-decreasing within a user.
      offsets: int64 [U + 1]; the events of user u are `offsets[u]:offsets[u + 1]`.
      num_items: N; item ids run from 1 to N.
      card: Source, filters, counts, rates and SHA-256 digests of the data (see `card.py`).
      folds: int8 [E], the log's own split: 0 train, 1 validation, 2 test. None: the log has none.
      folder: The opened folder; None for a data set in memory.
    """

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    num_items: int
    card: dict[str, Any]
    folds: np.ndarray | None = None
    folder: Path | None = None

    @property
    def num_users(self) -> int:
        """U, the number of users."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """E, the number of events."""
        return len(self.items)

    @property
    def origin(self) -> int:
        """The smallest timestamp, in seconds; `Events.timestamps` count from it."""
        return int(self.card["time"]["first"])

    @classmethod
    def from_arrays(
        cls,
        items: Any,
        timestamps: Any,
        offsets: Any,
        num_items: int | None = None,
        *,
        source: str = "arrays",
        folds: Any = None,
        order_only: bool = False,
    ) -> "Dataset":
        """A data set in memory, with its card.

        Args:
          items: Integers [E] from 1 to N.
          timestamps: Integers [E], seconds, non-decreasing within a user.
          offsets: Integers [U + 1] from 0 to E, non-decreasing.
          num_items: N. None: the largest item id.
          source: Where the events come from, in words, for the card.
          folds: Integers [E] (0 train, 1 validation, 2 test) or None.
          order_only: The timestamps are positions: the log has no times.

        Returns:
          The data set; `folder` is None.

        Raises:
          DatasetError: The arrays are not a data set. The message says why.
        """
        inputs = {"items": items, "timestamps": timestamps, "offsets": offsets}
        if folds is not None:
            inputs["folds"] = folds
        arrays: dict[str, Any] = {name: _as_integers(name, value) for name, value in inputs.items()}
        if num_items is None:
            num_items = int(arrays["items"].max()) if len(arrays["items"]) else 0
        _check_structure(arrays, source)
        _check_contents(arrays, num_items, source)
        num_items = int(num_items)
        card = cards.make_card(**arrays, num_items=num_items, source=source, order_only=order_only)
        return cls(num_items=num_items, card=card, **arrays)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> "Dataset":
        """Opens a dataset folder, memory-mapped.

        Args:
          folder: A folder written by `prepare` or `write_dataset`.
          verify: Whether to read every array once, to compare its SHA-256 with the card and to
            check the ids and the order of the times. This takes about one second for 100 million
            events from a warm disk. False: check only files, types, sizes and offsets.

        Returns:
          The data set; its arrays are read-only.

        Raises:
          DatasetError: The folder holds no data set, or its arrays disagree with its card.
        """
        folder = Path(folder)
        card = _read_card(folder)
        arrays: dict[str, Any] = {}
        for name in card["arrays"]:
            path = folder / f"{name}.npy"
            try:
                arrays[name] = np.load(path, mmap_mode="r")
            except FileNotFoundError:
                raise _missing_file(path) from None
            # NumPy reads the header as Python's text.
            except (ValueError, OSError, EOFError, SyntaxError, tokenize.TokenError) as error:
                raise DatasetError(
                    f"{path} is not a readable .npy file ({error}): {_PREPARE_AGAIN}"
                ) from None
            declared, array = card["arrays"][name], arrays[name]
            if [str(array.dtype), list(array.shape)] != [declared["dtype"], declared["shape"]]:
                raise DatasetError(
                    f"{path} holds {array.dtype} {list(array.shape)}, but card.json says "
                    f"{declared['dtype']} {declared['shape']}: {_PREPARE_AGAIN}"
                )
        _check_structure(arrays, str(folder))
        counts = {
            "users": len(arrays["offsets"]) - 1,
            "items": card["counts"]["items"],
            "events": len(arrays["items"]),
        }
        if counts != card["counts"]:
            raise DatasetError(
                f"{folder}: card.json counts {card['counts']}, but the arrays hold {counts}: "
                f"{_PREPARE_AGAIN}"
            )
        if verify:
            for name, digest in card["sha256"].items():
                _check_sha256(folder, name, arrays.get(name), digest)
            _check_contents(arrays, counts["items"], str(folder))
            times, bounds = arrays["timestamps"], [card["time"]["first"], card["time"]["last"]]
            if len(times) and bounds != [int(times.min()), int(times.max())]:
                raise DatasetError(
                    f"{folder}: card.json says that the times run from {bounds[0]} to {bounds[1]}, "
                    f"but they run from {times.min()} to {times.max()}: {_PREPARE_AGAIN}"
                )
        return cls(num_items=counts["items"], card=card, folder=folder, **arrays)

    def item_ids(self) -> np.ndarray:
        """The log's own item ids, text [N + 1]; entry 0, padding, is the empty string.

        Of a data set in memory, which has none, the items' numbers as text.
        """
        if self.folder is None:
            return np.array(["", *map(str, range(1, self.num_items + 1))])
        return np.concatenate([[""], self._ids("item_ids")]).astype(np.str_)

    def user_ids(self) -> np.ndarray:
        """The log's own user ids, text [U]; of a data set in memory, the users' numbers as text."""
        if self.folder is None:
            return np.arange(self.num_users).astype(str)
        return self._ids("user_ids")

    def _ids(self, name: str) -> np.ndarray:
        import polars as pl  # here, because training should not import Polars

        path = cast(Path, self.folder) / f"{name}.parquet"
        expected = self.num_users if name == "user_ids" else self.num_items
        try:
            ids = pl.read_parquet(path, glob=False).sort("index")["id"].cast(pl.String, strict=True)
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = first_line(error)
            raise DatasetError(f"{path} cannot be read ({reason}): {_PREPARE_AGAIN}") from error
        if len(ids) != expected or ids.null_count():
            raise DatasetError(f"{path} does not hold {expected} ids: {_PREPARE_AGAIN}")
        return ids.to_numpy().astype(np.str_)


def _as_integers(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise DatasetError(
            f"{name} is an array of {array.dtype} {array.shape}: it must be integers with one axis."
        )
    limits = np.iinfo(_DTYPES[name])
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise DatasetError(
            f"{name} holds values from {array.min()} to {array.max()}: it must fit {limits.dtype}."
        )
    return np.ascontiguousarray(array, dtype=_DTYPES[name])


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    try:
        card = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(
            f"{folder} is no dataset folder: it has no card.json. Make one with "
            "`python -m launch.prepare --input=LOG --output=FOLDER`."
        ) from None
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}): {_PREPARE_AGAIN}") from None
    try:
        check_form(card, _CARD)
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}): {_PREPARE_AGAIN}") from None
    required = {"items", "timestamps", "offsets"}
    if not required <= set(card["arrays"]) <= set(_DTYPES):
        raise DatasetError(
            f"{path} names the arrays {sorted(card['arrays'])} instead of {sorted(required)} and "
            f"maybe folds: {_PREPARE_AGAIN}"
        )
    return card


def _check_structure(arrays: dict[str, Any], where: str) -> None:
    """Checks types, sizes and offsets, without reading any event."""
    for name, array in arrays.items():
        if array.dtype != _DTYPES[name] or array.ndim != 1:
            raise DatasetError(
                f"{where}: {name} is {array.dtype} {array.shape}: it must be {_DTYPES[name]} with "
                "one axis."
            )
    num_events, offsets = len(arrays["items"]), arrays["offsets"]
    for name in ("timestamps", "folds"):
        if name in arrays and len(arrays[name]) != num_events:
            raise DatasetError(
                f"{where}: {num_events} items, but {len(arrays[name])} {name}: both arrays must "
                "have one entry per event."
            )
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != num_events:
        ends = f"run from {offsets[0]} to {offsets[-1]}" if len(offsets) else "are empty"
        raise DatasetError(
            f"{where}: offsets {ends}: they must run from 0 to {num_events}, the number of events."
        )
    decreases = np.flatnonzero(np.diff(offsets) < 0)
    if len(decreases):
        raise DatasetError(
            f"{where}: offsets decrease after user {decreases[0]}: they must never decrease."
        )


def _check_contents(arrays: dict[str, Any], num_items: int, where: str) -> None:
    """Checks the ids, the order of the times and their span, a block of events at a time."""
    items, timestamps, offsets = arrays["items"], arrays["timestamps"], arrays["offsets"]
    lowest, highest = 0, 0
    for begin in range(0, len(items), _BLOCK):
        block = items[begin : begin + _BLOCK]
        wrong = np.flatnonzero((block < 1) | (block > num_items))
        if len(wrong):
            event = begin + int(wrong[0])
            raise DatasetError(
                f"{where}: event {event} has item {items[event]}; ids run from 1 to {num_items}."
            )
        times = timestamps[begin : begin + _BLOCK + 1]
        lowest = min(int(times.min()), lowest) if begin else int(times.min())
        highest = max(int(times.max()), highest) if begin else int(times.max())
        # Time may decrease only at the first event of a user.
        decreases = begin + 1 + np.flatnonzero(np.diff(times) < 0)
        decreases = decreases[offsets[np.searchsorted(offsets, decreases)] != decreases]
        if len(decreases):
            user = int(np.searchsorted(offsets, decreases[0], side="right")) - 1
            raise DatasetError(
                f"{where}: timestamps of user {user} decrease at event {decreases[0]}. Sort the "
                "events by user, time and row of the log."
            )
        if "folds" in arrays:
            folds = arrays["folds"][begin : begin + _BLOCK]
            unknown = np.flatnonzero((folds < 0) | (folds > 2))
            if len(unknown):
                event = begin + int(unknown[0])
                raise DatasetError(
                    f"{where}: event {event} has fold {folds[unknown[0]]}: folds must be 0 (train),"
                    " 1 (validation) or 2 (test)."
                )
    if highest - lowest > np.iinfo(np.int32).max:
        raise DatasetError(
            f"{where}: timestamps span {highest - lowest} s: at most 2147483647 s (int32, 68 years)"
            " fit. Drop the earliest or latest events."
        )


def _check_sha256(folder: Path, name: str, array: np.ndarray | None, declared: str) -> None:
    if array is not None:
        name, actual = f"{name}.npy", sha256_of_array(array)
    elif name in ("user_ids.parquet", "item_ids.parquet"):
        try:
            actual = sha256_of_file(folder / name)
        except FileNotFoundError:
            raise _missing_file(folder / name) from None
    else:
        # The digests of the log file and of the id texts: the folder holds no file with them.
        return
    if actual != declared:
        raise DatasetError(
            f"{folder / name} is not the file that card.json describes (sha256 {actual[:12]}… "
            f"instead of {declared[:12]}…). It was changed or damaged: {_PREPARE_AGAIN}"
        )


def _missing_file(path: Path) -> DatasetError:
    return DatasetError(f"{path} is missing, but card.json names it: {_PREPARE_AGAIN}")
