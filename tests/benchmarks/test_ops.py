from linseqrec.benchmarks import ops


def test_every_form_is_timed_and_growth_fitted(monkeypatch):
    """At sizes that take no time: what is asked for, not how fast it is."""
    monkeypatch.setattr(ops, "_CPU_SIZES", ((1, 70, 1, 8),))
    monkeypatch.setattr(ops, "_LENGTHS", (64, 128))
    monkeypatch.setattr(ops, "_STEPS", (2, 5))
    rows = list(ops.rows(1))
    cases = list(dict.fromkeys(row.case for row in rows))
    assert [case.split(",")[0] for case in cases] == [
        "forward",
        "forward + backward",
        "gated delta rule",
        "linear attention",
        "100 streaming steps",
    ]
    timed = {row.variant for row in rows if row.case == cases[1]}
    assert {"chunked, 64", "associative, 64", "recurrent", "blockwise attention"} <= timed
    fits = [row.extra for row in rows if row.variant == "exponent of T"]
    assert len(fits) == 2 and all(set(fit) == {"time", "memory"} for fit in fits)
    # Twice the length, about twice the memory.
    assert all(0.5 < fit["memory"] < 1.5 for fit in fits)
