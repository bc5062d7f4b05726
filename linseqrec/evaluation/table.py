"""The results table: systems down, metrics across, each filter by itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from linseqrec.evaluation.ranks import in_words

METRICS = ("HR@1", "HR@10", "NDCG@10", "MRR@10", "HR@100")


def results_table(
    summaries: Mapping[str, Mapping[str, Any]], metrics: Sequence[str] = METRICS
) -> str:
    """A Markdown table of evaluations under one protocol.

    Args:
      summaries: System name to `EvaluationResult.summary()`, in the order of the rows.
      metrics: The columns.

    Returns:
      One table a filter, headed by the protocol.

    Raises:
      ValueError: If the systems were not evaluated under one protocol.
    """
    protocols = {
        name: {key: value for key, value in summary["protocol"].items() if key != "max_length"}
        for name, summary in summaries.items()
    }
    (first, protocol), *others = protocols.items()
    for name, other in others:
        if other != protocol:
            raise ValueError(f"{name} and {first} were not evaluated alike: {other}, {protocol}")
    width = max(map(len, summaries))
    request = ", request time known" if protocol.get("request_time") == "known" else ""
    lines = []
    for which in protocol["filter_seen"]:
        lines += [
            f"{protocol['split']}, {protocol['targets']:,} targets, all {protocol['num_items']:,} "
            f"items ranked, seen items {in_words(which)}, "
            f"{protocol['ties']} ties{request}:",
            "",
            f"| {'system':{width}} | " + " | ".join(f"{metric:>7}" for metric in metrics) + " |",
            f"|{'-' * (width + 2)}|" + "|".join("-" * 8 + ":" for _ in metrics) + "|",
        ]
        for name, summary in summaries.items():
            values = summary["metrics"][which]
            cells = " | ".join(f"{values[metric]:7.4f}" for metric in metrics)
            lines.append(f"| {name:{width}} | {cells} |")
        lines.append("")
    return "\n".join(lines)
