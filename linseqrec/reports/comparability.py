"""Whether runs can stand in one table."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from linseqrec.data.card import differing_data
from linseqrec.errors import ReportError
from linseqrec.reports.runs import FinishedRun

# What must be the same, and where it is read.
_SAME: dict[str, Callable[[FinishedRun], Any]] = {
    "split": lambda run: run.results["split"],
    "filter (seen items)": lambda run: sorted(run.protocol["filter_seen"]),
    # Runs from before there was a choice did not know it.
    "request time": lambda run: run.protocol.get("request_time", "hidden"),
    "ties": lambda run: run.protocol["ties"],
    "candidate set": lambda run: (run.protocol["candidates"], run.protocol["num_items"]),
}


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Refuses runs that were not tested alike.

    Raises:
      ReportError: If their data, split, filter, request time, ties, candidates or targets differ:
        names what differs, and which runs have what.
    """
    first = runs[0]
    for run in runs[1:]:
        if differing := differing_data(run.card, first.card):
            raise ReportError(
                f"the runs cannot be compared: {run.folder} and {first.folder} are runs on "
                f"different data ({', '.join(differing)} differ, by sha256 in card.json)"
            )
    for field, read in _SAME.items():
        holders: dict[str, list[str]] = {}
        for run in runs:
            value = json.dumps(read(run), sort_keys=True)
            holders.setdefault(value, []).append(str(run.folder))
        if len(holders) > 1:
            listed = "\n  ".join(
                f"{value}: {', '.join(folders)}" for value, folders in holders.items()
            )
            raise ReportError(f"the runs cannot be compared, their {field} differ:\n  {listed}")
    for run in runs[1:]:
        if not (
            np.array_equal(run.users, first.users) and np.array_equal(run.targets, first.targets)
        ):
            raise ReportError(
                f"the runs cannot be compared: {run.folder} and {first.folder} have other test "
                "targets, or the same in another order"
            )
