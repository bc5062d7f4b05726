"""The files in the workdir of a run, as programs read and check them."""

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError, differences, flatten
from linseqrec.config_json import from_json
from linseqrec.data.card import differing_data
from linseqrec.data.source import Source, load_source
from linseqrec.errors import FileError, WorkdirError
from linseqrec.files import check_form, read_json, read_records, sha256_of_file, sha256_of_json

# Forms (`check_form`) of the parts of these files that programs read.
_CARD = {"sha256": {str: str}}
PROTOCOL = {
    "split": str,
    "filter_seen": [str],
    "ties": str,
    "candidates": str,
    "num_items": int,
    "targets": int,
    "users": int,
    "bucket_edges": [float],
}
_VALUES = {str: (float, type(None))}
_BUCKET = {"name": str, "targets": int, "metrics": _VALUES, "standard_errors": _VALUES}
_SUMMARY = {"protocol": PROTOCOL, "metrics": {str: _VALUES}, "buckets": {str: [_BUCKET]}}
_RESULTS = {
    "name": str,
    "split": {"split": str},
    "validation": {str: _SUMMARY},
    "test": {str: _SUMMARY},
}
# Fields, beside the first filter, without which the validations of a run do not compare.
_SELECTING = (
    "evaluation.ties",
    "data.split",
    "data.validation_quantile",
    "data.test_quantile",
    "data.temporal_targets",
)
# Fields that may be edited in config.json when the run has ended: its results stay true.
_EDITABLE = ("name", "note", "data.folder", "evaluation.", "mesh.")


def check_experiment(
    workdir: Path, experiment: Experiment, *, allowed_changes: Collection[str] = ()
) -> dict[str, str]:
    """The allowed differences between a configuration and that of the run in a workdir.

    Args:
      workdir: The run's folder.
      experiment: The configuration.
      allowed_changes: Fields, by dotted name, that may differ; the data set's folder always may.

    Returns:
      A line of text for each field that differs, by field.

    Raises:
      WorkdirError: A field differs that is not allowed to (lists the differences), or by which
        validations choose the best checkpoint. Or a field in `allowed_changes` does not exist.
      ConfigError: The configuration in the workdir cannot be read.
    """
    previous = read_experiment(workdir)
    changes = differences(previous, experiment)
    # An allowed field need not differ. A command that changed a field has to work a second time,
    # and `config.json` has the new value by then.
    fields = flatten(previous).keys() | flatten(experiment).keys()
    if unknown := sorted(set(allowed_changes) - fields):
        raise WorkdirError(
            f"--allow_config_change={','.join(unknown)}: the experiment has no such field; give "
            "dotted names, such as training.num_epochs"
        )
    filters = (each.evaluation.filter_seen[0] for each in (previous, experiment))
    fixed = {*_SELECTING, *(["evaluation.filter_seen"] if len({*filters}) > 1 else [])}
    if chosen_otherwise := [line for field, line in changes.items() if field in fixed]:
        raise WorkdirError(
            f"{workdir} holds a run whose best checkpoint is chosen by other validations, which do "
            "not compare with new ones: choose another --workdir, or set these fields back\n  "
            + "\n  ".join(chosen_otherwise)
        )
    # The digests tell whether the data are the same (`check_data`), wherever they are now.
    allowed = {*allowed_changes, "data.folder"}
    forbidden = [line for field, line in changes.items() if field not in allowed]
    if forbidden:
        choices = "choose another --workdir, or set these fields back"
        if not (workdir / "results.json").exists():
            choices += ", or allow the change with --allow_config_change=FIELD,FIELD"
        raise WorkdirError(
            f"{workdir} holds a run of another configuration: {choices}\n  "
            + "\n  ".join(forbidden)
        )
    return changes


def check_data(workdir: Path, card: dict[str, Any]) -> None:
    """Raises an error if the run in a workdir was started on another data set.

    Args:
      workdir: The run's folder.
      card: The card of the data set.

    Raises:
      WorkdirError: The data differ; names the parts that do (`card.differing_data`).
    """
    if differing_parts := differing_data(card, read_card(workdir)):
        raise WorkdirError(
            f"{workdir} holds a run on other data ({', '.join(differing_parts)} differ): use the "
            "data set that the run was started on, or choose another --workdir"
        )


