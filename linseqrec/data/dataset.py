"""The dataset folder: a prepared log as memory-mapped arrays beside its card.

items.npy        int32 [E]      timestamps.npy  int64 [E]      offsets.npy  int64 [U + 1]
folds.npy        int8 [E], only where the log brought its own split
item_ids.parquet, user_ids.parquet    columns `index`, `id`: original ids, as text
card.json        what is known of the data (`card.py`); written last
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from linseqrec.data import card as cards
from linseqrec.errors import UserError

if TYPE_CHECKING:
    import polars as pl

_DTYPES: dict[str, np.dtype] = {
    "items": np.dtype(np.int32),
    "timestamps": np.dtype(np.int64),
    "offsets": np.dtype(np.int64),
    "folds": np.dtype(np.int8),
}
_BLOCK = 1 << 22  # elements checked at a time: constant memory on a memory-mapped array


Ids: TypeAlias = "Sequence[str] | pl.Series"


class DatasetError(UserError, ValueError):
    """Arrays that are no data set, or that disagree with their card."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Every user's events in time order, users one after another.

    Attributes:
      items: int32 [E], item ids from 1 (0 is padding and never stands here).
      timestamps: int64 [E], seconds since the epoch of the log, non-decreasing within a user.
      offsets: int64 [U + 1]; user u's events are `offsets[u]:offsets[u + 1]`.
      num_items: N; ids run from 1 to N.
      card: What is known of the data: source, filters, counts, rates, sha256 (see `card.py`).
      folds: int8 [E] or None; 0 train, 1 validation, 2 test, where the log brought its own split.
      folder: Where it was opened from; None for a data set in memory.
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
        """The first event's timestamp, in seconds: `Events.timestamps` count from it."""
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
        """A data set in memory, with its card computed.

        Args:
          items: Integers [E] from 1 to N.
          timestamps: Integers [E], seconds, non-decreasing within a user.
          offsets: Integers [U + 1] from 0 to E, non-decreasing.
          num_items: N; the largest id where None.
          source: Where the events come from, in words; stands in the card.
          folds: Integers [E] (0 train, 1 validation, 2 test) or None.
          order_only: The timestamps only say the order.

        Returns:
          The data set; `folder` is None.

        Raises:
          DatasetError: The arrays are no data set; the message says why.
        """
        given = {"items": items, "timestamps": timestamps, "offsets": offsets}
        if folds is not None:
            given["folds"] = folds
        arrays: dict[str, Any] = {name: _as_integers(name, value) for name, value in given.items()}
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
          verify: Also read every array once, to compare its SHA-256 with the card's and to check
            id range and time order (about a second for 100 million events from a warm disk).
            False leaves only the constant-time checks: files, types, sizes, offsets.

        Returns:
          The data set; its arrays are read-only.

        Raises:
          DatasetError: No data set stands there, or its arrays disagree with its card.
        """
        folder = Path(folder)
        card = _read_card(folder)
        arrays: dict[str, Any] = {}
        for name in card["arrays"]:
            path = folder / f"{name}.npy"
            try:
                arrays[name] = np.load(path, mmap_mode="r")
            except FileNotFoundError:
                raise DatasetError(f"{path} is missing, but card.json names it.") from None
            except (ValueError, OSError, EOFError) as error:
                raise DatasetError(f"{path} is no readable .npy file: {error}") from None
            said, found = card["arrays"][name], arrays[name]
            if [str(found.dtype), list(found.shape)] != [said["dtype"], said["shape"]]:
                raise DatasetError(
                    f"{path} holds {found.dtype} {list(found.shape)}, "
                    f"but card.json says {said['dtype']} {said['shape']}."
                )
        _check_structure(arrays, str(folder))
        counts = {
            "users": len(arrays["offsets"]) - 1,
            "items": card["counts"]["items"],
            "events": len(arrays["items"]),
        }
        if counts != card["counts"]:
            raise DatasetError(f"{folder}: card.json counts {card['counts']}, arrays {counts}.")
        if verify:
            for name, said in card["sha256"].items():
                _check_sha256(folder, name, arrays.get(name), said)
            _check_contents(arrays, counts["items"], str(folder))
        return cls(num_items=counts["items"], card=card, folder=folder, **arrays)

    def item_ids(self) -> np.ndarray:
        """The original item ids, text [N + 1]; entry 0 (padding) is the empty string."""
        return np.concatenate([[""], self._ids("item_ids")]).astype(np.str_)

    def user_ids(self) -> np.ndarray:
        """The original user ids, text [U], by index into `offsets`."""
        return self._ids("user_ids")

    def _ids(self, name: str) -> np.ndarray:
        if self.folder is None:
            raise DatasetError("A data set in memory has no original ids.")
        import polars as pl  # here, so that training needs no Polars

        frame = pl.read_parquet(self.folder / f"{name}.parquet").sort("index")
        return frame["id"].to_numpy().astype(np.str_)


def write_dataset(
    folder: str | Path, dataset: Dataset, user_ids: "Ids", item_ids: "Ids"
) -> Dataset:
    """Writes a dataset folder so that it either stands complete or not at all.

    Everything goes to a hidden folder beside it, the card last, is synced to disk and then renamed.
    A process killed on the way leaves at most that hidden folder, `.NAME.partial-*`.

    Args:
      folder: Where; must not exist yet, or be an empty folder.
      dataset: What to write.
      user_ids: Original ids by user index, U of them.
      item_ids: Original ids of items 1 to N, in this order.

    Returns:
      The data set as opened from `folder`.

    Raises:
      DatasetError: The folder is taken, or the ids are not one per user and item.
    """
    import polars as pl  # here, so that training needs no Polars

    folder = Path(folder).absolute()
    check_free(folder)
    for what, ids, expected in (
        ("user", user_ids, dataset.num_users),
        ("item", item_ids, dataset.num_items),
    ):
        if len(ids) != expected:
            raise DatasetError(f"{len(ids)} {what} ids were given for {expected} {what}s.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        partial.chmod(0o755)
        card = {**dataset.card, "sha256": dict(dataset.card["sha256"])}
        for name in card["arrays"]:
            np.save(partial / f"{name}.npy", getattr(dataset, name))
        for name, ids, first in (("user_ids", user_ids, 0), ("item_ids", item_ids, 1)):
            path = partial / f"{name}.parquet"
            index, texts = np.arange(first, first + len(ids)), pl.Series(ids, dtype=pl.String)
            pl.DataFrame({"index": index, "id": texts}).write_parquet(path)
            # Of the file against damage; of what it says, since another version of Polars may
            # write the same ids in other bytes.
            card["sha256"][path.name] = cards.sha256_of_file(path)
            card["sha256"][name] = cards.sha256_of_texts(texts)
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        for path in [*partial.iterdir()]:
            _sync(path)
        (partial / "card.json").write_text(text, encoding="utf-8")
        _sync(partial / "card.json")
        _sync(partial)
        os.rename(partial, folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Dataset.open(folder, verify=False)


def check_free(folder: str | Path) -> None:
    """Refuses a folder that already holds something (`DatasetError`)."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} already exists. Remove it, or choose another folder.")


