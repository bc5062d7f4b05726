"""What a study's runs gave, as JSON: means, errors, the verdict on each claim, provenance."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from linseqrec.config import Experiment
from linseqrec.config_json import to_json
from linseqrec.errors import FileError
from linseqrec.evaluation.metrics import mean_and_error, metric_per_target
from linseqrec.evaluation.result import SELECTION_METRIC, filter_in_words, filters_by_fit
from linseqrec.evaluation.significance import over_seeds
from linseqrec.files import check_form, read_json
from linseqrec.runs.comparable import check_comparable
from linseqrec.runs.configurations import Configuration, deciding_fields, differing_fields
from linseqrec.runs.finished import ORACLE, FinishedRun, baselines_of, best_baseline, title_of
from linseqrec.studies.study import COUNTING, Claim, Study, StudyError, StudyRun, Table
from linseqrec.training.checkpoint import newest_progress
from linseqrec.training.model import FunctionalModel

# A difference counts from so many standard errors on, and this is the normal distribution there.
ERRORS = 2.0

# What pages read of a record (`files.check_form`).
_NULL = type(None)
_STATISTICS = {"mean": float, "sd": (float, _NULL), "error": float}
_RUN = {
    "seed": int,
    "commit": str,
    "device": (str, _NULL),
    "cpu_count": (int, _NULL),
    "packages": (dict, _NULL),
    "minutes": (float, _NULL),
}
_MODEL = {
    "label": str,
    "config": str,
    "overrides": dict,
    "experiment": dict,
    "parameters": int,
    "metrics": {str: {str: _STATISTICS}},
    "runs": [_RUN],
}
_TABLE = {
    "name": str,
    "title": str,
    "caption": str,
    "metrics": [str],
    "analyses": [str],
    "missing": {str: [int]},
    "split": str,
    "targets": int,
    "num_items": int,
    "ties": str,
    "filters": {str: str},
    "models": [_MODEL],
    "baselines": [{"label": str, "oracle": bool, "metrics": {str: {str: float}}}],
}
_CLAIM = {"text": str, "table": str, "verdict": str, "reason": str}
_JUDGED = _CLAIM | {
    "first": str,
    "second": str,
    "metric": str,
    "margin": float,
    "min_events": int,
    "first_mean": float,
    "second_mean": float,
    "effect": float,
    "error_over_users": float,
    "error_over_seeds": (float, _NULL),
    "seeds": int,
}
_FORM = {"name": str, "title": str, "about": str, "tables": [_TABLE], "claims": [_CLAIM]}


def read_record(path: Path) -> dict[str, Any]:
    """A study's record.

    Raises:
      FileError: If the file is damaged, or lacks what pages read of it.
    """
    record = read_json(path, _FORM)
    try:
        names = [table["name"] for table in record["tables"]]
        for claim in record["claims"]:
            if claim["table"] not in names:
                raise ValueError(f"it has no table {claim['table']!r}")
            if not claim["reason"]:
                check_form(claim, _JUDGED)
        for table in record["tables"]:
            for metrics in (each["metrics"] for each in (*table["models"], *table["baselines"])):
                for filter_seen in table["filters"]:
                    check_form(metrics, {filter_seen: dict.fromkeys(table["metrics"], object)})
            if table.get("search"):
                check_form(table["models"], [{"validation": [float]}], f"{table['name']}.models")
            if SELECTION_METRIC not in table["metrics"]:
                raise ValueError(f"table {table['name']} has no {SELECTION_METRIC}")
    except ValueError as error:
        raise FileError(f"{path} is damaged: {error}") from error
    return record


def make_record(study: Study, runs: Iterable[StudyRun]) -> dict[str, Any]:
    """The record of a study, from the runs of it that have finished.

    Args:
      study: The study.
      runs: Its runs, finished or not.

    Returns:
      For JSON: "tables" and "claims", in the study's order.

    Raises:
      StudyError: If a run's folder holds another configuration.
      RunsError: If the runs of a table cannot be compared.
      FileError: If a run's file is damaged.
    """
    by_table: dict[str, list[StudyRun]] = {table.name: [] for table in study.tables}
    for run in runs:
        by_table[run.table.name].append(run)
    opened = {table.name: _configurations(table, by_table[table.name]) for table in study.tables}
    return {
        "name": study.name,
        "title": study.title,
        "about": study.about,
        "tables": [
            _table(table, opened[table.name], by_table[table.name]) for table in study.tables
        ],
        "claims": [_judged(claim, opened[claim.table]) for claim in study.claims],
    }


def run_names(record: Mapping[str, Any]) -> set[str]:
    """The names of the runs that a record holds (`StudyRun.name`)."""
    return {
        f"{table['name']}, {model['label']}, seed {run['seed']}"
        for table in record["tables"]
        for model in table["models"]
        for run in model["runs"]
    }


def _configurations(table: Table, runs: Sequence[StudyRun]) -> dict[str, Configuration]:
    """The arms of a table that have finished runs, by label."""
    finished: dict[str, list[FinishedRun]] = {}
    for run in runs:
        if run.results:
            opened = FinishedRun.open(run.results)
            _check_same(run, opened)
            finished.setdefault(run.arm.label, []).append(opened)
    for arm, own in finished.items():
        computed = {run.results["environment"].get("compute_dtype") for run in own} - {None}
        if len(computed) > 1:
            raise StudyError(
                f"the runs of {arm} computed in {' and '.join(sorted(computed))}: set model.dtype "
                "in the study, or train them on one kind of device"
            )
    conditions = {str(run.folder): run.conditions for arm in finished.values() for run in arm}
    if conditions:
        check_comparable(conditions)
    return {
        arm.label: Configuration(arm.label, tuple(finished[arm.label]))
        for arm in table.arms
        if arm.label in finished
    }


def _check_same(run: StudyRun, opened: FinishedRun) -> None:
    differing = differing_fields([run.experiment, opened.experiment])
    # Another folder may hold the same data: the runs of a table are compared by digests.
    differing.pop("data.folder", None)
    if "model.dtype" in differing:
        # "auto" is what the run's device made of it.
        on_cpu = str(opened.results["environment"].get("device")).endswith("cpu")
        auto = "float32" if on_cpu else "bfloat16"
        if len({auto if dtype == "auto" else dtype for dtype in differing["model.dtype"]}) == 1:
            del differing["model.dtype"]
    if opened.experiment.training.seed != run.seed:
        differing["training.seed"] = [run.seed, opened.experiment.training.seed]
    if differing:
        listed = "".join(
            f"\n  {field}: {ours!r} in the study, {theirs!r} in the run"
            for field, (ours, theirs) in differing.items()
        )
        raise StudyError(
            f"{opened.folder} holds a run of another configuration: move it away{listed}"
        )


def _table(
    table: Table, configurations: Mapping[str, Configuration], runs: Sequence[StudyRun]
) -> dict[str, Any]:
    written: dict[str, Any] = {
        "name": table.name,
        "caption": table.caption,
        "metrics": list(table.metrics),
        "analyses": list(table.analyses),
        "search": table.search,
        "missing": _missing(runs),
    }
    opened = [run for configuration in configurations.values() for run in configuration.runs]
    if not opened:
        nothing = {"title": "", "split": "", "targets": 0, "num_items": 0, "ties": ""}
        return written | nothing | {"filters": {}, "models": [], "baselines": []}
    protocol = opened[0].protocol
    filters = filters_by_fit(protocol)
    return written | {
        "title": title_of(opened),
        "split": protocol["split"],
        "targets": protocol["targets"],
        "num_items": protocol["num_items"],
        "ties": protocol["ties"],
        "filters": {name: filter_in_words(name, protocol) for name in filters},
        "models": [
            _model(table, configuration, runs, filters) for configuration in configurations.values()
        ],
        "baselines": [
            {
                "label": name,
                "oracle": name == ORACLE,
                "metrics": {
                    filter_seen: {
                        metric: summary["metrics"][filter_seen][metric] for metric in table.metrics
                    }
                    for filter_seen in filters
                },
            }
            for name, summary in baselines_of(opened).items()
        ],
    }


def _missing(runs: Sequence[StudyRun]) -> dict[str, list[int]]:
    """The seeds that have not finished, by arm."""
    missing: dict[str, list[int]] = {}
    for run in runs:
        if not run.results:
            missing.setdefault(run.arm.label, []).append(run.seed)
    return missing


def _model(
    table: Table,
    configuration: Configuration,
    runs: Sequence[StudyRun],
    filters: Sequence[str],
) -> dict[str, Any]:
    planned = next(run for run in runs if run.arm.label == configuration.label)
    arm, protocol = planned.arm, configuration.runs[0].protocol
    written: dict[str, Any] = {}
    if table.search:
        selecting = configuration.experiment.evaluation.filter_seen[0]
        by_seed = [run.validation(selecting, SELECTION_METRIC) for run in configuration.runs]
        written["validation"] = by_seed
    return written | {
        "label": configuration.label,
        "config": arm.config,
        "overrides": {field: to_json(value) for field, value in arm.overrides.items()},
        "experiment": deciding_fields(planned.experiment),
        "parameters": _num_parameters(configuration.experiment, protocol["num_items"]),
        "metrics": {
            filter_seen: {
                metric: _statistics(configuration, filter_seen, metric) for metric in table.metrics
            }
            for filter_seen in filters
        },
        "runs": [_provenance(run) for run in configuration.runs],
    }


def _statistics(
    configuration: Configuration, filter_seen: str, metric: str
) -> dict[str, float | list[float] | None]:
    """Mean, standard deviation over seeds, and standard error of the mean over users."""
    by_seed = configuration.by_seed(filter_seen, metric)
    values = configuration.per_target(filter_seen, metric)
    return {
        "mean": float(by_seed.mean()),
        "sd": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        "error": mean_and_error(values, configuration.runs[0].users)[1],
        "by_seed": by_seed.tolist(),
    }


def _provenance(run: FinishedRun) -> dict[str, Any]:
    environment = run.results["environment"]
    minutes = _minutes(run.folder)
    return {
        "seed": run.experiment.training.seed,
        "commit": short_commit(environment.get("git") or ""),
        "device": environment.get("device"),
        "cpu_count": environment.get("cpu_count"),
        "packages": environment.get("packages"),
        "epoch": run.results["epoch"],
        "minutes": None if minutes is None else round(minutes, 2),
    }


def short_commit(described: str) -> str:
    """A short commit from what `git describe --always --dirty` gave."""
    found = re.search(r"\b(?:g)?([0-9a-f]{7})[0-9a-f]*(-dirty)?$", described)
    return found[1] + (found[2] or "") if found else ""


def _minutes(folder: Path) -> float | None:
    """Minutes of training, over all starts of a run, as its newest checkpoint has them."""
    path = newest_progress(folder / "checkpoints")
    return None if path is None else read_json(path, {"seconds": float})["seconds"] / 60


def _num_parameters(experiment: Experiment, num_items: int) -> int:
    params, _ = FunctionalModel.of(experiment, num_items, None).abstract
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# ---------------------------------------------------------------------------- claims
@dataclasses.dataclass(frozen=True)
class _System:
    """One side of a claim: its values [M] averaged over seeds, and its mean by seed [S].

    What has no seeds, as a baseline, has S 0.
    """

    label: str
    values: np.ndarray
    by_seed: np.ndarray


def _judged(claim: Claim, configurations: Mapping[str, Configuration]) -> dict[str, Any]:
    """A claim with its effect, standard errors and verdict, or the reason why it has none.

    The effect is the first system's mean minus (1 + margin) times the second's.
    """
    if claim.first not in configurations:
        return _open(claim, "not run")
    runs = configurations[claim.first].runs
    if claim.filter_seen not in runs[0].ranks:
        raise StudyError(
            f"claim {claim.text!r}: the runs have no filter {claim.filter_seen!r} of seen items"
        )
    kept = runs[0].lengths >= claim.min_events
    users = len(np.unique(runs[0].users[kept]))
    if users < 2:
        told = "one user's targets" if users else "no target"
        return _open(claim, f"{told} after {claim.min_events} events")
    second = _second(claim, configurations, kept)
    if second is None:
        no_ranks = claim.second == COUNTING
        return _open(claim, "the runs hold no ranks of baselines" if no_ranks else "not run")
    first = _arm(claim, configurations[claim.first], kept)
    differences = first.values - (1 + claim.margin) * second.values
    return _asked(claim) | {
        "second": second.label,
        "first_mean": float(first.values.mean()),
        "second_mean": float(second.values.mean()),
        "targets": int(kept.sum()),
        "paired": True,
        **_verdict(
            float(differences.mean()),
            mean_and_error(differences, runs[0].users[kept])[1],
            [first.by_seed, (1 + claim.margin) * second.by_seed],
        ),
    }


def judged_apart(claim: Claim, table: Mapping[str, Any]) -> dict[str, Any]:
    """A claim about two models whose per-user metrics are not both on this machine.

    The squared errors of the two means add up, as if the models had different users. A paired error
    is usually smaller.

    Args:
      claim: The claim; the table has all its arms.
      table: Of a record.
    """
    recorded = claim.metric in table["metrics"] and claim.filter_seen in table["filters"]
    if claim.min_events or claim.second == COUNTING or not recorded:
        return _open(claim, "runs of several machines cannot be paired")
    sides: dict[str, Mapping[str, Any]] = {
        model["label"]: model["metrics"][claim.filter_seen][claim.metric]
        for model in table["models"]
    }
    sides["published"] = {"mean": claim.second, "error": 0.0, "by_seed": []}
    others = claim.second if isinstance(claim.second, tuple) else ("published",)
    label = max(others, key=lambda each: sides[each]["mean"])
    first, second = sides[claim.first], sides[label]
    scale = 1 + claim.margin
    return _asked(claim) | {
        "second": label,
        "first_mean": first["mean"],
        "second_mean": second["mean"],
        "targets": table["targets"],
        "paired": False,
        **_verdict(
            first["mean"] - scale * second["mean"],
            math.hypot(first["error"], scale * second["error"]),
            [np.array(first["by_seed"]), scale * np.array(second["by_seed"])],
        ),
    }


def _asked(claim: Claim) -> dict[str, Any]:
    second = claim.second if isinstance(claim.second, str | float) else list(claim.second)
    return {
        "text": claim.text,
        "table": claim.table,
        "first": claim.first,
        "against": second,
        "metric": claim.metric,
        "filter_seen": claim.filter_seen,
        "margin": claim.margin,
        "min_events": claim.min_events,
        "source": claim.source,
    }


def _open(claim: Claim, reason: str) -> dict[str, Any]:
    return _asked(claim) | {"verdict": "open", "reason": reason}


def _verdict(effect: float, over_users: float, sides: Sequence[np.ndarray]) -> dict[str, Any]:
    """An effect with its standard errors and what they say.

    Args:
      effect: The difference of two means.
      over_users: Its standard error over users.
      sides: The two means by seed (`over_seeds`), each times its factor in the difference.

    A single seed has no error. If one side has only one, the verdict counts the other side's.
    """
    error, margin = over_seeds(*sides)
    verdict = "open"
    if abs(effect) > math.hypot(ERRORS * over_users, margin):
        verdict = "holds" if effect > 0 else "does not hold"
    return {
        "effect": effect,
        "error_over_users": over_users,
        "error_over_seeds": error,
        "seeds": min(len(means) for means in sides if len(means)),
        "verdict": verdict,
        "reason": "",
    }


def _arm(claim: Claim, configuration: Configuration, kept: np.ndarray) -> _System:
    by_seed = [run.per_target(claim.filter_seen, claim.metric)[kept] for run in configuration.runs]
    return _System(
        configuration.label, np.mean(by_seed, axis=0), np.array([each.mean() for each in by_seed])
    )


def _second(
    claim: Claim, configurations: Mapping[str, Configuration], kept: np.ndarray
) -> _System | None:
    if isinstance(claim.second, float):
        return _System("published", np.full(int(kept.sum()), claim.second), np.empty(0))
    if claim.second == COUNTING:
        runs = [run for each in configurations.values() for run in each.runs]
        if (best := best_baseline(runs, claim.filter_seen)) is None:
            return None
        return _System(best[0], metric_per_target(best[1], claim.metric)[kept], np.empty(0))
    if not all(label in configurations for label in claim.second):
        return None
    arms = [_arm(claim, configurations[label], kept) for label in claim.second]
    return max(arms, key=lambda arm: arm.values.mean())
