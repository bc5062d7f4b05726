"""The tolerance of every numeric test of an operation: a share of the largest expected number."""

import numpy as np


def assert_close(actual, expected, tolerance: float) -> None:
    """All of `actual` lies within `tolerance * max(|expected|)` of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    allowed = tolerance * max(np.max(np.abs(expected), initial=0), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed)
