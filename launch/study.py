r"""Trains what a study compares, and writes its record, page and figures.

    python -m launch.study --study=experiments/studies/worlds.py --workdir=runs/studies

The runs come most wanted first: all configurations with one seed, then with the next. The same
command goes on where it stopped and skips the runs that have finished. `--minutes` ends it in time.
When it ends, `results/NAME.json` and `results/NAME.md` hold what has been measured so far, and the
parts of README.md and RESULTS.md that show studies are made anew.

    python -m launch.study --render    # pages from the records, without a run
"""

import contextlib
import os
import runpy
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from launch import flags as launch_flags
from launch.program import run_program
from linseqrec.config_fields import ConfigError
from linseqrec.files import read_json, replacing, write_json
from linseqrec.runs.figures import save_figure
from linseqrec.studies import pages
from linseqrec.studies.record import make_record, run_keys
from linseqrec.studies.study import Study, StudyError, study_runs
from linseqrec.sweeps.local import Interrupted, run_local
from linseqrec.sweeps.task import train_task

_STUDY = flags.DEFINE_string("study", "", "File of the study, in experiments/studies.")
_WORKDIR = launch_flags.define_folder(
    "workdir", "The runs of all studies stand in it.", default="runs/studies"
)
_OUTPUT = launch_flags.define_folder("output", "Folder of the records.", default="results")
_TABLES = flags.DEFINE_list("tables", [], "Train for these tables only.")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Runs at a time.", 1)
_MINUTES = flags.DEFINE_float("minutes", 0, "Stop the runs after so many minutes; 0: no end.", 0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the runs that are left, and stop there.")
_RENDER = flags.DEFINE_bool("render", False, "Train nothing; only write records and pages.")
_DROP = flags.DEFINE_bool("drop", False, "Let runs that --workdir lacks leave the record.")

_PAGES = ("README.md", "RESULTS.md")


def main(argv: list[str]) -> None:
    del argv
    output = Path(_OUTPUT.value)
    if not _STUDY.value:
        if not _RENDER.value:
            raise ConfigError("give a study: --study=experiments/studies/NAME.py")
        _write_pages(output)
        return
    study = _load(_STUDY.value)
    runs = list(study_runs(study, launch_flags.load_experiment, Path(_WORKDIR.value)))
    wanted = {table.name for table in study.tables}
    if unknown := set(_TABLES.value) - wanted:
        raise ConfigError(f"--tables: {study.name} has {', '.join(wanted)}, no {unknown.pop()}")
    left = [run for run in runs if not run.finished and run.table.name in (_TABLES.value or wanted)]
    for run in left:
        print(f"{run.table.name}: {run.arm.label}, seed {run.seed}  {run.folder}")
    print(f"{len(runs)} runs, {len(left)} left", flush=True)
    if _DRY_RUN.value:
        return
    if left and not _RENDER.value:
        # Two tables may hold the same run.
        tasks = {
            run.folder: train_task(run.arm.config, run.overrides, [], run.folder) for run in left
        }
        stopped = _train(list(tasks.values()))
    else:
        stopped = None
    _write_record(study, make_record(study, runs), output)
    _write_pages(output)
    if stopped:
        print(f"\n{stopped}; go on with the same command:\n  {shlex.join(sys.orig_argv)}")
        sys.exit(75)


def _load(file: str) -> Study:
    if not Path(file).is_file():
        raise ConfigError(f"no study {file}")
    made = runpy.run_path(file).get("STUDY")
    if not isinstance(made, Study):
        raise ConfigError(f"{file} defines no STUDY")
    return made


def _train(tasks: list[Any]) -> Interrupted | None:
    """Runs the tasks; what stopped them, or None."""
    try:
        with _time_limit(_MINUTES.value):
            failures = run_local(tasks, parallel=_PARALLEL.value)
    except Interrupted as stop:
        return stop
    for failure in failures:
        print(failure, file=sys.stderr)
    return None


@contextlib.contextmanager
def _time_limit(minutes: float) -> Iterator[None]:
    """Sends this process SIGTERM after some minutes; 0 for never."""
    timer = threading.Timer(minutes * 60, os.kill, (os.getpid(), signal.SIGTERM))
    if minutes:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _write_record(study: Study, record: dict[str, Any], output: Path) -> None:
    path = output / f"{study.name}.json"
    if path.exists() and not _DROP.value:
        held = run_keys(read_json(path, {"tables": [dict]}))
        if lost := sorted(held - run_keys(record)):
            raise StudyError(
                f"{path} holds runs that {_WORKDIR.value} does not: {'; '.join(lost)}. Give the "
                "folder of all runs, or --drop to write the record without them"
            )
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    print(path)
    for table in record["tables"]:
        if table["models"]:
            name = pages.figure_name(record, table)
            print(save_figure(pages.to_figure(table), output / name))


def _write_pages(output: Path) -> None:
    records = {}
    for path in pages.page_paths(output):
        record = read_json(path, {"name": str, "title": str, "tables": [dict], "claims": [dict]})
        records[record["name"]] = record
        with replacing(path.with_suffix(".md")) as partial:
            partial.write_text(pages.to_page(record))
    for name in _PAGES:
        page = Path(name)
        if page.exists() and (made := pages.with_blocks(page.read_text(), records)):
            page.write_text(made)


if __name__ == "__main__":
    run_program(main)
