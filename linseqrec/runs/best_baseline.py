"""The best counting baseline of a run, with its rank of each target, for paired comparisons."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linseqrec.errors import FileError, RunsError
from linseqrec.evaluation.metrics import rank_metrics
from linseqrec.evaluation.result import SELECTION_METRIC, EvaluationResult
from linseqrec.files import read_arrays, replacing
from linseqrec.runs.finished import FinishedRun
from linseqrec.training import workdir

FILE = Path("ranks", "best_baseline.npz")
# The best score of a generated world: it knows how the world was made, and is no baseline.
ORACLE = "Oracle"


def write_best_baseline(folder: Path, baselines: Mapping[str, EvaluationResult]) -> None:
    """Writes the ranks of the best baseline under each filter to `ranks/best_baseline.npz`.

    The best one is that with the highest test NDCG@10. It is chosen on the targets that it is
    compared on, which favours the baseline.

    Args:
      folder: The workdir.
      baselines: Name to test result. An oracle is passed over.
    """
    counting = {name: result for name, result in baselines.items() if name != ORACLE}
    arrays: dict[str, Any] = {}
    for filter_seen in next(iter(counting.values())).ranks:
        name, result = max(
            counting.items(),
            key=lambda each: each[1].metrics_by_filter[filter_seen][SELECTION_METRIC],
        )
        arrays[f"name_{filter_seen}"] = np.array(name)
        arrays[f"rank_{filter_seen}"] = result.ranks[filter_seen]
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        np.savez_compressed(partial, **arrays)


def best_baseline(runs: Sequence[FinishedRun], filter_seen: str) -> tuple[str, np.ndarray] | None:
    """The best baseline of comparable runs under a filter: its name, and its ranks [M].

    Returns:
      None if no run has the file; earlier versions did not write it.

    Raises:
      RunsError: A file is damaged, has changed since its run ended, or belongs to other targets.
    """
    found = [_read(run, filter_seen) for run in runs if (run.folder / FILE).exists()]
    if not found:
        return None
    return max(found, key=lambda each: rank_metrics(each[1])[0][SELECTION_METRIC])


def _read(run: FinishedRun, filter_seen: str) -> tuple[str, np.ndarray]:
    path = run.folder / FILE
    try:
        # Earlier versions wrote no digest of it.
        if FILE.as_posix() in run.results.get("sha256", {}):
            workdir.check_sealed(run.folder, FILE.as_posix(), run.results)
        arrays = read_arrays(path)
        name, ranks = str(arrays[f"name_{filter_seen}"]), arrays[f"rank_{filter_seen}"]
    except (FileError, KeyError) as error:
        raise RunsError(
            f"{path} is damaged ({error}): delete it, and the report does without this run's "
            "baseline"
        ) from error
    if ranks.shape != run.users.shape or ranks.dtype != np.float64 or np.isnan(ranks).any():
        raise RunsError(f"{path} belongs to other targets than ranks/test.npz: delete it")
    return name, ranks
