"""Measures parts of the library and prints medians and ratios.

    python -m launch.benchmark --suite=cross_entropy --output=runs/cross_entropy.json

A suite is a file of `linseqrec/benchmarks/` with a function `rows(repeats)`; `--suite` takes
several names separated by commas, or `all`. The JSON holds the machine, the versions and every row;
a page of the same name, with tables, stands beside it. `--suite=gpu` is a check of a whole GPU
(docs/gpu.md).
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

_SUITE = flags.DEFINE_list("suite", ["all"], "Suites to run, or `all`.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed rounds a case.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file for the figures, a Markdown page beside it; none without."
)


def suite_names() -> list[str]:
    """The names `--suite` accepts: the modules of `linseqrec.benchmarks` but the measuring one."""
    modules = pkgutil.iter_modules(linseqrec.benchmarks.__path__)
    return sorted(module.name for module in modules if module.name != "measuring")


def select(requested: Sequence[str]) -> list[str]:
    """The suites asked for, in order.

    Raises:
      UsageError: A name that is no suite.
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
    """One printed line: median, quartiles, ratio to the case's first, CPU time, further figures."""
    parts = [f"  {row.variant:<44}"]
    if row.seconds is not None:
        parts.append(f"{row.seconds * 1e3:10.2f} ms")
    if row.quartiles is not None:
        parts.append("[{:.2f}, {:.2f}]".format(*(1e3 * value for value in row.quartiles)))
    if row.ratio is not None:
        parts.append(f"x {row.ratio:.2f}")
    if row.processor_seconds is not None:
        parts.append(f"cpu {row.processor_seconds * 1e3:.2f} ms")
    parts += [f"{name}={_number(value)}" for name, value in row.extra.items()]
    return "  ".join(parts)


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown, with one table per case."""
    devices = ", ".join(dict.fromkeys(report["devices"]))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = ["# Benchmark", "", f"{report['time']}; {devices}; {report['processor']}; {versions}."]
    for suite, rows in report["suites"].items():
        lines += ["", f"## {suite}"]
        for case, group in itertools.groupby(rows, key=operator.itemgetter("case")):
            of_case = list(group)
            names = list(dict.fromkeys(name for row in of_case for name in row["extra"]))
            timed = any(row["seconds"] is not None for row in of_case)
            heads = ["", *(("ms", "ratio") if timed else ()), *names]
            lines += [
                "",
                f"**{case}**",
                "",
                _cells(heads),
                "|---" + "|---:" * (len(heads) - 1) + "|",
            ]
            for row in of_case:
                times: tuple[str, ...] = ()
                if timed:
                    seconds, ratio = row["seconds"], row["ratio"]
                    times = (_number(None if seconds is None else 1e3 * seconds), _number(ratio))
                lines.append(
                    _cells([row["variant"], *times, *(_number(row["extra"].get(n)) for n in names)])
                )
    return "\n".join(lines) + "\n"


def _cells(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _number(value: float | int | str | None) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value or ""


def main(argv: list[str]) -> None:
    """Runs the suites; rows are printed as they come."""
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
        output.write_text(json.dumps(report, indent=2) + "\n")
        output.with_suffix(".md").write_text(page(report))
        print(f"\nwrote {output} and {output.with_suffix('.md')}")


if __name__ == "__main__":
    # As the figures in `docs/` were measured.
    run_program(main, keep_freed_memory=False)
