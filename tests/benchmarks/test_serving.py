import pytest

from linseqrec.benchmarks import serving
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig


def test_updates_are_set_against_encoding_again(monkeypatch):
    """At sizes that take no time: what is asked for, not how fast it is."""
    tiny = GatedDeltaNetConfig(width=8, heads=1, num_layers=1, key_width=8, value_width=8)
    monkeypatch.setattr(serving, "_MODEL", tiny)
    monkeypatch.setattr(serving, "_BATCHES", (1, 3))
    monkeypatch.setattr(serving, "_HISTORIES", (4, 8))
    monkeypatch.setattr(serving, "_NUM_ITEMS", 50)
    monkeypatch.setattr(serving, "_MAX_SLOTS_ON_CPU", 12)
    rows = list(serving.rows(1))
    variants = {}
    for row in rows:
        batch = int(row.case.split("B ")[1].split(",")[0])
        variants.setdefault(row.case.split(",")[0], []).append((batch, row.variant))
        assert row.extra["users_per_second"] == pytest.approx(batch / row.seconds)
    assert variants["one event more"] == [
        (1, "update"),
        (1, "encode the last 4"),
        (1, "encode the last 8"),
        (3, "update"),
        (3, "encode the last 4"),
    ]
    lists = ["from the states", "without 200 seen items"]
    assert variants["the best 10 of 50 items"] == [(b, name) for b in (1, 3) for name in lists]
    sizes = {row.extra["state_bytes_per_user"] for row in rows if row.variant == "update"}
    assert len(sizes) == 1
