"""The suite for a GPU, rehearsed on a CPU with little of everything."""

import gzip
import itertools
import json

import pytest

from linseqrec.benchmarks import gpu
from linseqrec.benchmarks.measuring import Row
from linseqrec.models.sasrec import SASRecConfig

SASREC = SASRecConfig(8, 1, num_layers=1)


def test_every_form_is_held_against_float64():
    rows = list(gpu.errors((1, 24, 1, 4)))
    assert len({row.case for row in rows}) == 10
    for row in rows:
        low, high = (1e-9, 2e-6) if "float32" in row.case else (1e-4, 0.2)
        assert low < row.extra["output_error"] < high, row
        assert low < row.extra["gradient_error"] < high, row


def test_a_wrong_or_failing_form_is_told(monkeypatch):
    right = gpu.gated_delta_rule

    def wrong(*inputs, segment_ids, implementation):
        if implementation == "chunked":
            raise ValueError("no such thing\non this machine")
        output, state = right(*inputs, segment_ids=segment_ids, implementation="recurrent")
        return 1.01 * output if implementation == "associative" else output, state

    monkeypatch.setattr(gpu, "gated_delta_rule", wrong)
    rows = itertools.islice(gpu.errors((1, 24, 1, 4)), 3)
    found = {row.variant: row.extra for row in rows}
    assert found["chunked"] == {"failed": "ValueError: no such thing"}
    assert found["associative"]["output_error"] == pytest.approx(0.01, rel=1e-3)


def test_steps_are_timed_and_their_share_is_what_they_compute(monkeypatch):
    monkeypatch.setattr(gpu, "models", lambda width, dtype: {"SASRec": SASREC})
    monkeypatch.setattr(gpu.throughput, "peak_flops", lambda dtype: 1e9)
    (row,) = gpu.steps(8, "float32", 1, repeats=1)
    assert row.extra["compile_seconds"] > 0
    # Dense kernels: 4 of attention and 2 of the feed-forward half; and the catalogue's scores.
    kernels = 6 * 8 * 8
    flops = 200 * 6 * (kernels + (gpu._ITEMS + 1) * 8)
    assert row.extra["share_of_peak"] * row.seconds == pytest.approx(flops / 1e9)


def test_times_name_what_could_not_be_compiled(monkeypatch):
    def fails(*inputs):
        raise ValueError("too large")

    forms = {"one": lambda *x: 2 * x[2], "two": fails, "jax.nn.dot_product_attention": fails}
    monkeypatch.setattr(gpu.ops, "operations", lambda length, width: dict(forms))
    rows = list(gpu.times((1, 16, 1, 4), "float32", repeats=1))
    assert {row.variant for row in rows if row.seconds} == {"one", "linear attention"}
    assert [row.extra for row in rows if row.variant == "two"] == [
        {"failed": "ValueError: too large"}
    ] * 2


def test_linear_attention_is_timed_beside_attention_of_the_same_size():
    rows = list(gpu.lengths((1, 16, 1, 4), "float32", repeats=1))
    forms = ["linear attention, chunked", "jax.nn.dot_product_attention"]
    cases = ["forward", "forward + backward"]
    assert [row.variant for row in rows] == 2 * forms
    assert [row.case.split(", ")[0] for row in rows] == [case for case in cases for _ in forms]
    assert all(row.seconds for row in rows)


def test_what_fails_or_comes_too_late_is_told(monkeypatch):
    now = [0.0]

    def errors(size):
        now[0] += 400
        yield Row("errors", str(size))

    def times(*arguments):
        now[0] += 100
        raise RuntimeError("no memory")

    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gpu, "errors", errors)
    monkeypatch.setattr(gpu, "times", times)
    found = [(row.case, row.variant.split(" at ")[0]) for row in gpu.rows(1)]
    assert found == [
        ("errors", "(1, 70, 1, 8)"),
        ("failed", "times"),
        ("left out for want of time", "linear attention"),
        ("left out for want of time", "steps"),
        ("left out for want of time", "training"),
    ]


def test_kernels_are_those_on_a_gpus_streams(tmp_path):
    def named(kind, name, pid, tid=None):
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}

    def run(pid, tid, microseconds):
        return {"ph": "X", "name": "k", "pid": pid, "tid": tid, "dur": microseconds}

    events = [
        named("process_name", "/device:GPU:0", 1),
        named("process_name", "/host:CPU", 2),
        named("thread_name", "Stream #14(Compute)", 1, 3),
        named("thread_name", "XLA Ops", 1, 4),
        named("thread_name", "Stream of Python", 2, 3),
        run(1, 3, 5.0),
        run(1, 3, 7.0),
        run(1, 4, 11.0),
        run(2, 3, 13.0),
    ]
    (tmp_path / "plugins").mkdir()
    with gzip.open(tmp_path / "plugins" / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert gpu.kernel_seconds(tmp_path) == pytest.approx([5e-6, 7e-6])
