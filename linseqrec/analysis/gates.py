"""The gates of a gated delta memory: how much it keeps and writes at an event (ours).

A head that keeps α of its state at each event has forgotten half of it after log ½ / log α events.
A head that writes almost nothing holds nothing. Either way the model does not use the memory.

HyTRec has a write gate s too. SinkRec has the coverage c, the share of a write that is suppressed,
and λ, how much of the answer to the memory's key is removed from a reading.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from linseqrec.evaluation.metrics import summarise_users

# The quantiles over events that are reported.
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}


def summarise(
    batches: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]],
) -> dict[str, dict[str, object]]:
    """Summarises the gates of one mixer over batches of users.

    Args:
      batches: Pairs: the gates by name, float [U, T, H] each, and the slots that hold events, bool
        [U, T]. Every batch has the same gates.

    Returns:
      By gate: `mean`, `standard_error` and `users` of each user's mean over events and heads, and
      `heads`. The latter has for each head the `QUANTILES` by name over all events of all users,
      NaN if there is no event.
    """
    result: dict[str, dict[str, object]] = {}
    for name in batches[0][0]:
        users = [
            gate[real].mean() if real.any() else np.nan
            for gates, reals in batches
            for gate, real in zip(gates[name].astype(np.float64), reals, strict=True)
        ]
        events = np.concatenate([gates[name][real] for gates, real in batches])
        heads = [_quantiles(values) for values in events.T]
        result[name] = summarise_users(np.array(users)) | {"heads": heads}
    return result


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {
        name: float(np.quantile(values, share)) if len(values) else np.nan
        for name, share in QUANTILES.items()
    }
