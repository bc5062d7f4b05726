r"""Trains what a study compares, and writes its record, page and figures.

    python -m launch.study --study=experiments/studies/worlds.py --workdir=runs/studies

The program trains all configurations with one seed, then with the next. The same command continues
and skips finished runs. `--minutes` limits its time. At its end it writes the results so far to
`results/NAME.json` and `results/NAME.md`, and updates the parts of README.md and RESULTS.md that
show studies. For unfinished tables, `results/runs` keeps the results and ranks of runs on generated
worlds, so that the study can continue without their workdirs. The record keeps earlier runs whose
results are gone, and adds the runs here.

    python -m launch.study --render    # pages from the records, without a run

`--analyse` also looks into the checkpoints of tables that ask for it.
"""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from absl import flags

from launch import flags as launch_flags
from launch.program import run_program
from linseqrec.config_fields import ConfigError, nearest
from linseqrec.files import read_json, replacing, write_json
from linseqrec.runs.figures import save_figure
from linseqrec.studies import archive, pages
from linseqrec.studies.record import make_record, read_record, run_names
from linseqrec.studies.study import Study, StudyError, StudyRun, load_study, study_runs
from linseqrec.sweeps.local import GRACE_SECONDS, Interrupted, run_local
from linseqrec.sweeps.task import train_task
from linseqrec.training import workdir
from linseqrec.training.preemption import EXIT_CODE

_STUDY = flags.DEFINE_string("study", "", "File of the study, in experiments/studies.")
_WORKDIR = launch_flags.define_folder(
    "workdir", "Folder of the runs of all studies.", default="runs/studies"
)
_OUTPUT = launch_flags.define_folder("output", "Folder of the records.", default="results")
_TABLES = flags.DEFINE_list("tables", [], "Train for these tables only.")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Runs at a time.", 1)
_MINUTES = flags.DEFINE_float("minutes", 0, "Stop the runs after so many minutes; 0: no end.", 0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the runs that are left, and stop there.")
_RENDER = flags.DEFINE_bool("render", False, "Train nothing; only write records and pages.")
_ANALYSE = flags.DEFINE_bool("analyse", False, "Analyse the checkpoints of the tables as well.")
_DROP = flags.DEFINE_bool(
    "drop",
    False,
    "Drop recorded runs whose arm has changed or is gone; in the tables of --tables, all recorded "
    "runs whose results are gone.",
)

_ROOT = Path(__file__).parents[1]
# Pages of the repository that show its records.
_PAGES = ("README.md", "RESULTS.md")


def main(argv: list[str]) -> None:
    del argv
    output = Path(_OUTPUT.value)
    if not _STUDY.value:
        if not _RENDER.value:
            raise ConfigError("give a study: --study=experiments/studies/NAME.py")
        _write_pages(output)
        return
    study = load_study(_STUDY.value)
    places = Path(_WORKDIR.value), output / "runs"
    runs = list(study_runs(study, launch_flags.load_experiment, *places))
    path = output / f"{study.name}.json"
    earlier = _earlier(path)
    record = _make_record(study, runs, earlier, path)
    lacking = _left(study, runs, run_names(record))
    left = [run for run in lacking if not workdir.is_locked(run.folder)]
    if not _RENDER.value:
        for run in left:
            print(f"{run.name}  {run.folder}")
        elsewhere = len(lacking) - len(left)
        busy = f", {elsewhere} train elsewhere now" if elsewhere else ""
        print(f"{len(runs)} runs, {len(left)} to train{busy}", flush=True)
    if _DRY_RUN.value:
        return
    code = 0
    if left and not _RENDER.value:
        code = _train(left)
        # Others may have added runs in the meantime.
        record = _make_record(study, runs, _earlier(path), path)
    unfinished = {table["name"] for table in record["tables"] if table["missing"]}
    for run in runs:
        if run.table.name in unfinished:
            archive.keep(run)
    if _ANALYSE.value and not _analyse(record, runs, output):
        code = 1
    for table in record["tables"]:
        folder = output / pages.analysis_folder(record, table)
        table["analyses"] = [
            name for name in table["analyses"] if (folder / f"{name}.png").exists()
        ]
    _write_record(path, record)
    _write_pages(output)
    sys.exit(code)


def _chosen(study: Study) -> list[str]:
    """The names of the tables that --tables gives, or of all."""
    tables = [table.name for table in study.tables]
    for name in _TABLES.value:
        if name not in tables:
            raise ConfigError(
                f"--tables={name}: {study.name} has {', '.join(tables)}{nearest(name, tables)}"
            )
    return _TABLES.value or tables


def _left(study: Study, runs: Sequence[StudyRun], recorded: Set[str]) -> list[StudyRun]:
    """The runs of the chosen tables that are not recorded. Two tables may hold the same run."""
    chosen = _chosen(study)
    left: dict[Path, StudyRun] = {}
    for run in runs:
        if run.name not in recorded and run.table.name in chosen:
            left.setdefault(run.folder, run)
    return list(left.values())


def _earlier(path: Path) -> dict[str, Any]:
    """The record on disk; with --drop, without the tables that --tables names."""
    if not path.exists():
        return {"tables": [], "claims": []}
    record = read_record(path)
    leave = _TABLES.value if _DROP.value else []
    return record | {"tables": [each for each in record["tables"] if each["name"] not in leave]}


def _make_record(
    study: Study, runs: Sequence[StudyRun], earlier: dict[str, Any], path: Path
) -> dict[str, Any]:
    """The record of the runs here, and of those in the earlier one; refuses to lose a run."""
    record = archive.with_earlier_runs(make_record(study, runs), earlier, study, runs)
    lost = run_names(earlier) - run_names(record)
    if lost and not _DROP.value:
        raise StudyError(
            f"{path} holds runs whose results are gone: {'; '.join(sorted(lost))}. Give the "
            "--workdir that has them, or --drop to let them leave the record"
        )
    return record


def _train(runs: Sequence[StudyRun]) -> int:
    """Trains the runs, for --minutes at most; the exit code of the program."""
    tasks = [
        train_task(
            run.arm.config,
            run.overrides,
            [f"--grace={GRACE_SECONDS}"],
            run.folder,
            name=run.name,
        )
        for run in runs
    ]
    # After `run_local` nothing is left to stop: a late alarm would end this process alone.
    default = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 60 * _MINUTES.value)  # 0 sets none
    try:
        failures = run_local(tasks, parallel=_PARALLEL.value)
    except Interrupted as stop:
        time_is_up = stop.signal == signal.SIGALRM
        reason = f"the time of --minutes={_MINUTES.value:g} is up" if time_is_up else stop
        print(f"\n{reason}; go on with the same command:\n  {shlex.join(sys.orig_argv)}\n")
        return EXIT_CODE
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, default)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _write_record(path: Path, record: dict[str, Any]) -> None:
    output = path.parent
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    print(path)
    for table in record["tables"]:
        picture = output / pages.figure_name(record, table)
        if pages.has_figure(table):
            print(save_figure(pages.to_figure(table), picture))
        else:
            picture.unlink(missing_ok=True)


