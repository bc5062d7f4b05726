"""Pages and figures of studies, made of their records alone."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from linseqrec.config_fields import to_text
from linseqrec.evaluation.result import SELECTION_METRIC
from linseqrec.runs.figures import SYSTEMS, looks
from linseqrec.runs.tables import escape, markdown_table
from linseqrec.studies.record import ERRORS
from linseqrec.studies.study import StudyError

Record = Mapping[str, Any]

# A part of a page that is made of the records: "<!-- study NAME TABLE FILTER -->",
# "<!-- study claims -->" or "<!-- study cost -->", up to "<!-- end of study -->".
_BLOCK = re.compile(
    r"(<!-- study ([^>]*) -->\n)((?:(?!<!-- study).)*?)(<!-- end of study -->)", re.DOTALL
)
_HOW = (
    'A claim that ends in "(MODEL)" comes from that model\'s paper, and we test it on our data '
    "with our code. The other claims are ours. The difference is first mean − (1 + margin) × "
    "second mean; the margin is 0 unless the row shows one. The first ± is the standard error over "
    "users, the second the standard error over seeds. A claim holds if the difference is more than "
    "two standard errors above 0; with few seeds, Student's t asks for more. It does not hold if "
    "the difference is as far below 0. Otherwise it is open. Verdicts in bold rest on several "
    "seeds. If runs come from several machines, the users are not paired, which makes the error "
    'larger. "Counting" is the counting baseline with the best NDCG@10. A published metric counts '
    "as exact."
)


def to_page(record: Record, output: Path | None = None) -> str:
    """The page of a study, in Markdown.

    Args:
      record: Of the study.
      output: The folder of the page; None is `results`, which `launch.study` takes by default.
    """
    parts = [f"# {escape(record['title'])}", record["about"]]
    if record["claims"]:
        parts += ["## Claims", claims_table(record)]
    for table in record["tables"]:
        parts += _section(record, table)
    flag = f" --output={shlex.quote(str(output))}" if output else ""
    in_a_clone = (
        " In a clone it trains only the runs that the record lacks; with `--output=runs/results` "
        "it trains all runs again."
    )
    parts += [
        "## Run it",
        "```bash\n"
        f"python -m launch.study --study=experiments/studies/{record['name']}.py \\\n"
        f"    --workdir=runs/studies{flag}\n"
        "```",
        f"The same command continues a study that was stopped.{'' if output else in_a_clone}",
    ]
    return "\n\n".join(parts) + "\n"


def _section(record: Record, table: Record) -> Iterator[str]:
    # The name is what `--tables` takes.
    yield f"## `{table['name']}`" + (f": {escape(table['title'])}" if table["title"] else "")
    yield table["caption"]
    for filter_seen in table["filters"]:
        yield results_block(table, filter_seen)
    if table["models"] and table.get("search"):
        yield _search_block(table)
    if has_figure(table):
        first = next(iter(table["filters"].values()))
        picture = f"{SELECTION_METRIC} of each system, seen items {escape(first)}"
        yield f"![{picture}]({figure_name(record, table)})"
    if table["models"]:
        for analysis in table["analyses"]:
            folder = analysis_folder(record, table)
            yield f"![{analysis.replace('_', ' ').capitalize()}]({folder}/{analysis}.png)"
        yield _provenance(table)
    if table["missing"]:
        yield f"Not run yet. {escape(_missing(table))}."


def _selected(table: Record) -> Record:
    """A table with the arm of each model that validation selects, if it is one of searches."""
    if not table.get("search"):
        return table
    best: dict[str, Record] = {}
    for model in table["models"]:
        name = _searched(model)[0]
        if name not in best or _validation(model) > _validation(best[name]):
            best[name] = model
    return {**table, "models": list(best.values())}


def _searched(model: Record) -> tuple[str, str]:
    """The model of an arm of a search, and what the arm changes."""
    name, _, change = model["label"].partition(", ")
    return name, change


def _validation(model: Record) -> float:
    return sum(model["validation"]) / len(model["validation"])


def _search_block(table: Record) -> str:
    """What each arm of the searches reached in validation, a column a change."""
    changes = list(dict.fromkeys(_searched(model)[1] for model in table["models"]))
    rows: dict[str, dict[str, str]] = {}
    for model in table["models"]:
        name, change = _searched(model)
        rows.setdefault(name, {})[change] = number(_validation(model))
    cells = [[name, *(own.get(change, "") for change in changes)] for name, own in rows.items()]
    return (
        f"Validation {SELECTION_METRIC} of all configurations tried; it selected the rows "
        f"above:\n\n{markdown_table(['', *changes], cells, text_columns=1)}"
    )


def _missing(table: Record) -> str:
    """What a table lacks, in words: arms with the same seeds together."""
    by_seeds: dict[str, list[str]] = {}
    for label, seeds in table["missing"].items():
        by_seeds.setdefault(", ".join(map(str, seeds)), []).append(label)
    return ". ".join(
        f"Seed{'s' * (',' in seeds)} {seeds}: {'; '.join(labels)}"
        for seeds, labels in by_seeds.items()
    )


def results_block(table: Record, filter_seen: str, *, short: bool = False) -> str:
    """A table's results under one filter of seen items: the protocol, the cells, their errors.

    Args:
      table: Of a record.
      filter_seen: One of its filters.
      short: Whether only the best counting baseline, and an oracle, stand beside the models.
    """
    metric, ran = table["metrics"][-1], {model["label"] for model in table["models"]}
    table = _selected(table)
    several = any(len(model["runs"]) > 1 for model in table["models"])
    header = ["", "parameters", "seeds", *table["metrics"]]
    rows = [
        [
            model["label"],
            f"{model['parameters'] / 1000:,.0f} k",
            str(len(model["runs"])),
            *(_cell(model["metrics"][filter_seen][metric]) for metric in table["metrics"]),
        ]
        for model in sorted(
            table["models"],
            key=lambda model: -model["metrics"][filter_seen][metric]["mean"],
        )
    ]
    rows += [
        [
            each["label"],
            "",
            "",
            *(number(each["metrics"][filter_seen][m]) for m in table["metrics"]),
        ]
        for each in sorted(
            _references(table, filter_seen, metric) if short else table["baselines"],
            key=lambda each: -each["metrics"][filter_seen][metric],
        )
    ]
    errors = {
        metric: max(model["metrics"][filter_seen][metric]["error"] for model in table["models"])
        for metric in table["metrics"]
    }
    listed = ", ".join(f"{metric} {number(error)}" for metric, error in errors.items())
    waiting = [label for label in table["missing"] if label not in ran]
    return (
        f"{table['split'].capitalize()}, {table['targets']:,} targets, all {table['num_items']:,} "
        f"items ranked, seen items {escape(table['filters'][filter_seen])}, {table['ties']} ties:"
        f"\n\n{markdown_table(header, rows, text_columns=1)}\n\n"
        f"Standard errors over users, at most: {listed}."
        + (" ± is the standard deviation over seeds." if several else " One seed.")
        + (f" Not run yet: {', '.join(waiting)}." if short and waiting else "")
    )


def _references(table: Record, filter_seen: str, metric: str) -> list[Record]:
    """The best counting baseline, if there is one, and the oracle of a generated world."""
    counting = [each for each in table["baselines"] if not each["oracle"]]
    best = sorted(counting, key=lambda each: each["metrics"][filter_seen][metric])[-1:]
    return [*best, *(each for each in table["baselines"] if each["oracle"])]


def claims_table(record: Record) -> str:
    """The claims of a study with what was measured and the verdicts."""
    return f"{_claims([record])}\n\n{_HOW}"


def judged_claims(records: Sequence[Record]) -> str:
    """The claims of several studies that say something, with links to the studies' pages.

    What is open after one seed waits for more runs, as what was not run does.
    """
    left = {
        record["name"]: sum(1 for claim in record["claims"] if _waits(claim)) for record in records
    }
    listed = ", ".join(f"{count} of {_link(name)}" for name, count in left.items() if count)
    waiting = f" Claims that were not run, or are open after one seed: {listed}." if listed else ""
    return f"{_claims(records, judged=True)}\n\n{_HOW}{waiting}"


def _claims(records: Sequence[Record], *, judged: bool = False) -> str:
    header = ["claim", "verdict", "measured", "difference", *["study"] * judged]
    rows = [
        [
            # Claims name worlds and fields as code.
            escape(claim["text"]).replace("\\`", "`"),
            _verdict(claim),
            _sides(claim, _data(record, claim)),
            _effect(claim),
            *[_link(record["name"])] * judged,
        ]
        for record in records
        for claim in record["claims"]
        if not (judged and _waits(claim))
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines)


def _waits(claim: Record) -> bool:
    return bool(claim["reason"]) or (claim["verdict"] == "open" and claim["seeds"] == 1)


def _link(study: str) -> str:
    return f"[{study}](results/{study}.md)"


def _verdict(claim: Record) -> str:
    if claim["reason"]:
        return f"open: {claim['reason']}"
    if claim["seeds"] == 1:
        return f"{claim['verdict']} (one seed)"
    return f"**{claim['verdict']}**"


def _data(record: Record, claim: Record) -> str:
    """A claim's data, and what a reader must know of them: a table's title without the split."""
    title = next(each["title"] for each in record["tables"] if each["name"] == claim["table"])
    return "; ".join(part for part in title.split("; ") if not part.startswith("split "))


def _sides(claim: Record, data: str) -> str:
    if claim["reason"]:
        return ""
    at = f", after {claim['min_events']:,} events" if claim["min_events"] else ""
    second = escape(claim["second"])
    if claim.get("source"):
        second = f"[{second}]({claim['source']})"
    return (
        f"{escape(claim['first'])}: {number(claim['first_mean'])}; {second}: "
        f"{number(claim['second_mean'])} {claim['metric']}{at}. {escape(data)}"
    )


def _effect(claim: Record) -> str:
    if claim["reason"]:
        return ""
    over_seeds = claim["error_over_seeds"]
    seeds = "" if over_seeds is None else f" ± {number(over_seeds)}"
    margin = f" (margin {claim['margin']:.0%})" if claim["margin"] else ""
    paired = "" if claim.get("paired", True) else " (not paired)"
    return f"{number(claim['effect'])} ± {number(claim['error_over_users'])}{seeds}{margin}{paired}"


def number(value: float) -> str:
    """A metric with four decimals and no zero before the point."""
    return ("−" if value < 0 else "") + f"{abs(value):.4f}".removeprefix("0")


def _cell(statistics: Record) -> str:
    spread = "" if statistics["sd"] is None else f" ± {number(statistics['sd'])}"
    return number(statistics["mean"]) + spread


def _provenance(table: Record) -> str:
    runs = [run for model in table["models"] for run in model["runs"]]
    commits: dict[str, dict[str, None]] = {}
    for model in table["models"]:
        for run in model["runs"]:
            commits.setdefault(run["commit"] or "unknown", {})[model["label"]] = None
    devices = dict.fromkeys(
        f"{run['device']}, {run['cpu_count']} cores" for run in runs if run["device"]
    )
    jax = dict.fromkeys((run["packages"] or {}).get("jax", "") for run in runs)
    minutes = [run["minutes"] for run in runs if run["minutes"] is not None]
    changed = [
        f"{model['label']}: "
        + " ".join(f"{field}={_text(value)}" for field, value in model["overrides"].items())
        for model in table["models"]
        if model["overrides"]
    ]
    lines = [
        f"- Runs: {len(runs)}, {sum(minutes):,.0f} minutes of training; on {'; '.join(devices)}; "
        f"jax {', '.join(jax)}."
    ]
    lines += [
        f"- Commit {commit.replace('-dirty', ' with uncommitted changes')}: "
        f"{escape('; '.join(own))}."
        for commit, own in commits.items()
    ]
    configs = dict.fromkeys(model["config"].partition(":")[0] for model in table["models"])
    lines.append(f"- Configurations: {', '.join(f'`{config}`' for config in configs)}.")
    lines += [f"- {escape(line)}." for line in changed]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return to_text(tuple(value) if isinstance(value, list) else value)


# ---------------------------------------------------------------------------- parts of other pages
def with_blocks(page: str, records: Mapping[str, Record], cost: Record) -> str:
    """A page whose parts "<!-- study ... -->" are made anew.

    Args:
      page: Markdown.
      records: By the study's name.
      cost: What `launch.benchmark --suite=models` wrote.

    Raises:
      StudyError: If a part names a study, table or filter that there is not.
    """

    def made(match: re.Match[str]) -> str:
        start, words, _, end = match.groups()
        return f"{start}\n{_block(words.split(), records, cost)}\n\n{end}"

    return _BLOCK.sub(made, page)


def _block(words: Sequence[str], records: Mapping[str, Record], cost: Record) -> str:
    if list(words) == ["cost"]:
        return cost_table(cost)
    if list(words) == ["claims"]:
        return judged_claims(list(records.values()))
    try:
        study, name, filter_seen = words
        table = next(each for each in records[study]["tables"] if each["name"] == name)
        if not table["models"]:
            return f"Table {name} of {_link(study)}: not run yet."
        block = results_block(table, filter_seen, short=True)
        return f"**{escape(table['title'])}.** {block}"
    except (ValueError, KeyError, StopIteration) as error:
        raise StudyError(
            f"<!-- study {' '.join(words)} -->: write STUDY TABLE FILTER, of a record in results/"
        ) from error


def cost_table(cost: Record) -> str:
    """How the cost of encoding a history grows with its length, by model."""
    rows = [row for row in cost["suites"]["models"] if row["case"].startswith("forward, by length")]
    columns = list(dict.fromkeys(name for row in rows for name in row["extra"]))
    # SASRec and HSTU, which the others are compared with, have an exponent alone.
    references = [row for row in rows if len(row["extra"]) == 1]
    exponents = ", ".join(
        f"{row['variant']} {_cost(row['extra'][columns[0]])}" for row in references
    )
    cells = [
        [row["variant"], *(_cost(row["extra"].get(column, "")) for column in columns)]
        for row in rows
        if row not in references
    ]
    devices = ", ".join(dict.fromkeys(cost["devices"]))
    return (
        "Time of a forward pass over random histories of 100 to 12,000 events, on one core "
        f"({devices}, {cost['processor']}). Models have width 64 and four blocks; HyTRec has two "
        "more in its short branch, and SinkRec passes one block twice. An exponent of 1 is linear, "
        f"2 is quadratic; {exponents}. "
        "[All times](docs/cost.md):\n\n"
        f"{markdown_table(['', *columns], cells, text_columns=1)}"
    )


def _cost(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


# ---------------------------------------------------------------------------- figures
def has_figure(table: Record) -> bool:
    """Whether there is anything to compare in a figure."""
    return len(table["models"]) > 1


def figure_name(record: Record, table: Record) -> str:
    """The file of a table's figure."""
    return f"{record['name']}_{table['name']}.png"


