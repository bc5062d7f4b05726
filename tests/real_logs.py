"""Real logs, which the repository does not hold: a test of one is skipped where it is absent."""

import os
from pathlib import Path

import pytest

# The folder of logs, or a sibling of the checkout: docs/data.md says where they are to be had.
FOLDER = Path(os.environ.get("LINSEQREC_DATA", Path(__file__).parents[2] / "shared" / "data"))


def real_log(name):
    """The path of a log in the folder, as in "ml-1m/ratings.tsv.gz"; else skips the test."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is absent; LINSEQREC_DATA names the folder of real logs")
    return path
