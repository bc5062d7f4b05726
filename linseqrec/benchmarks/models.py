"""Time and memory of whole models by the length of histories: HyTRec and SinkRec.

Parameters and histories are random, because the cost does not depend on their values.

HyTRec is compared with Gated DeltaNet at the same width, with the same number of blocks in the long
branch. Every ratio also has the short branch, of two blocks by default. In "1:0" the long branch
has no softmax layer. The difference of "1:0" to Gated DeltaNet is the cost of the short branch, the
fusion, the mixer's gates and the wider feed-forward half (9 D² instead of 8 D² weights). The
differences between ratios are the cost of softmax layers in the long branch.

"forward" computes the hidden states of a batch, as an evaluation does. "forward + backward" adds
the gradient of their sum of squares with respect to every parameter. It has no dropout, and no loss
over the catalogue, which costs the same for all models. Batches have about the same number of
tokens at every length; SinkRec reads one row. JAX compiles a program for each length, which takes
much of the suite's time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from linseqrec.benchmarks.measuring import Row, compare, growth_exponent, temporary_bytes
from linseqrec.events import Events
from linseqrec.models.base import ModelConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.sinkrec import SinkRecConfig

_WIDTH, _HEADS, _BLOCKS = 64, 2, 4
_ITEMS = 1_000
_FORWARD_LENGTHS = (100, 500, 1_000, 2_000, 5_000, 8_000, 12_000)
_FORWARD_TOKENS = 12_000
_BACKWARD_LENGTHS = (100, 500, 1_000, 2_000)
_BACKWARD_TOKENS = 4_000
_SINKREC_LENGTHS = (256, 512, 1_024, 2_048, 4_096, 8_192)


def rows(repeats: int) -> Iterator[Row]:
    """The rows of HyTRec by length, forward and forward + backward, then those of SinkRec."""
    for length in _FORWARD_LENGTHS:
        batch = max(1, _FORWARD_TOKENS // length)
        yield from _timed("HyTRec, forward", _hybrids(length), batch, length, repeats)
    for length in _BACKWARD_LENGTHS:
        batch = max(1, _BACKWARD_TOKENS // length)
        yield from _timed(
            "HyTRec, forward + backward", _hybrids(length), batch, length, repeats, gradient=True
        )
    yield from _growth(repeats)


def _hybrids(length: int) -> dict[str, ModelConfig]:
    """Gated DeltaNet, to which time ratios refer, and HyTRec at several ratios of softmax blocks.

    "last W events" and "all events" are the windows of the softmax blocks in the long branch. The
    default window is left out if it is not shorter than the histories.
    """
    hytrec = functools.partial(HyTRecConfig, _WIDTH, _HEADS, num_layers=_BLOCKS)
    head = _WIDTH // _HEADS
    configs: dict[str, ModelConfig] = {
        "Gated DeltaNet": GatedDeltaNetConfig(
            _WIDTH, _HEADS, num_layers=_BLOCKS, key_width=head, value_width=head
        ),
        "HyTRec 1:0": hytrec(ratio="1:0"),
    }
    default = hytrec(ratio="3:1")
    if length > default.attention_window:
        configs[f"HyTRec 3:1, last {default.attention_window:,} events"] = default
    configs["HyTRec 3:1, all events"] = hytrec(ratio="3:1", attention_window=length)
    configs["HyTRec 0:1, all events"] = hytrec(ratio="0:1", attention_window=length)
    return configs


def _sinkrecs() -> dict[str, ModelConfig]:
    sinkrec = functools.partial(
        SinkRecConfig, _WIDTH, _HEADS, key_width=_WIDTH // _HEADS, value_width=_WIDTH // _HEADS
    )
    return {"without the memory": sinkrec(memory=False), "with the memory": sinkrec()}


def _growth(repeats: int) -> Iterator[Row]:
    """The rows of SinkRec: its time for one row by length, and the exponent of its growth."""
    configs = _sinkrecs()
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    for length in _SINKREC_LENGTHS:
        for row in _timed("SinkRec, forward", configs, 1, length, repeats):
            if row.seconds is not None:
                seconds[row.variant].append(row.seconds)
            yield row
    for name, times in seconds.items():
        yield Row(
            f"SinkRec, forward by length, B 1, D {_WIDTH}",
            f"{name}, exponent of T",
            extra={"time": growth_exponent(_SINKREC_LENGTHS, times)},
        )


def _timed(
    what: str,
    configs: Mapping[str, ModelConfig],
    batch: int,
    length: int,
    repeats: int,
    *,
    gradient: bool = False,
) -> Iterator[Row]:
    """The rows of several models on one batch, with tokens per second and memory."""
    events = _events(batch, length)
    variants: dict[str, Callable[[], Any]] = {}
    memory = {}
    for name, config in configs.items():
        program, params = _program(config, gradient)
        variants[name] = functools.partial(program, params, events)
        # This also compiles the program for `compare`.
        memory[name] = temporary_bytes(program, params, events)
    case = f"{what}, T {length:,}, B {batch:,}, D {_WIDTH}, {_HEADS} heads"
    for row in compare(case, variants, repeats=repeats):
        tokens = batch * length
        extra = {
            "tokens_per_second": tokens / row.seconds if row.seconds else 0.0,
            # Cases of different lengths are measured minutes apart. On a machine with other
            # programs, only this number is comparable between them.
            "tokens_per_processor_second": (
                tokens / row.processor_seconds if row.processor_seconds else 0.0
            ),
            "temporary_bytes": memory[row.variant],
        }
        yield dataclasses.replace(row, extra=extra)


def _program(config: ModelConfig, gradient: bool) -> tuple[Callable[..., Any], nnx.State]:
    """A compiled function of parameters and events, and new parameters of the model.

    The function returns the hidden states, or with `gradient` the loss and its gradient.
    """
    graphdef, params = nnx.split(config.build(_ITEMS, rngs=nnx.Rngs(0)))

    def encode(params: nnx.State, events: Events) -> Float[Array, "B T D"]:
        # XLA does not compute the model's carried state, because nothing uses it.
        return nnx.merge(graphdef, params)(events).hidden

    def loss(params: nnx.State, events: Events) -> Float[Array, ""]:
        return jnp.sum(jnp.square(encode(params, events)))

    return jax.jit(jax.value_and_grad(loss) if gradient else encode), params


def _events(batch: int, length: int) -> Events:
    """Rows with one history each. The mean time between events is half a day."""
    draw = np.random.default_rng(0)
    items = draw.integers(1, _ITEMS + 1, (batch, length))
    timestamps = np.cumsum(draw.exponential(43_200, (batch, length)), axis=1)
    positions = np.broadcast_to(np.arange(length), (batch, length))
    fields = (items, timestamps, np.ones_like(items), positions)
    return Events(*(jnp.asarray(field, jnp.int32) for field in fields))
