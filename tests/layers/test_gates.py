"""The gates of the delta memories are float32 in a model that computes in bfloat16."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from linseqrec.layers.conditional_memory import NoMemory
from linseqrec.layers.gated_delta import GatedDeltaMixer
from linseqrec.layers.tadn import TADN
from linseqrec.layers.tdgd import TDGD
from tests.models.reference import randomise, sigmoid

WIDTH, HEADS = 12, 2
ARRAY = np.random.default_rng(0).normal(size=(1, 9, WIDTH))
X = jnp.asarray(ARRAY, jnp.bfloat16)
EXACT = np.asarray(X, np.float64)
IDS = jnp.ones((1, 9), jnp.int32)
OPTIONS = dict(dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
WIDTHS = dict(key_width=5, value_width=7)


def test_decay_and_write():
    mixer = GatedDeltaMixer(WIDTH, HEADS, **WIDTHS, **OPTIONS)
    arrays = randomise(mixer)
    log_decay, beta = mixer.gates(X)
    steps = np.log1p(np.exp(EXACT @ arrays["decay_gate/kernel"] + arrays["step_bias"]))
    np.testing.assert_allclose(log_decay, -np.exp(arrays["log_rate"]) * steps, rtol=1e-5)
    np.testing.assert_allclose(beta, sigmoid(EXACT @ arrays["write_strength/kernel"]), rtol=1e-5)


def test_fresh_signal_against_the_mean():
    mixer = TADN(WIDTH, HEADS, **WIDTHS, **OPTIONS)
    arrays = randomise(mixer)
    logits, _ = mixer.spike_gate(X, IDS, mixer.spike_gate.initial_state(1))
    mean = np.cumsum(EXACT, axis=1) / np.arange(1, 10)[:, None]
    expected = np.concatenate([EXACT, EXACT - mean], -1) @ arrays["spike_gate/kernel"]
    expected = expected + arrays["spike_gate/bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_coverage_and_removal():
    mixer = TDGD(
        WIDTH,
        HEADS,
        gap_features=None,
        temporal_decay=False,
        write_gate="input",
        read_removal=True,
        **WIDTHS,
        **OPTIONS,
    )
    arrays = randomise(mixer)
    nothing, _ = NoMemory()(X, IDS, ())
    reading = dataclasses.replace(nothing, vector=X)
    key = jnp.zeros((1, 9, HEADS, WIDTHS["key_width"]))
    coverage = mixer.coverage(X, key, key, reading)
    logits = EXACT @ arrays["coverage_gate/kernel"] + arrays["coverage_bias"]
    np.testing.assert_allclose(coverage, sigmoid(logits), rtol=1e-5)
    removal = mixer.removal(X, reading)
    logits = np.concatenate([EXACT, EXACT], -1) @ arrays["removal_gate/kernel"]
    np.testing.assert_allclose(removal, sigmoid(logits + arrays["removal_bias"]), rtol=1e-5)
