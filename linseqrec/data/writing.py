"""What a preparation leaves behind: the dataset folder on disk, and its card as text."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from linseqrec.data.card import utc
from linseqrec.data.dataset import Dataset, DatasetError
from linseqrec.files import sha256_of_file, sha256_of_texts

Ids: TypeAlias = Sequence[str] | pl.Series


def write_dataset(folder: str | Path, dataset: Dataset, user_ids: Ids, item_ids: Ids) -> Dataset:
    """Writes a dataset folder atomically: `folder` is complete or does not exist.

    The function writes all files to a hidden folder beside `folder`, syncs them to disk and renames
    the hidden folder. A killed process leaves at most the hidden folder, `.NAME.partial-*`.

    Args:
      folder: The new folder. It must not exist, or must be empty.
      dataset: The data set.
      user_ids: The log's own user ids [U], by user index.
      item_ids: The log's own item ids [N], of items 1 to N.

    Returns:
      The data set, opened from `folder`.

    Raises:
      DatasetError: The folder is not empty, or the number of ids is wrong.
    """
    folder = Path(folder).resolve()  # A link to an empty folder stays a link.
    check_free(folder)
    for role, ids, expected in (
        ("user", user_ids, dataset.num_users),
        ("item", item_ids, dataset.num_items),
    ):
        if len(ids) != expected:
            raise DatasetError(
                f"{role}_ids holds {len(ids)} ids, but the data set has {expected} {role}s: pass "
                f"one id per {role}"
            )
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
            # The digest of the file finds damage. The digest of the texts compares two data sets:
            # another version of Polars may write the same ids in other bytes.
            card["sha256"][path.name] = sha256_of_file(path)
            card["sha256"][name] = sha256_of_texts(texts)
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        for path in [*partial.iterdir()]:
            _sync(path)
        # The card comes last, so that a partial folder without it is never opened as a data set.
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
    """Raises `DatasetError` if `folder` exists and is not an empty folder."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} already exists. Remove it, or choose another folder.")


def format_card(card: Mapping[str, Any]) -> str:
    """The card as lines of text, one name and value per line."""
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
        span = f"{utc(time['first'])} to {utc(time['last'])} UTC"
        rows.append(("time", f"{span} ({time['first']} to {time['last']} s, {days:,.1f} days)"))
        ties = card["ties"]
        text = f"{ties['event_rate']:.1%} of events"
        if ties["events"] and "ascending_rate" in ties:
            advice = "; see --tied_order" if ties["ascending_rate"] > 0.9 else ""
            text += f" ({ties['ascending_rate']:.0%} of them in ascending order of items{advice})"
        rows.append(("ties", f"{text}, {ties['user_rate']:.1%} of users' last"))
        rows.append(("duplicates", f"{card['duplicates']['rate']:.2%} of events"))
    rows.append(("repeats", f"{card['repeats']['rate']:.1%} of events"))
    if card["folds"]:
        rows.append(("folds", ", ".join(f"{name} {n:,}" for name, n in card["folds"].items())))
    rows += [(f"sha256 {name}", digest) for name, digest in card["sha256"].items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in ("users", "items", "events"))
