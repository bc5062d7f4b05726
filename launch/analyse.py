r"""Looks into checkpoints: state sink, gates, insertion probe, ranks, the metric by repeats.

    python -m launch.analyse --workdir=runs/repetition/gated_deltanet \
        --workdir=runs/repetition/sinkrec --output=runs/repetition/analysis

Several runs of one data set are drawn together. `all` leaves out what these do not allow, and says
why. Each analysis writes `NAME.png`, and `NAME.json`: "about" (data, split, checkpoints) and
"runs", the numbers of each:

    state_sink        occupancy lift and effective rank of the recurrent states, a mixer each
    gates             what gated delta memories keep and write at an event, and their other gates
    insertion_probe   the rank of a rare event's item against events inserted, repeated or random
    attention_rank    RecGRELA's attention output with and without its local branch
    buckets           the metric by history length, by the share of the history that repeats, and by
                      how long ago the target last followed the item that it follows now
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from absl import flags

from launch.flags import define_data, define_folder
from launch.program import run_program
from linseqrec.analysis import analyses
from linseqrec.analysis.insertion_probe import ProbeConfig
from linseqrec.analysis.subject import Subject
from linseqrec.config_checks import ConfigError
from linseqrec.evaluation.figures import save_figure
from linseqrec.training import workdir
from linseqrec.training.run import SplitName

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "Folder of a run.", required=True)
_OUTPUT = define_folder("output", "Folder of the numbers and figures.", required=True)
_DATA = define_data()
_ANALYSES = flags.DEFINE_multi_string(
    "analysis", ["all"], f"{', '.join(analyses.ANALYSES)}, or all; several by commas."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "`best`, `latest`, or a step.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "Whose histories.")
_USERS = flags.DEFINE_integer("users", 512, "Histories looked into, at most; buckets takes all.", 2)
_METRIC = flags.DEFINE_string("metric", "NDCG@10", "What is drawn by bucket.")
_CONTEXT = flags.DEFINE_integer("context", 64, "insertion_probe: own events.", 8)
_SHOWN = flags.DEFINE_integer("shown", 8, "insertion_probe: times the rare event comes.", 1)
_INSERTIONS = flags.DEFINE_list(
    "insertions", ["0", "4", "16", "64", "256"], "insertion_probe: events inserted, ascending."
)
_PATTERN = flags.DEFINE_integer(
    "pattern", ProbeConfig.pattern, "insertion_probe: events of the pattern that is copied.", 1
)
_NOISE = flags.DEFINE_float(
    "noise", ProbeConfig.noise, "insertion_probe: share of a copy's events drawn anew.", 0, 1
)


def main(_: list[str]) -> None:
    # All that can be checked without a model, before the first is restored.
    requested, settings = _requested(), _settings()
    folders = list(dict.fromkeys(Path(folder) for folder in _WORKDIRS.value))
    subjects = [
        Subject.of(folder, name, _CHECKPOINT.value, data=_DATA.value)
        for folder, name in zip(folders, workdir.run_names(folders), strict=True)
    ]
    analyses.check_comparable(subjects)
    for subject in subjects:
        print(f"{subject.name}: checkpoint {subject.step}{'' if subject.step else ', untrained'}")
    output = Path(_OUTPUT.value)
    for name, analyse in requested.items():
        chosen = analyses.applicable(name, subjects)
        if left_out := [subject.name for subject in subjects if subject not in chosen]:
            want = analyses.LOOKS_INTO[name][0]
            reason = f"{name}: does not apply to {', '.join(left_out)} (no {want})"
            if not chosen and name in _named():
                raise ConfigError(reason)
            print(reason)
        if chosen:
            try:
                _write(name, analyse, chosen, settings, output)
            except ConfigError as error:
                # One that was not asked for by name keeps nobody from the others.
                if name in _named():
                    raise
                print(f"{name}: {error}")


def _requested() -> dict[str, Callable[..., analyses.Analysis]]:
    return analyses.select(_named())


def _named() -> list[str]:
    named = ",".join(_ANALYSES.value).split(",")
    return [name for name in map(str.strip, named) if name]


def _settings() -> analyses.Settings:
    try:
        insertions = tuple(map(int, _INSERTIONS.value))
    except ValueError:
        given = ",".join(_INSERTIONS.value)
        raise ConfigError(f"--insertions={given}: they are counts of events") from None
    probe = ProbeConfig(
        insertions, _CONTEXT.value, _SHOWN.value, pattern=_PATTERN.value, noise=_NOISE.value
    )
    return analyses.Settings(cast(SplitName, _SPLIT.value), _USERS.value, _METRIC.value, probe)


def _write(
    name: str,
    analyse: Callable[..., analyses.Analysis],
    subjects: list[Subject],
    settings: analyses.Settings,
    output: Path,
) -> None:
    numbers, figure = analyse(subjects, settings)
    path = save_figure(figure, output / f"{name}.png")
    record = {"about": analyses.about(name, subjects, settings), "runs": numbers}
    workdir.write_json(path.with_suffix(".json"), record)
    for caveat in record["about"]["caveats"]:
        print(f"{name}: {caveat}")
    print(f"{path.with_suffix('.json')}\n{path}")


if __name__ == "__main__":
    run_program(main)