def load_data(workdir: Path, folder: str = "") -> Source:
    """The data set that the run in a workdir was started on.

    Args:
      workdir: The run's folder.
      folder: The dataset folder; empty for the one in the run's configuration.

    Raises:
      WorkdirError: The folder is not the workdir of a run, the data differ from the run's, or the
        configured dataset folder does not exist. Also if `folder` is set for a run on a generated
        world.
      DatasetError: The folder is not a dataset folder, or is damaged.
    """
    config = read_experiment(workdir).data
    if folder and not config.folder:
        raise WorkdirError(
            f"--data={folder}: {workdir} holds a run on the generated world {config.world!r}, "
            "which has no folder: leave out --data"
        )
    if config.folder and not folder and not Path(config.folder).exists():
        raise WorkdirError(
            f"{workdir} holds a run on the data set in {config.folder}, but that folder does not "
            f"exist (current folder: {Path.cwd()}): give its new place with --data=FOLDER"
        )
    source = load_source(dataclasses.replace(config, folder=folder or config.folder))
    check_data(workdir, source.dataset.card)
    return source


def read_card(workdir: Path, form: Mapping[str, Any] = _CARD) -> dict[str, Any]:
    """The card of the data set that the run in a workdir was started on.

    Args:
      workdir: The run's folder.
      form: What the card must hold besides its digests, as `check_form` takes it.

    Raises:
      WorkdirError: There is no `card.json`, or it has changed since the run ended.
      FileError: The file is damaged.
    """
    path = workdir / "card.json"
    if not os.path.lexists(path):
        raise WorkdirError(f"no card.json in {workdir}: it is not the workdir of a run")
    card = read_json(path, {**_CARD, **form})
    if (sealed := _sealed(workdir)) and sealed["sha256"].get("card.json") != sha256_of_file(path):
        raise WorkdirError(f"{path} has changed since the run ended: put the file back")
    return card


def read_experiment(workdir: Path) -> Experiment:
    """The configuration of the run in a workdir.

    Raises:
      WorkdirError: There is no `config.json`, or it has changed since the run ended in a field that
        the results depend on.
      ConfigError: The file is of another version, or names a class that does not exist.
      FileError: The file is damaged.
    """
    path = workdir / "config.json"
    if not os.path.lexists(path):
        raise WorkdirError(f"no config.json in {workdir}: it is not the workdir of a run")
    saved = read_json(path, dict)
    try:
        experiment = from_json(saved, Experiment)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if sealed := _sealed(workdir):
        before, now = _leaves(sealed["config"]), _leaves(saved)
        changed = [
            f"{name}: {before.get(name, '(absent)')!r} -> {now.get(name, '(absent)')!r}"
            for name in dict.fromkeys([*before, *now])
            if before.get(name) != now.get(name) and not name.startswith(_EDITABLE)
        ]
        if changed:
            raise WorkdirError(
                f"{path} has changed since the run ended: set these fields back\n  "
                + "\n  ".join(changed)
            )
    return experiment


def _leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values in a configuration's JSON by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def read_results(workdir: Path) -> dict[str, Any]:
    """The `results.json` of a run that has ended.

    Raises:
      FileError: The file cannot be read, is damaged, or is not what the run wrote, by the digest in
        it. A file of an earlier version has no digest: it has no field `config` either.
    """
    path = workdir / "results.json"
    results = read_json(path, _RESULTS)
    if "config" in results or "sha256" in results:
        try:
            check_form(results, {"config": dict, "sha256": {"results.json": str, str: str}})
        except ValueError as error:
            raise FileError(f"{path} is damaged: {error}") from error
        if results["sha256"]["results.json"] != digest_of_results(results):
            raise FileError(
                f"{path} is not what the run wrote: it was edited or is damaged. Put the file "
                "back, or remove it and run launch.train again: it then writes the file anew"
            )
    for split in ("validation", "test"):
        if results["name"] not in results[split]:
            raise FileError(f"{path} is damaged: {split} has no {results['name']!r}")
    return results


def digest_of_results(results: Mapping[str, Any]) -> str:
    """The digest of a run's results, which stands in them."""
    own = {"sha256": {**results["sha256"], "results.json": ""}}
    return sha256_of_json({**results, **own})


def check_sealed(workdir: Path, name: str, results: Mapping[str, Any]) -> None:
    """Raises an error if a file of a run is not the one that its results were written with.

    Args:
      workdir: The run's folder.
      name: The file's path in the folder.
      results: What `read_results` returned. Results of an earlier version have no digests.

    Raises:
      FileError: The file has changed, or is missing.
    """
    if "sha256" not in results:
        return
    path = workdir / name
    try:
        digest = sha256_of_file(path)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    if results["sha256"].get(name) != digest:
        raise FileError(f"{path} has changed since the run ended: put it back as it was")


def _sealed(workdir: Path) -> dict[str, Any] | None:
    """The results of a run that has ended, if they have digests; None also if they are damaged.

    The callers read the configuration or the card alone, so damage is no error here.
    """
    try:
        results = read_results(workdir)
    except FileError:
        return None
    return results if "sha256" in results else None


def read_metrics(workdir: Path) -> Iterator[dict[str, float]]:
    """The records of `metrics.jsonl`, in order (see `files.read_records`)."""
    return read_records(workdir / "metrics.jsonl")
