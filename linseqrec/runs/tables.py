"""Tables in Markdown, also readable as plain text."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from linseqrec.evaluation.result import filter_in_words, filters_by_fit
from linseqrec.runs.comparable import Conditions, check_comparable

# Control characters, line separators, and characters that turn the direction of writing.
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")

METRICS = ("HR@1", "HR@10", "NDCG@10", "MRR@10", "HR@100")


def results_table(
    summaries: Mapping[str, Mapping[str, Any]], metrics: Sequence[str] = METRICS
) -> str:
    """The metrics of systems that were evaluated alike.

    Args:
      summaries: System name to `EvaluationResult.summary()`, in the order of the rows.
      metrics: The columns.

    Returns:
      One table per filter of seen items, headed by the protocol; first the filter that fits the log
      (`filters_by_fit`).

    Raises:
      RunsError: If the systems were not evaluated under one protocol.
    """
    check_comparable({name: Conditions(own["protocol"]) for name, own in summaries.items()})
    protocol = next(iter(summaries.values()))["protocol"]
    request = ", request time known" if protocol.get("request_time") == "known" else ""
    parts = []
    for filter_seen in filters_by_fit(protocol):
        parts.append(
            f"{protocol['split']}, {protocol['targets']:,} targets, all {protocol['num_items']:,} "
            f"items ranked, seen items {filter_in_words(filter_seen, protocol)}, "
            f"{protocol['ties']} ties{request}:"
        )
        rows = [
            [name, *(f"{own['metrics'][filter_seen][metric]:.4f}" for metric in metrics)]
            for name, own in summaries.items()
        ]
        parts.append(markdown_table(["system", *metrics], rows, text_columns=1))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """A text as Markdown and HTML that show it as it is, on one line."""
    shown = html.escape(_INVISIBLE.sub(" ", text), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", shown)


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int
) -> str:
    """A Markdown table whose columns are aligned in plain text too.

    Args:
      header: The columns' names.
      rows: The cells. What would be Markdown or HTML in them is shown as it is (`escape`).
      text_columns: Columns of text, on the left; the others hold numbers, set to the right.
    """
    header, *rows = ([escape(cell) for cell in row] for row in (header, *rows))
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            f"{cell:{'<' if column < text_columns else '>'}{width}}"
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * (width + 2) for width in widths[:text_columns]]
    rule += ["-" * (width + 1) + ":" for width in widths[text_columns:]]
    return "\n".join([line(header), f"|{'|'.join(rule)}|", *map(line, rows)])
