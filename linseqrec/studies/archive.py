"""Keeps the results of a study's runs, so that the study can continue without their workdirs."""

import math
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from linseqrec.config import Experiment
from linseqrec.config_json import to_json
from linseqrec.files import replacing
from linseqrec.runs.configurations import is_still
from linseqrec.runs.finished import BEST_BASELINE
from linseqrec.studies.record import judged_apart
from linseqrec.studies.study import Arm, Claim, Study, StudyError, StudyRun, Table
from linseqrec.training.checkpoint import newest_progress

# The files of a run that a record reads. A folder with `results.json`, copied last, is complete.
_FILES = ("config.json", "card.json", "ranks/test.npz", str(BEST_BASELINE), "results.json")

# In which the recorded runs of a table must agree with those here.
_PROTOCOL = ("title", "split", "targets", "num_items", "ties", "metrics", "filters")
# Processors round differently: a target's rank may change where scores are close.
_ROUNDING = 5e-4

_Record = Mapping[str, Any]


def keep(run: StudyRun) -> None:
    """Copies the results of a run, its ranks of each target and its time of training to `run.kept`.

    Only of finished runs on generated worlds: ranks stand beside users and items, and those of a
    log may not be passed on.
    """
    if run.results != run.folder or run.experiment.data.folder:
        return
    progress = newest_progress(run.folder / "checkpoints")
    files = [run.folder / name for name in _FILES]
    for source in files if progress is None else [progress, *files]:
        copy = run.kept / source.relative_to(run.folder)
        # Ranks of baselines, and checkpoints, may be missing.
        if source.exists() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with replacing(copy) as partial:
                shutil.copyfile(source, partial)


def with_earlier_runs(
    record: Mapping[str, Any], earlier: Mapping[str, Any], study: Study, runs: Iterable[StudyRun]
) -> dict[str, Any]:
    """Adds to a study's record the runs of an earlier record whose results are not on this machine.

    A model keeps its recorded runs if neither its arm in the study nor its experiment has changed.
    Runs with other seeds on this machine join them.

    Args:
      record: The record of the runs here (`record.make_record`).
      earlier: The record that it replaces.
      study: The study.
      runs: Its runs, finished or not.

    Raises:
      StudyError: If runs of a table and its recorded runs were measured differently.
    """
    former = {table["name"]: table for table in earlier["tables"]}
    experiments: dict[str, dict[str, Experiment]] = {table.name: {} for table in study.tables}
    for run in runs:
        experiments[run.table.name][run.arm.label] = run.experiment
    joined = [
        _joined_table(own, former[own["name"]], table, experiments[table.name])
        if own["name"] in former
        else own
        for own, table in zip(record["tables"], study.tables, strict=True)
    ]
    verdicts = {claim["text"]: claim for claim in earlier["claims"]}
    tables = {
        own["name"]: (both, own, former.get(own["name"]))
        for both, own in zip(joined, record["tables"], strict=True)
    }
    claims = [
        _verdict(claim, judged, verdicts.get(claim.text), *tables[claim.table])
        for claim, judged in zip(study.claims, record["claims"], strict=True)
    ]
    return {**record, "tables": joined, "claims": claims}


def _joined_table(
    own: _Record, former: _Record, table: Table, experiments: Mapping[str, Experiment]
) -> _Record:
    """A table of a record, with the models of the former one that have no such run here."""
    here, recorded = _models(own), _models(former)
    models = {}
    for arm in table.arms:
        ours, theirs = here.get(arm.label), recorded.get(arm.label)
        if theirs and not _is_of(theirs, arm, experiments[arm.label]):
            theirs = None
        if theirs and own["search"] and "validation" not in theirs:
            theirs = None  # The record has no validation metric by which the search could select.
        if joined := _joined_model(ours, theirs):
            models[arm.label] = joined
    if models == here:
        return own
    if here:
        _check_measured_alike(own, former)
    protocol = own if here else former
    held = {(label, run["seed"]) for label, model in models.items() for run in model["runs"]}
    missing = {
        arm.label: [
            seed for seed in own["missing"].get(arm.label, []) if (arm.label, seed) not in held
        ]
        for arm in table.arms
    }
    return {
        **protocol,
        "caption": own["caption"],
        "analyses": own["analyses"],
        "search": own["search"],
        "missing": {label: seeds for label, seeds in missing.items() if seeds},
        "models": list(models.values()),
    }


