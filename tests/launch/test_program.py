"""The settings that every program makes at its start."""

import jax
import pytest

from launch import program


@pytest.mark.parametrize(
    ("configured", "expected", "on_cpu"),
    [("cuda", "cuda,cpu", False), ("cuda,cpu", "cuda,cpu", False), ("cpu", "cpu", True)],
)
def test_platforms_include_the_cpu_and_only_cpu_runs_keep_freed_memory(
    configured, expected, on_cpu, monkeypatch
):
    calls = []
    monkeypatch.setattr(program, "_keep_freed_memory", lambda: calls.append(True))
    monkeypatch.setattr(program.app, "run", lambda *_, **__: None)
    original = jax.config.jax_platforms
    jax.config.update("jax_platforms", configured)
    try:
        program.run_program(lambda argv: None)
        assert jax.config.jax_platforms == expected
        assert bool(calls) == on_cpu
    finally:
        jax.config.update("jax_platforms", original)