def analysis_folder(record: Record, table: Record) -> str:
    """The folder of what `launch.analyse` wrote of a table's runs, within that of the records."""
    return f"analyses/{record['name']}_{table['name']}"


def to_figure(table: Record) -> Figure:
    """The selection metric of each system of a table, with bars of two standard errors."""
    table = _selected(table)
    filter_seen, metric = next(iter(table["filters"])), SELECTION_METRIC
    models = sorted(
        table["models"], key=lambda model: model["metrics"][filter_seen][metric]["mean"]
    )
    look = looks(SYSTEMS)
    figure = Figure(figsize=(7, 1.5 + 0.3 * len(models)), layout="constrained")
    axes = figure.subplots()
    for place, model in enumerate(models):
        statistics = model["metrics"][filter_seen][metric]
        style = look.get(model["label"].split(",")[0], {"color": "#333333", "marker": "o"})
        axes.errorbar(
            statistics["mean"],
            place,
            xerr=ERRORS * statistics["error"],
            color=style["color"],
            marker=style["marker"],
            capsize=3,
        )
    axes.set_yticks(range(len(models)), [model["label"] for model in models])
    for reference in _references(table, filter_seen, metric):
        value = reference["metrics"][filter_seen][metric]
        axes.axvline(value, color="#666666", linestyle="--", linewidth=1)
        axes.annotate(
            f" {reference['label']}",
            (value, len(models) - 0.4),
            color="#666666",
            annotation_clip=False,
            ha="center",
            va="bottom",
            fontsize="small",
        )
    axes.set_ylim(-0.5, len(models) - 0.4)
    axes.set_xlabel(
        f"{metric}, seen items {table['filters'][filter_seen].partition(' (')[0]}\n"
        "bars are two standard errors over users"
    )
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle(table["title"], fontsize="medium")
    return figure
