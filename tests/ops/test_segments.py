"""Rows cut into chunks."""

import jax
import pytest

from linseqrec.ops import segments


@pytest.mark.parametrize(
    ("backend", "time", "numbers", "expected"),
    [
        ("tpu", 200, 1_000, (1, 4, 64)),
        ("tpu", 200, segments._AT_ONCE // 2, (2, 2, 64)),
        ("tpu", 1_000, segments._AT_ONCE // 6, (3, 6, 64)),
        ("cpu", 200, 1_000, (1, 4, 50)),
        ("cpu", 200, segments._CACHED // 2, (4, 1, 50)),
        ("cpu", 1, 1, (1, 1, 1)),
    ],
)
def test_tiles_and_groups_on_accelerators_and_what_is_cached_on_a_cpu(
    monkeypatch, backend, time, numbers, expected
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert segments.cut(time, 64, numbers) == expected