def _as_integers(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise DatasetError(f"{name} must be integers [n]; found {array.dtype} {array.shape}.")
    limits = np.iinfo(_DTYPES[name])
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise DatasetError(f"{name} does not fit {limits.dtype}.")
    return np.ascontiguousarray(array, dtype=_DTYPES[name])


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(
            f"{folder} is no dataset folder: it has no card.json. Make one with "
            "`python -m launch.prepare --input=LOG --output=FOLDER`."
        ) from None
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON: {error}") from None
    missing = {"arrays", "counts", "sha256", "time"} - set(card if isinstance(card, dict) else ())
    if missing:
        raise DatasetError(f"{path} lacks {sorted(missing)}.")
    required = {"items", "timestamps", "offsets"}
    if not required <= set(card["arrays"]) <= set(_DTYPES):
        raise DatasetError(
            f"{path} names arrays {sorted(card['arrays'])}; need {sorted(required)}."
        )
    return card


def _check_structure(arrays: dict[str, Any], where: str) -> None:
    """Types, sizes and offsets: what can be checked without reading every event."""
    for name, array in arrays.items():
        if array.dtype != _DTYPES[name] or array.ndim != 1:
            raise DatasetError(
                f"{where}: {name} must be {_DTYPES[name]} [n]; found {array.dtype} {array.shape}."
            )
    num_events, offsets = len(arrays["items"]), arrays["offsets"]
    for name in ("timestamps", "folds"):
        if name in arrays and len(arrays[name]) != num_events:
            raise DatasetError(f"{where}: {num_events} items, but {len(arrays[name])} {name}.")
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != num_events:
        raise DatasetError(f"{where}: offsets must run from 0 to {num_events}, the event count.")
    falls = np.flatnonzero(np.diff(offsets) < 0)
    if len(falls):
        raise DatasetError(f"{where}: offsets decrease after user {falls[0]}.")


def _check_contents(arrays: dict[str, Any], num_items: int, where: str) -> None:
    """Id range, time order and time span: reads every event once, a block at a time."""
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
        # A fall in time is allowed only where the next user begins.
        falls = begin + 1 + np.flatnonzero(np.diff(times) < 0)
        falls = falls[offsets[np.searchsorted(offsets, falls)] != falls]
        if len(falls):
            user = int(np.searchsorted(offsets, falls[0], side="right")) - 1
            raise DatasetError(
                f"{where}: timestamps of user {user} decrease at event {falls[0]}; "
                "sort by (user, time, original row)."
            )
        if "folds" in arrays:
            fold = arrays["folds"][begin : begin + _BLOCK]
            if np.any((fold < 0) | (fold > 2)):
                raise DatasetError(f"{where}: folds must be 0, 1 or 2.")
    if highest - lowest > np.iinfo(np.int32).max:
        raise DatasetError(
            f"{where}: timestamps span {highest - lowest} s; at most 2147483647 (int32) fit."
        )


def _check_sha256(folder: Path, name: str, array: np.ndarray | None, said: str) -> None:
    if array is not None:
        name, found = f"{name}.npy", cards.sha256_of_array(array)
    elif name.endswith(".parquet"):
        try:
            found = cards.sha256_of_file(folder / name)
        except FileNotFoundError:
            raise DatasetError(f"{folder / name} is missing, but card.json names it.") from None
    else:
        return  # the source file's, which is not part of the folder, or of what the ids say
    if found != said:
        raise DatasetError(
            f"{folder / name} is not what card.json describes (sha256 {found[:12]}… instead of "
            f"{said[:12]}…). It was changed or damaged: prepare the data set again."
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