def _analyse(record: dict[str, Any], runs: Sequence[StudyRun], output: Path) -> bool:
    """Runs `launch.analyse` on the checkpoints of the tables, those with the first seed.

    Returns:
      Whether all ended well.
    """
    ended_well = True
    for table in record["tables"]:
        folders = [
            run.folder
            for run in runs
            if run.table.name == table["name"]
            and run.seed == run.table.seeds[0]
            # `launch.analyse` needs a checkpoint, which `results/runs` does not keep.
            and run.results == run.folder
        ]
        if table["analyses"] and folders:
            to = output / pages.analysis_folder(record, table)
            command = [sys.executable, "-m", "launch.analyse", "--split=test", f"--output={to}"]
            command += [f"--analysis={','.join(table['analyses'])}"]
            if modules := flags.FLAGS["import"].value:
                command += [f"--import={','.join(modules)}"]
            done = subprocess.run([*command, *(f"--workdir={folder}" for folder in folders)])
            if done.returncode:
                print(f"{table['name']}: the analyses failed", file=sys.stderr)
                ended_well = False
    return ended_well


def _write_pages(output: Path) -> None:
    records = {}
    is_default = output.resolve() == (_ROOT / _OUTPUT.default).resolve()
    for path in sorted(output.glob("*.json")):
        if path.name.endswith(".partial.json"):
            continue  # a kill left half of a record
        record = read_record(path)
        records[record["name"]] = record
        with replacing(path.with_suffix(".md")) as partial:
            partial.write_text(pages.to_page(record, None if is_default else output))
    if is_default:
        cost = read_json(_ROOT / "docs" / "cost.json", dict)
        for name in _PAGES:
            page = _ROOT / name
            text = pages.with_blocks(page.read_text(), records, cost)
            with replacing(page) as partial:
                partial.write_text(text)


if __name__ == "__main__":
    run_program(main)
