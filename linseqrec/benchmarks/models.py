"""Time and memory of every model by the length of histories, and where a linear one gets cheaper.

Parameters and histories are random, because the cost does not depend on their values. All models
have width 64, two heads, and four blocks of their own kind; HyTRec also has two short ones, and
SinkRec passes one block twice. Times are relative to Gated DeltaNet.
HyTRec is there without a softmax layer in its long branch (1:0), and with one in four (3:1) over
a window or over all events.

"forward" computes the hidden states of a batch, as an evaluation does. "forward + backward" adds
the gradient of their sum of squares with respect to every parameter. It has no dropout, and no loss
over the catalogue, which costs the same for all models. Batches have about the same number of
tokens at every length. JAX compiles a program for each length, which takes much of the suite's
time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from linseqrec.benchmarks.measuring import Row, compare, growth_exponent, temporary_bytes
from linseqrec.events import Events
from linseqrec.models.base import ModelConfig
from linseqrec.models.fuxi_linear import FuXiLinearConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.gru4rec import GRU4RecConfig
from linseqrec.models.hstu import HSTUConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.linrec import LinRecConfig
from linseqrec.models.lrurec import LRURecConfig
from linseqrec.models.mamba2 import Mamba2Config
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig

_WIDTH, _HEADS, _BLOCKS = 64, 2, 4
_ITEMS = 1_000
_FORWARD_LENGTHS = (100, 500, 1_000, 2_000, 5_000, 12_000)
_FORWARD_TOKENS = 12_000
_BACKWARD_LENGTHS = (100, 500, 2_000)
_BACKWARD_TOKENS = 4_000
# Quadratic in the length: the others are compared with them.
_QUADRATIC = ("SASRec", "HSTU")


def rows(repeats: int) -> Iterator[Row]:
    """The rows of all models by length, forward and forward + backward."""
    yield from _by_length("forward", _FORWARD_LENGTHS, _FORWARD_TOKENS, repeats)
    yield from _by_length(
        "forward + backward", _BACKWARD_LENGTHS, _BACKWARD_TOKENS, repeats, gradient=True
    )


def _configs(length: int) -> dict[str, ModelConfig]:
    """The models for rows of a length, by name; first the one that time ratios refer to."""
    head = _WIDTH // _HEADS
    blocks: dict[str, Any] = {"num_layers": _BLOCKS}
    sinkrec = functools.partial(SinkRecConfig, _WIDTH, _HEADS, key_width=head, value_width=head)
    hytrec = functools.partial(HyTRecConfig, _WIDTH, _HEADS, **blocks)
    configs: dict[str, ModelConfig] = {
        "Gated DeltaNet": GatedDeltaNetConfig(
            _WIDTH, _HEADS, key_width=head, value_width=head, **blocks
        ),
        "RecGRELA": RecGRELAConfig(_WIDTH, _HEADS, **blocks),
        "HyTRec 1:0": hytrec(ratio="1:0"),
    }
    default = hytrec(ratio="3:1")
    # A window that is not shorter than the histories is no window.
    if length > default.attention_window:
        configs[f"HyTRec 3:1, last {default.attention_window:,} events"] = default
    return configs | {
        "HyTRec 3:1, all events": hytrec(ratio="3:1", attention_window=length),
        "SinkRec": sinkrec(),
        "SinkRec without its memory": sinkrec(memory=False),
        "FuXi-Linear": FuXiLinearConfig(_WIDTH, _HEADS, max_length=length, **blocks),
        "Mamba-2": Mamba2Config(_WIDTH, _HEADS, key_width=head, value_width=head, **blocks),
        "LRURec": LRURecConfig(_WIDTH, **blocks),
        "GRU4Rec": GRU4RecConfig(_WIDTH, **blocks),
        "LinRec": LinRecConfig(_WIDTH, _HEADS, max_length=length, **blocks),
        "SASRec": SASRecConfig(_WIDTH, _HEADS, max_length=length, **blocks),
        "HSTU": HSTUConfig(_WIDTH, _HEADS, max_length=length, **blocks),
    }


def _by_length(
    what: str, lengths: Sequence[int], tokens: int, repeats: int, *, gradient: bool = False
) -> Iterator[Row]:
    """The rows of each length, then how each model's cost of a token grows with the length."""
    costs: dict[str, dict[int, float]] = {}
    for length in lengths:
        batch = max(1, tokens // length)
        for row in _timed(what, _configs(length), batch, length, repeats, gradient=gradient):
            # The processor's time is the model's own on a shared CPU; it is not where a GPU works.
            on_cpu = jax.default_backend() == "cpu"
            seconds = row.processor_seconds if on_cpu else row.seconds
            if seconds:
                costs.setdefault(row.variant, {})[length] = seconds / (batch * length)
            yield row
    for name, own in costs.items():
        if len(own) > 1:
            extra: dict[str, Any] = {"exponent of T": growth_exponent([*own], [*own.values()]) + 1}
            extra |= {
                f"cheaper than {other} from T": cheaper_from(own, costs[other])
                for other in _QUADRATIC
                if name not in _QUADRATIC and own.keys() & costs.get(other, {}).keys()
            }
            yield Row(f"{what}, by length, D {_WIDTH}", name, extra=extra)


def cheaper_from(first: Mapping[int, float], second: Mapping[int, float]) -> int | str:
    """The length from which one model's cost stays below another's.

    Between two measured lengths, the logarithm of the costs' ratio is taken as linear in the
    logarithm of the length.

    Args:
      first: Length to cost of the model; lengths ascend.
      second: The same of the other model.

    Returns:
      The length; the least one measured, if the model is cheaper at all; "beyond T", if it is not
      cheaper at the greatest, T.
    """
    lengths = [length for length in first if length in second]
    gaps = [float(np.log(first[length] / second[length])) for length in lengths]
    if gaps[-1] >= 0:
        return f"beyond {lengths[-1]:,}"
    place = len(gaps) - 1
    while place and gaps[place - 1] < 0:
        place -= 1
    if not place:
        return lengths[0]
    low, high = np.log(lengths[place - 1 : place + 1])
    share = gaps[place - 1] / (gaps[place - 1] - gaps[place])
    return round(float(np.exp(low + share * (high - low))))


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
