r"""Analyses checkpoints: state sink, gates, insertion probe, ranks, the metric by repeats.

    python -m launch.analyse --workdir=runs/repetition/gated_deltanet \
        --workdir=runs/repetition/sinkrec --output=runs/repetition/analysis

Several runs that can be compared are drawn together; the seeds of one configuration have one
colour. `--analysis=all` leaves out the analyses that do not apply to the runs, and says why. Each
analysis writes a figure, `NAME.png`, and `NAME.json`: "about" (data, split, checkpoints), and
"runs", the numbers of each run:

    state_sink        occupancy lift and effective rank of the recurrent states, by mixer
    gates             how much gated delta memories keep and write at an event; their other gates
    insertion_probe   the rank of a rare event's item by events inserted, repeated or random
    attention_rank    RecGRELA's attention output with and without its local branch
    buckets           the metric by history length, by the share of repeats in the history, by how
                      long ago the target last followed the history's last item, and by the training
                      events of the target's item
"""

from pathlib import Path
from typing import cast

from absl import flags

from launch.flags import define_data, define_folder
from launch.program import run_program
from linseqrec.analysis import analyses
from linseqrec.analysis.insertion_probe import ProbeConfig
from linseqrec.analysis.subject import Subject
from linseqrec.config_fields import ConfigError
from linseqrec.files import write_json
from linseqrec.runs.comparable import Conditions, check_comparable
from linseqrec.runs.figures import save_figure
from linseqrec.runs.finished import run_names
from linseqrec.training.run import SplitName

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "Folder of a run.", required=True)
_OUTPUT = define_folder("output", "Folder of the numbers and figures.", required=True)
_DATA = define_data()
_ANALYSES = flags.DEFINE_multi_string(
    "analysis", ["all"], f"{', '.join(analyses.ANALYSES)}, or all; several by commas."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "`best`, `latest`, or a step.")
_SPLIT = flags.DEFINE_enum(
    "split", "validation", ["validation", "test"], "The targets; a history ends before its target."
)
_USERS = flags.DEFINE_integer("users", 512, "Greatest number of histories; buckets reads all.", 2)
_METRIC = flags.DEFINE_string("metric", "NDCG@10", "buckets: the metric to draw.")
_CONTEXT = flags.DEFINE_integer("context", 64, "insertion_probe: the user's own events.", 8)
_SHOWN = flags.DEFINE_integer("shown", 8, "insertion_probe: copies of the rare event.", 1)
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
    # The flags are checked before the first model is restored.
    names = [name.strip() for name in ",".join(_ANALYSES.value).split(",") if name.strip()]
    selected, settings = analyses.select(names), _settings()
    subjects = _subjects()
    for name, analysis in selected.items():
        applicable = analysis.applicable(subjects)
        others = ", ".join(subject.name for subject in subjects if subject not in applicable)
        reason = f"{name}: does not apply to {others} (no {analysis.needs})"
        try:
            if not applicable:
                raise ConfigError(reason)
            if others:
                print(reason)
            numbers, figure = analysis.run(applicable, settings)
        except ConfigError as error:
            # An analysis that was not requested by its name does not stop the others.
            if name in names:
                raise
            print(error if not applicable else f"{name}: {error}")
            continue
        about = analyses.about(name, applicable, settings)
        path = save_figure(figure, Path(_OUTPUT.value) / f"{name}.png")
        write_json(path.with_suffix(".json"), {"about": about, "runs": numbers})
        for caveat in about["caveats"]:
            print(f"{name}: {caveat}")
        print(f"{path.with_suffix('.json')}\n{path}")


def _subjects() -> list[Subject]:
    """The runs' checkpoints, restored."""
    folders = list(dict.fromkeys(Path(folder) for folder in _WORKDIRS.value))
    subjects = [
        Subject.of(folder, name, _CHECKPOINT.value, data=_DATA.value)
        for folder, name in zip(folders, run_names(folders), strict=True)
    ]
    check_comparable({subject.name: Conditions.of_run(subject.run) for subject in subjects})
    for subject in subjects:
        print(f"{subject.name}: checkpoint {subject.step}{'' if subject.step else ', untrained'}")
    return subjects


def _settings() -> analyses.Settings:
    try:
        insertions = tuple(map(int, _INSERTIONS.value))
    except ValueError:
        given = ",".join(_INSERTIONS.value)
        raise ConfigError(f"--insertions={given}: type counts, as in 0,4,16") from None
    probe = ProbeConfig(
        insertions, _CONTEXT.value, _SHOWN.value, pattern=_PATTERN.value, noise=_NOISE.value
    )
    return analyses.Settings(cast(SplitName, _SPLIT.value), _USERS.value, _METRIC.value, probe)


if __name__ == "__main__":
    run_program(main)
