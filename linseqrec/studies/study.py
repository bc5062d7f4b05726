"""What a study is: tables of configurations over seeds, and the claims that they are held against.

A study is data (`experiments/studies/`). `record` reads what its runs gave, and `pages` shows it.
"""

import dataclasses
import itertools
import runpy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from linseqrec.config import Experiment
from linseqrec.config_fields import field_names
from linseqrec.config_json import override
from linseqrec.errors import UserError
from linseqrec.evaluation.metrics import check_metric
from linseqrec.evaluation.result import SELECTION_METRIC
from linseqrec.sweeps.folders import folder_name

# As the second system of a claim: the counting baseline with the highest `SELECTION_METRIC`.
COUNTING = "counting"


class StudyError(UserError, ValueError):
    """A study is not valid, or runs do not fit it."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A configuration of a table.

    Attributes:
      label: Its name in the table.
      config: The experiment, FILE:NAME.
      overrides: Values of the experiment's fields, by dotted name.
    """

    label: str
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def arms(
    config: str, changes: Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any] | None = None
) -> tuple[Arm, ...]:
    """Arms of one experiment.

    Args:
      config: The experiment, FILE:NAME.
      changes: The overrides of each arm, by its label.
      shared: Overrides of all arms.
    """
    return tuple(Arm(label, config, {**(shared or {}), **own}) for label, own in changes.items())


@dataclasses.dataclass(frozen=True)
class Table:
    """Configurations that are trained on one data set and stand in one table.

    Attributes:
      name: A short name, for files and links.
      caption: What the table asks, for its readers.
      arms: The configurations.
      seeds: The values of `training.seed`.
      metrics: Its columns.
      analyses: Of its checkpoints with the first seed, by name (`launch.analyse`).
      search: Whether the arms are one search a model, called "MODEL, CHANGE": of each model, the
        page shows the arm that validation selects.
    """

    name: str
    caption: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    metrics: tuple[str, ...] = ("HR@10", "NDCG@10")
    analyses: tuple[str, ...] = ()
    search: bool = False

    def __post_init__(self) -> None:
        labels = [arm.label for arm in self.arms]
        if len(set(labels)) < len(labels):
            raise StudyError(f"table {self.name}: two of its arms have the same label")
        if seeded := [arm.label for arm in self.arms if "training.seed" in arm.overrides]:
            raise StudyError(
                f"table {self.name}: arm {seeded[0]!r} sets training.seed: give the table's seeds"
            )
        for metric in self.metrics:
            check_metric(metric)
        if SELECTION_METRIC not in self.metrics:
            raise StudyError(f"table {self.name}: its metrics must hold {SELECTION_METRIC}")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement that one system of a table is better than others.

    It holds if the first system's mean is more than two standard errors above (1 + `margin`) times
    the second's. It does not hold if it is more than two standard errors below. Otherwise it is
    open. With few seeds, Student's t enlarges the standard error over seeds.

    Attributes:
      text: The statement, for readers, with the paper that makes it.
      table: The table's name.
      first: The label of an arm.
      second: Labels of arms, the best of which counts; a published figure; or `COUNTING`, for
        `SELECTION_METRIC` and all targets only.
      metric: The metric.
      filter_seen: The filter of seen items.
      margin: The share by which the first is to be better.
      min_events: Only targets after at least so many events.
      source: Where a published figure stands: a link.
    """

    text: str
    table: str
    first: str
    second: tuple[str, ...] | str | float
    metric: str = "NDCG@10"
    filter_seen: str = "none"
    margin: float = 0.0
    min_events: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if self.second == COUNTING:
            if self.metric != SELECTION_METRIC or self.min_events:
                raise StudyError(
                    f"claim {self.text!r}: the best counting baseline is the one with the highest "
                    f"{SELECTION_METRIC} of all targets: compare that"
                )
        elif not isinstance(self.second, tuple | float):
            raise StudyError(
                f"claim {self.text!r}: second is {self.second!r}: it must be a tuple of arms' "
                "labels, COUNTING, or a published figure such as 0.5"
            )


@dataclasses.dataclass(frozen=True)
class Study:
    """Tables and claims about one question.

    Attributes:
      name: The name of its files.
      title: For readers.
      about: A paragraph of Markdown: what is asked, and what a reader must know.
      tables: The tables.
      claims: The claims.
    """

    name: str
    title: str
    about: str
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        if not self.tables:
            raise StudyError(f"study {self.name} has no table")
        labels = {table.name: [arm.label for arm in table.arms] for table in self.tables}
        if len(labels) < len(self.tables):
            raise StudyError(f"study {self.name}: two of its tables have the same name")
        for claim in self.claims:
            if claim.table not in labels:
                raise StudyError(f"claim {claim.text!r}: there is no table {claim.table!r}")
            others = claim.second if isinstance(claim.second, tuple) else ()
            for label in (claim.first, *others):
                if label not in labels[claim.table]:
                    raise StudyError(
                        f"claim {claim.text!r}: table {claim.table} has no arm {label!r}"
                    )


def load_study(file: str | Path) -> Study:
    """The `STUDY` of a file.

    Raises:
      StudyError: If there is no such file, or it defines no study.
    """
    if not Path(file).is_file():
        raise StudyError(f"no study {file}")
    made = runpy.run_path(str(file)).get("STUDY")
    if not isinstance(made, Study):
        raise StudyError(f"{file} defines no STUDY")
    return made


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
      table: Its table.
      arm: Its arm.
      seed: Its seed.
      overrides: Those of the arm, and the seed.
      experiment: Its configuration.
      folder: Its workdir. Studies that have a run in common share the folder.
      kept: Where its results are kept without its workdir (`archive.keep`).
    """

    table: Table
    arm: Arm
    seed: int
    overrides: dict[str, Any]
    experiment: Experiment
    folder: Path
    kept: Path

    @property
    def name(self) -> str:
        """As "table, label, seed 0"."""
        return f"{self.table.name}, {self.arm.label}, seed {self.seed}"

    @property
    def results(self) -> Path | None:
        """The folder with its results; None: it has not finished."""
        folders = (self.folder, self.kept)
        return next((path for path in folders if (path / "results.json").exists()), None)


def study_runs(
    study: Study, load: Callable[[str], Experiment], workdir: Path, kept: Path
) -> Iterator[StudyRun]:
    """The runs of a study, most wanted first: all arms with their first seed, then the second.

    Args:
      study: The study.
      load: Makes the experiment of FILE:NAME.
      workdir: The folder of all studies' runs.
      kept: The folder of all results that are kept.

    Raises:
      ConfigError: If an arm's configuration cannot be.
      StudyError: If it sets a field that its experiment does not have.
    """
    num_seeds = max(len(table.seeds) for table in study.tables)
    for place, table in itertools.product(range(num_seeds), study.tables):
        for arm, seed in itertools.product(table.arms, table.seeds[place : place + 1]):
            template = load(arm.config)
            names = field_names(template)
            values = {**arm.overrides, "training.seed": seed}
            if unknown := values.keys() - set(names):
                raise StudyError(f"arm {arm.label!r}: {arm.config} has no field {unknown.pop()}")
            overrides = {field: values[field] for field in names if field in values}
            file, _, name = arm.config.partition(":")
            folder = Path(Path(file).stem, name or "default", folder_name(overrides, names))
            yield StudyRun(
                table=table,
                arm=arm,
                seed=seed,
                overrides=overrides,
                experiment=override(template, overrides),
                folder=workdir / folder,
                kept=kept / folder,
            )
