"""How a study goes on where the workdirs of its runs are gone."""

import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from linseqrec.config_json import to_json
from linseqrec.files import replacing
from linseqrec.runs import best_baseline
from linseqrec.studies.study import Arm, StudyRun
from linseqrec.training.checkpoint import saved_steps

# What a record reads of a run. `results.json` comes last: a folder that has it is whole.
_FILES = ("config.json", "card.json", "ranks/test.npz", str(best_baseline.FILE), "results.json")


def keep(run: StudyRun) -> None:
    """Copies the results of a run, its ranks of each target and its time of training to `run.kept`.

    Only of finished runs on generated worlds: ranks stand beside users and items, and those of a
    log may not be passed on.
    """
    if run.results != run.folder or run.experiment.data.folder:
        return
    newest = max(saved_steps(run.folder / "checkpoints"), default=None)
    progress = [] if newest is None else [f"checkpoints/{newest}/progress/metadata"]
    for name in (*progress, *_FILES):
        source, copy = run.folder / name, run.kept / name
        # Ranks of baselines, and checkpoints, may be missing.
        if source.exists() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with replacing(copy) as partial:
                shutil.copyfile(source, partial)


def with_earlier_tables(
    record: Mapping[str, Any], earlier: Mapping[str, Any], runs: Iterable[StudyRun]
) -> dict[str, Any]:
    """A study's record, with the tables of an earlier record that no run fills here.

    Such a table keeps its models, baselines and the verdicts of its claims if the study still has
    its arms as they were.

    Args:
      record: The record of the runs here (`record.make_record`).
      earlier: The record that it replaces.
      runs: The study's runs.
    """
    arms = {(run.table.name, run.arm.label): _definition(run.arm) for run in runs}
    former = {
        table["name"]: table
        for table in earlier["tables"]
        if all(
            arms.get((table["name"], model["label"])) == (model["config"], model["overrides"])
            for model in table["models"]
        )
    }
    taken = {
        table["name"]: _taken_over(former[table["name"]], table)
        for table in record["tables"]
        if table["name"] in former and not table["models"]
    }
    judged = {claim["text"]: claim for claim in earlier["claims"] if claim["table"] in taken}
    return {
        **record,
        "tables": [taken.get(table["name"], table) for table in record["tables"]],
        "claims": [_verdict(claim, judged.get(claim["text"])) for claim in record["claims"]],
    }


def _definition(arm: Arm) -> tuple[str, dict[str, Any]]:
    return arm.config, {field: to_json(value) for field, value in arm.overrides.items()}


def _taken_over(former: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """A former table; what the study says of it is as today."""
    held = {(model["label"], run["seed"]) for model in former["models"] for run in model["runs"]}
    missing = {
        label: [seed for seed in seeds if (label, seed) not in held]
        for label, seeds in table["missing"].items()
    }
    return {
        **former,
        "caption": table["caption"],
        "analyses": table["analyses"],
        "missing": {label: seeds for label, seeds in missing.items() if seeds},
    }


def _verdict(claim: Mapping[str, Any], former: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The former verdict on a claim, unless it was another claim then."""
    asked = ("table", "first", "metric", "filter_seen", "margin", "min_events")
    if former is None or any(former[name] != claim[name] for name in asked):
        return claim
    return former