def _models(table: _Record | None) -> dict[str, _Record]:
    """The models of a record's table by label."""
    return {model["label"]: model for model in table["models"]} if table else {}


def _measured(table: _Record | None, labels: Sequence[str]) -> list[Any]:
    """What the models of some labels scored; it is the same if a run is repeated on its machine."""
    models = _models(table)
    return [models[label]["metrics"] if label in models else None for label in labels]


def _is_of(model: _Record, arm: Arm, experiment: Experiment) -> bool:
    """Whether a recorded model is an arm as the study has it now, with that experiment."""
    overrides = {field: to_json(value) for field, value in arm.overrides.items()}
    arm_is_the_same = (model["config"], model["overrides"]) == (arm.config, overrides)
    return arm_is_the_same and is_still(model["experiment"], experiment)


def _joined_model(own: _Record | None, former: _Record | None) -> _Record | None:
    """A model with the runs of both. What does not fit those here is left out."""
    if own is None or former is None:
        return own or former
    if len(own["runs"]) < len(former["runs"]) and all(run in former["runs"] for run in own["runs"]):
        return former
    runs = own["runs"] + former["runs"]
    if len({run["seed"] for run in runs}) < len(runs) or own["parameters"] != former["parameters"]:
        return own
    if any(
        set(former["metrics"].get(name, ())) != {*own["metrics"][name]} for name in own["metrics"]
    ):
        return own  # The recorded runs have other metrics.
    by_seed = sorted(range(len(runs)), key=lambda place: runs[place]["seed"])
    metrics = {
        filter_seen: {
            metric: _joined_statistics(values, former["metrics"][filter_seen][metric], by_seed)
            for metric, values in of_filter.items()
        }
        for filter_seen, of_filter in own["metrics"].items()
    }
    joined = {**own, "metrics": metrics, "runs": [runs[place] for place in by_seed]}
    if "validation" in own:
        validation = own["validation"] + former["validation"]
        joined["validation"] = [validation[place] for place in by_seed]
    return joined


def _joined_statistics(own: _Record, former: _Record, order: Sequence[int]) -> _Record:
    values = own["by_seed"] + former["by_seed"]
    values = [values[place] for place in order]
    sides = (own, former)
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values),
        # The error of a mean is at most the mean of the errors.
        "error": sum(len(side["by_seed"]) * side["error"] for side in sides) / len(values),
        "by_seed": values,
    }


def _check_measured_alike(own: _Record, former: _Record) -> None:
    """Refuses to join tables that differ in their protocol, or in what counting scores."""
    differing = [name for name in _PROTOCOL if own[name] != former[name]]
    scores = {each["label"]: each["metrics"] for each in former["baselines"]}
    differing += [
        each["label"]
        for each in own["baselines"]
        if each["label"] in scores
        and not all(
            abs(value - scores[each["label"]].get(filter_seen, {}).get(metric, math.inf))
            < _ROUNDING
            for filter_seen, of_filter in each["metrics"].items()
            for metric, value in of_filter.items()
        )
    ]
    if differing:
        raise StudyError(
            f"table {own['name']}: the recorded runs were measured differently ("
            f"{', '.join(differing)}): --drop --tables={own['name']} removes them from the record"
        )


def _verdict(
    claim: Claim,
    judged: _Record,
    former: _Record | None,
    joined: _Record,
    own: _Record,
    earlier: _Record | None,
) -> _Record:
    """The verdict on a claim by the runs here, by those recorded, or by both."""
    labels = (claim.first, *(claim.second if isinstance(claim.second, tuple) else ()))
    models = _models(joined)
    if not all(label in models for label in labels):
        return judged
    both = _measured(joined, labels)
    if both == _measured(own, labels):
        return judged
    asked = ("table", "first", "against", "metric", "filter_seen", "margin", "min_events")
    unchanged = both == _measured(earlier, labels)
    if former and unchanged and all(former.get(name) == judged[name] for name in asked):
        return {**former, "source": judged["source"]}
    return judged_apart(claim, joined)
