"""Measures the time and memory of parts of the library.

    python -m launch.benchmark --suite=cross_entropy --output=runs/cross_entropy.json

The program prints the median times and their ratios. `--suite` takes several names separated by
commas, or `all`; a suite is a file of `linseqrec/benchmarks/` with a function `rows(repeats)`.
`--output` names a JSON file for the machine, the versions and every row. The program writes the
same rows as tables to a Markdown file beside it. `--suite=gpu` checks a GPU (docs/gpu.md).
"""

import dataclasses
import importlib
import itertools
import json
import operator
import pathlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

import linseqrec.benchmarks
from launch.program import run_program
from linseqrec.benchmarks import measuring
from linseqrec.files import write_json

_SUITE = flags.DEFINE_list("suite", ["all"], "Suites to run, or `all`.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed rounds per case.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file to write, with a Markdown file beside it. [default: no file]"
)
flags.register_validator(
    "output", lambda path: not path or path.endswith(".json"), message="name a .json file"
)


def suite_names() -> list[str]:
    """The names of all suites: the modules of `linseqrec.benchmarks` except `measuring`."""
    modules = pkgutil.iter_modules(linseqrec.benchmarks.__path__)
    return sorted(module.name for module in modules if module.name != "measuring")


def select(requested: Sequence[str]) -> list[str]:
    """The requested suites, in order.

    Args:
      requested: The value of `--suite`.

    Raises:
      UsageError: A name is not that of a suite.
    """
    names = suite_names()
    if list(requested) == ["all"]:
        return names
    unknown = [name for name in requested if name not in names]
    if unknown:
        raise app.UsageError(
            f"no suite {', '.join(unknown)}: --suite takes {', '.join(names)} or all"
        )
    return list(requested)


def describe(row: measuring.Row) -> str:
    """A row as one line: median, quartiles, ratio, processor time and other measurements."""
    parts = [f"  {row.variant:<44}"]
    if row.seconds is not None:
        parts.append(f"{row.seconds * 1e3:10.2f} ms")
    if row.quartiles is not None:
        parts.append("[{:.2f}, {:.2f}]".format(*(1e3 * value for value in row.quartiles)))
    if row.ratio is not None:
        parts.append(f"x {row.ratio:.2f}")
    if row.processor_seconds is not None:
        parts.append(f"cpu {row.processor_seconds * 1e3:.2f} ms")
    parts += [f"{name}={_text(value)}" for name, value in row.extra.items()]
    return "  ".join(parts)


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown with one table per case."""
    devices = ", ".join(dict.fromkeys(report["devices"]))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        "# Benchmark",
        "",
        f"`python -m launch.benchmark --suite={','.join(report['suites'])} --output=FILE.json` "
        "writes this page. ms: the median of several rounds. ratio: the median over the rounds of "
        "a time divided by that of the table's first row. Compare times within a table only: other "
        "programs may have used the machine. B is rows, T events a row, D the width.",
        "",
        f"{report['time']}; {devices}; {report['processor']}; {versions}.",
    ]
    for suite, rows in report["suites"].items():
        lines += ["", f"## {suite}"]
        for case, group in itertools.groupby(rows, key=operator.itemgetter("case")):
            case_rows = list(group)
            names = list(dict.fromkeys(name for row in case_rows for name in row["extra"]))
            has_times = any(row["seconds"] is not None for row in case_rows)
            heads = ["", *(("ms", "ratio") if has_times else ()), *names]
            lines += [
                "",
                f"**{case}**",
                "",
                _table_row(heads),
                "|---" + "|---:" * (len(heads) - 1) + "|",
            ]
            for row in case_rows:
                cells = [row["variant"]]
                if has_times:
                    seconds, ratio = row["seconds"], row["ratio"]
                    cells += [_text(None if seconds is None else 1e3 * seconds), _text(ratio)]
                cells += [_text(row["extra"].get(name)) for name in names]
                lines.append(_table_row(cells))
    return "\n".join(lines) + "\n"


def _table_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(value: float | int | str | None) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value or ""


def main(argv: list[str]) -> None:
    """Runs the suites and prints each row as soon as it is measured."""
    del argv
    selected = select(_SUITE.value)
    report = measuring.environment()
    print(json.dumps(report, indent=2))
    report["suites"] = {}
    for name in selected:
        print(f"\n{name}")
        rows: list[dict] = []
        case = None
        for row in importlib.import_module(f"linseqrec.benchmarks.{name}").rows(_REPEATS.value):
            if row.case != case:
                case = row.case
                print(f" {case}")
            print(describe(row), flush=True)
            rows.append(dataclasses.asdict(row))
        report["suites"][name] = rows
    if _OUTPUT.value:
        output = pathlib.Path(_OUTPUT.value)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, report)
        output.with_suffix(".md").write_text(page(report))
        print(f"\nwrote {output} and {output.with_suffix('.md')}")


if __name__ == "__main__":
    # The measurements in `docs/` were made with this setting.
    run_program(main, keep_freed_memory=False)
