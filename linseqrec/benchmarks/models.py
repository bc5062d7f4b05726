"""How whole models scale with the history's length: HyTRec's ratios, and SinkRec's memory.

Fresh parameters and random histories: what is computed does not depend on the values. HyTRec stands
against Gated DeltaNet at its width, with as many blocks in the long branch; the short branch, two
blocks by default, is there in every ratio. So "1:0" against Gated DeltaNet shows what that branch,
the fusion, the mixer's gates and the wider feed-forward half (9 D² weights for 8 D²) cost, and the
ratios among themselves what softmax layers cost.

Forward is what an evaluation reads, the hidden states of a batch. Backward is the gradient of their
sum of squares to every parameter, without dropout and without the loss over the catalogue, which
costs all models the same. Batches hold about as many tokens at every length; SinkRec reads one row.
Each length is a program of its own, and much of a run goes into compiling them.
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
    """Times HyTRec's ratios by length, forward and with the gradient, then SinkRec by length."""
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
    """All-linear first, which ratios refer to; the default's window only where it cuts a history.

    "All events" is a window of the whole length, in the long branch's softmax blocks.
    """
    hytrec = functools.partial(HyTRecConfig, _WIDTH, _HEADS, num_layers=_BLOCKS)
    head = _WIDTH // _HEADS
    configs: dict[str, ModelConfig] = {
        "Gated DeltaNet": GatedDeltaNetConfig(
            _WIDTH, _HEADS, num_layers=_BLOCKS, key_width=head, value_width=head
        ),
        "HyTRec 1:0": hytrec(ratio="1:0"),
    }
    bounded = hytrec(ratio="3:1")
    if length > bounded.attention_window:
        configs[f"HyTRec 3:1, last {bounded.attention_window:,} events"] = bounded
    configs["HyTRec 3:1, all events"] = hytrec(ratio="3:1", attention_window=length)
    configs["HyTRec 0:1, all events"] = hytrec(ratio="0:1", attention_window=length)
    return configs


def _memories() -> dict[str, ModelConfig]:
    sinkrec = functools.partial(
        SinkRecConfig, _WIDTH, _HEADS, key_width=_WIDTH // _HEADS, value_width=_WIDTH // _HEADS
    )
    return {"without the memory": sinkrec(memory=False), "with the memory": sinkrec()}


def _growth(repeats: int) -> Iterator[Row]:
    """SinkRec's time for one row by length, and its exponent."""
    configs = _memories()
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    for length in _SINKREC_LENGTHS:
        for row in _timed("SinkRec, forward", configs, 1, length, repeats):
            if row.seconds is not None:
                seconds[row.variant].append(row.seconds)
            yield row
    for name, measured in seconds.items():
        yield Row(
            f"SinkRec, forward by length, B 1, D {_WIDTH}",
            f"{name}, exponent of T",
            extra={"time": growth_exponent(_SINKREC_LENGTHS, measured)},
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
    """Compares models on one batch, with the tokens each takes in a second and its memory."""
    events = _events(batch, length)
    variants: dict[str, Callable[[], Any]] = {}
    memory = {}
    for name, config in configs.items():
        program, params = _program(config, gradient)
        variants[name] = functools.partial(program, params, events)
        # Compiles the program; the calls find it compiled.
        memory[name] = temporary_bytes(program, params, events)
    case = f"{what}, T {length:,}, B {batch:,}, D {_WIDTH}, {_HEADS} heads"
    for row in compare(case, variants, repeats=repeats):
        tokens = batch * length
        extra = {
            "tokens_per_second": tokens / row.seconds if row.seconds else 0.0,
            # What to compare lengths by where other programs take turns on the cores: cases are
            # minutes apart.
            "tokens_per_processor_second": (
                tokens / row.processor_seconds if row.processor_seconds else 0.0
            ),
            "temporary_bytes": memory[row.variant],
        }
        yield dataclasses.replace(row, extra=extra)


def _program(config: ModelConfig, gradient: bool) -> tuple[Callable[..., Any], nnx.State]:
    """A fresh model's encoding, or its gradient, as a function of parameters and events."""
    graphdef, params = nnx.split(config.build(_ITEMS, rngs=nnx.Rngs(0)))

    def encode(params: nnx.State, events: Events) -> Float[Array, "B T D"]:
        # The state that the model returns as well is not asked for, hence not computed.
        return nnx.merge(graphdef, params)(events).hidden

    def loss(params: nnx.State, events: Events) -> Float[Array, ""]:
        return jnp.sum(jnp.square(encode(params, events)))

    return jax.jit(jax.value_and_grad(loss) if gradient else encode), params


def _events(batch: int, length: int) -> Events:
    """Rows of one history each, half a day between events on average."""
    draw = np.random.default_rng(0)
    items = draw.integers(1, _ITEMS + 1, (batch, length))
    timestamps = np.cumsum(draw.exponential(43_200, (batch, length)), axis=1)
    positions = np.broadcast_to(np.arange(length), (batch, length))
    fields = (items, timestamps, np.ones_like(items), positions)
    return Events(*(jnp.asarray(field, jnp.int32) for field in fields))
