"""What a gated delta memory's gates do: how much it keeps, writes, and has purified (ours).

A head that keeps α of its state at each event has forgotten half of it after log ½ / log α events,
and one that writes next to nothing of any event holds nothing: either is a memory that the model
does not use. Of HyTRec also s, its write gate; of SinkRec the coverage c, the share of a write that
is suppressed, and λ, how much of the answer to the memory's key is taken out of a reading.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from linseqrec.evaluation.metrics import summarise_users

# Of the events' readings: between which most of them lie, and the middle.
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}


def summarise(
    batches: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]],
) -> dict[str, dict[str, object]]:
    """Reads the gates of one mixer over batches of users.

    Args:
      batches: Pairs of the gates by name, float [U, T, H] each, and which slots are events, bool
        [U, T]. Every batch has the same gates.

    Returns:
      By gate: `mean`, `standard_error` and `users` of the users' own means over events and heads,
      and `heads`, for each the `QUANTILES` by name of its readings over all events of all users;
      NaN without any event.
    """
    result: dict[str, dict[str, object]] = {}
    for name in batches[0][0]:
        users = [
            gate[real].mean() if real.any() else np.nan
            for gates, reals in batches
            for gate, real in zip(gates[name].astype(np.float64), reals, strict=True)
        ]
        events = np.concatenate([gates[name][real] for gates, real in batches])
        result[name] = summarise_users(np.array(users)) | {"heads": [_spread(h) for h in events.T]}
    return result


def _spread(readings: np.ndarray) -> dict[str, float]:
    return {
        name: float(np.quantile(readings, share)) if len(readings) else np.nan
        for name, share in QUANTILES.items()
    }
