"""How programs start."""

import jax
import pytest

from launch import program


@pytest.mark.parametrize(
    ("given", "used", "on_cpu"),
    [("cuda", "cuda,cpu", False), ("cuda,cpu", "cuda,cpu", False), ("cpu", "cpu", True)],
)
def test_an_accelerator_has_the_cpu_beside_it(given, used, on_cpu, monkeypatch):
    monkeypatch.setattr(program, "_keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(program.app, "run", lambda *_, **__: None)
    before, kept = jax.config.jax_platforms, []
    jax.config.update("jax_platforms", given)
    try:
        program.run_program(lambda argv: None)
        assert jax.config.jax_platforms == used
        assert bool(kept) == on_cpu, "glibc is told on a CPU alone"
    finally:
        jax.config.update("jax_platforms", before)
