"""Time and memory of the loss over the whole catalogue, forward and backward.

The suite compares `catalogue_cross_entropy` with the plain formula, with optax, and with sampled
softmax. The sizes are those of a training step on MovieLens-1M (3,416 items), without padding and
with the padding of its windows of 200 slots, and 50,000 items. For a million items the suite only
compiles `catalogue_cross_entropy` and reports its memory as a share of the [tokens, items] logits.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from linseqrec.benchmarks.measuring import Row, compare, temporary_bytes
from linseqrec.ops.cross_entropy import catalogue_cross_entropy, choose_blocks
from linseqrec.ops.negatives import draw_negatives, uniform_proposal
from linseqrec.ops.sampled_losses import sampled_softmax

_WIDTH = 64
_NUM_NEGATIVES = 1024
# (tokens, items, share of tokens that are padding)
_TIMED = ((6_400, 3_416, 0.0), (6_400, 3_416, 0.46), (4_096, 50_000, 0.0))
_COMPILED = (4_096, 1_000_000)


def rows(repeats: int) -> Iterator[Row]:
    """The rows of the losses at the sizes of the module's docstring."""
    for tokens, num_items, padding in _TIMED:
        yield from _timed(repeats, tokens, num_items, padding)
    tokens, num_items = _COMPILED
    shapes = (
        jax.ShapeDtypeStruct((tokens, _WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((num_items + 1, _WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    memory = temporary_bytes(_with_gradients(catalogue_cross_entropy), *shapes)
    yield Row(
        case=f"compiled only, {tokens:,} tokens, N {num_items:,}",
        variant=_describe(tokens, num_items),
        extra={"temporary_bytes": memory, "share_of_logits": memory / (tokens * num_items * 4)},
    )


def _timed(repeats: int, tokens: int, num_items: int, padding: float) -> Iterator[Row]:
    draw = np.random.default_rng(0)
    arguments = (
        jnp.asarray(draw.normal(size=(tokens, _WIDTH)), jnp.float32),
        jnp.asarray(draw.normal(0, 0.1, (num_items + 1, _WIDTH)), jnp.float32),
        jnp.asarray(draw.integers(1, num_items + 1, tokens), jnp.int32),
        jnp.asarray(draw.random(tokens) >= padding, jnp.float32),
    )
    proposal = uniform_proposal(num_items)
    negatives = draw_negatives(jax.random.key(0), proposal, (_NUM_NEGATIVES,))

    def sampled(hidden: Array, table: Array, targets: Array, weights: Array) -> Array:
        return sampled_softmax(hidden, table, targets, weights, negatives, proposal.log_q)

    losses = {
        "plain": plain,
        "optax": _optax,
        _describe(tokens, num_items): catalogue_cross_entropy,
        f"sampled softmax, {_NUM_NEGATIVES:,} shared": sampled,
    }
    programs = {name: _with_gradients(loss) for name, loss in losses.items()}
    yield from compare(
        f"forward + backward, {tokens:,} tokens ({padding:.0%} padding), N {num_items:,}",
        {name: functools.partial(program, *arguments) for name, program in programs.items()},
        repeats=repeats,
        extra={
            name: {"temporary_bytes": temporary_bytes(program, *arguments)}
            for name, program in programs.items()
        },
    )


def plain(
    hidden: Float[Array, "M D"],
    table: Float[Array, "N1 D"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"],
) -> Float[Array, ""]:
    """The sum of weight x cross-entropy, by the formula, from all logits at once."""
    logits = hidden @ table[1:].T
    own = jnp.take_along_axis(logits, targets[:, None] - 1, axis=1)[:, 0]
    return jnp.sum(weights * (jax.nn.logsumexp(logits, axis=1) - own))


def _optax(hidden: Array, table: Array, targets: Array, weights: Array) -> Array:
    logits = hidden @ table[1:].T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets - 1)
    return jnp.sum(weights * losses)


def _with_gradients(loss: Callable[..., Array]) -> Callable[..., Any]:
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def _describe(tokens: int, num_items: int) -> str:
    """The name of our loss in the table, with its block sizes."""
    blocks = choose_blocks(tokens, num_items)
    return f"ours, blocks of {blocks.token:,} tokens x {blocks.catalogue:,} items"
