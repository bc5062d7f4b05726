"""How a reading over users is reported."""

import numpy as np


def mean_and_error(values: np.ndarray) -> dict[str, float | int]:
    """The mean over users and its standard error; users whose value is NaN do not count.

    Args:
      values: [U], a value a user.

    Returns:
      `mean`, `standard_error` (NaN for fewer than two users; both NaN for none) and `users`.
    """
    values = values[np.isfinite(values)]
    count = len(values)
    return {
        "mean": float(values.mean()) if count else float("nan"),
        "standard_error": float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan"),
        "users": count,
    }
