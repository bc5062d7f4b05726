"""Softmax cross-entropy over the whole catalogue, in blocks: no array of [tokens, items].

Axis letters: M tokens, D width, N items; row 0 of the table is the padding item.

The loss is a scalar, so its gradient can be formed on the way forward and only scaled on the way
back. Tokens are therefore taken block by block, and each block meets the catalogue

- **once**, where a block of tokens against all items fits the budget: logits and exponentials
  are computed once and turned into the block's gradients while they are there (three matmuls
  where the textbook's recomputation needs four);
- **twice**, where it does not: catalogue block by catalogue block, first for an online logsumexp,
  then again for the gradients.

Tokens of weight 0 are skipped, not multiplied by zero: the loop runs over the blocks that the
others fill. Everything here is ours; the online logsumexp is Milakov and Gimelshein's
(arXiv 1805.02867).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from linseqrec.ops.loss_inputs import check_shapes, check_targets, clean

Carry = TypeVar("Carry")

# By platform ("" = any other): the most logits held at once in one pass, tokens a block, and rows a
# block in two passes. A CPU wants them in its caches, an accelerator wants few large kernels.
_LOGIT_BUDGET = {"cpu": 2**23, "": 2**26}
_TOKEN_BLOCK = {"cpu": 512, "": 4096}
_CATALOGUE_BLOCK = {"cpu": 4096, "": 16384}
_FEWEST_TOKENS = 256


class Blocks(NamedTuple):
    """Sizes of the blocks that `catalogue_cross_entropy` streams.

    Attributes:
      token: Tokens a block.
      catalogue: Rows of the item table a block; the whole table (N + 1) means one pass.
    """

    token: int
    catalogue: int


def choose_blocks(tokens: int, num_items: int, platform: str | None = None) -> Blocks:
    """The blocks that `catalogue_cross_entropy` uses when it is given none.

    The whole catalogue in one pass where the platform's budget of logits holds at least 256 tokens
    beside it, in two passes otherwise. Token blocks are evened out, so that the last one is not
    nearly empty.

    Args:
      tokens: Number of tokens M.
      num_items: Size of the catalogue N.
      platform: "cpu", "gpu" or "tpu"; None for the default backend's.

    Returns:
      The block sizes.
    """
    platform = jax.default_backend() if platform is None else platform
    key = platform if platform in _LOGIT_BUDGET else ""
    rows = num_items + 1
    affordable = _LOGIT_BUDGET[key] // rows
    one_pass = affordable >= min(tokens, _FEWEST_TOKENS)
    most = min(tokens, _TOKEN_BLOCK[key], affordable if one_pass else tokens)
    count = -(-tokens // most)
    return Blocks(
        token=-(-tokens // count), catalogue=rows if one_pass else min(rows, _CATALOGUE_BLOCK[key])
    )


def catalogue_cross_entropy(
    hidden: Float[Array, "*M D"],
    table: Float[Array, "N+1 D"],
    targets: Int[Array, "*M"],
    weights: Float[Array, "*M"],
    *,
    token_block: int | None = None,
    catalogue_block: int | None = None,
) -> Float[Array, ""]:
    """Weighted sum of the negative log-likelihoods of the targets under a softmax over all items.

    `sum_i w_i (logsumexp_{n=1..N} h_i·e_n - h_i·e_{y_i})`. Divide by the sum of the weights for a
    mean. Row 0 of the table is no candidate and gets no gradient. A token of weight 0 is absent: it
    adds nothing to the loss or to any gradient, its own weight's included, whatever its hidden
    state (NaN too) and target are.

    Differentiable once, in reverse mode, with respect to `hidden`, `table` and `weights`. Matmuls
    run in the dtype of `hidden`, to which the table is cast, and accumulate in float32; the rest is
    float32. On more than one device call it inside `jax.shard_map`, each device with its own
    tokens: its loops would make the partitioner gather them.

    Args:
      hidden: Encodings to score with; leading axes are free.
      table: Item vectors.
      targets: Item ids in 1..N where the weight is not 0.
      weights: Weight of each token.
      token_block: Tokens taken at once; None as `choose_blocks` says.
      catalogue_block: Table rows taken at once, from N + 1 on all of them in one pass; None as
        `choose_blocks` says. Block sizes change the result by rounding only.

    Returns:
      The sum, a float32 scalar.

    Raises:
      ValueError: Shapes or dtypes that do not fit, blocks below 1, no tokens or no items; outside
        of `jit` also a target out of 1..N with a weight. Under `jit`, where values cannot be
        looked at, such a target makes the loss and the table's gradient NaN, so that it cannot pass
        for a number; `loss_inputs.check_targets` on the batch then names it.
    """
    num_items = check_shapes(hidden, table, targets, weights)
    check_targets(targets, weights, num_items)
    chosen = choose_blocks(targets.size, num_items)
    blocks = Blocks(
        token=chosen.token if token_block is None else min(token_block, targets.size),
        catalogue=chosen.catalogue
        if catalogue_block is None
        else min(catalogue_block, num_items + 1),
    )
    if min(blocks) < 1:
        raise ValueError(f"blocks hold at least one row: {blocks}")
    hidden, targets = clean(hidden, targets, weights, num_items)
    return _blockwise_loss(
        blocks,
        hidden.reshape(-1, hidden.shape[-1]),
        table,
        targets.reshape(-1),
        weights.astype(jnp.float32).reshape(-1),
    )


class _Sums(NamedTuple):
    """What the loop over token blocks accumulates; tokens stand in the order of `_Queue`."""

    negative_log_likelihood: Float[Array, "slots"]
    hidden_gradient: Float[Array, "slots D"] | None
    table_gradient: Float[Array, "N+1 D"] | None


class _Queue(NamedTuple):
    """Tokens with a weight, moved to the front so that blocks of padding need no work."""

    order: Int[Array, "slots"]  # token of each slot
    slot: Int[Array, "M"]  # slot of each token, where it has a weight
    counted: Array  # bool [M]: the token has a weight
    filled: Int[Array, ""]  # number of tokens with a weight


def _queue(weights: Float[Array, "M"], slots: int) -> _Queue:
    counted = weights != 0
    slot = jnp.cumsum(counted, dtype=jnp.int32) - 1
    tokens = jnp.arange(weights.shape[0], dtype=jnp.int32)
    order = jnp.zeros(slots, jnp.int32).at[jnp.where(counted, slot, slots)].set(tokens, mode="drop")
    return _Queue(order, jnp.maximum(slot, 0), counted, slot[-1] + 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise_loss(
    blocks: Blocks,
    hidden: Float[Array, "M D"],
    table: Float[Array, "N+1 D"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"],
) -> Float[Array, ""]:
    return _run(blocks, hidden, table, targets, weights, gradients=False)[0]


def _forward(blocks: Blocks, hidden: Array, table: Array, targets: Array, weights: Array) -> Any:
    loss, nll, hidden_gradient, table_gradient = _run(
        blocks, hidden, table, targets, weights, gradients=True
    )
    # The dtypes travel as empty arrays: residuals are arrays.
    dtypes = jnp.zeros(0, hidden.dtype), jnp.zeros(0, table.dtype)
    return loss, (hidden_gradient, table_gradient, nll, dtypes)


def _backward(blocks: Blocks, residuals: Any, cotangent: Array) -> Any:
    hidden_gradient, table_gradient, nll, (hidden_like, table_like) = residuals
    return (
        (cotangent * hidden_gradient).astype(hidden_like.dtype),
        (cotangent * table_gradient.T).astype(table_like.dtype),
        None,
        cotangent * nll,
    )


_blockwise_loss.defvjp(_forward, _backward)


def _run(
    blocks: Blocks, hidden: Array, table: Array, targets: Array, weights: Array, *, gradients: bool
) -> tuple[Array, Array, Array | None, Array | None]:
    """The loss, and by token its negative log-likelihood and gradients for a cotangent of 1."""
    tokens, width = hidden.shape
    size = blocks.token
    slots = -(-tokens // size) * size
    queue = _queue(weights, slots)
    table = table.astype(hidden.dtype)
    one_pass = blocks.catalogue >= table.shape[0]

    def step(index: Array, sums: _Sums) -> _Sums:
        start = index * size
        token = lax.dynamic_slice(queue.order, (start,), (size,))
        weight = jnp.where(start + jnp.arange(size) < queue.filled, weights[token], 0)
        # Empty slots repeat token 0, whatever it holds.
        state = jnp.where(weight[:, None] != 0, hidden[token], 0)
        block = _one_pass if one_pass else functools.partial(_two_passes, blocks.catalogue)
        nll, hidden_gradient, table_gradient = block(
            state, table, targets[token], weight, sums.table_gradient
        )
        return _Sums(
            lax.dynamic_update_slice(sums.negative_log_likelihood, nll, (start,)),
            None
            if sums.hidden_gradient is None or hidden_gradient is None
            else lax.dynamic_update_slice(sums.hidden_gradient, hidden_gradient, (start, 0)),
            table_gradient,
        )

    sums = lax.fori_loop(
        0,
        (queue.filled + size - 1) // size,
        step,
        _Sums(
            jnp.zeros(slots, jnp.float32),
            jnp.zeros((slots, width), jnp.float32) if gradients else None,
            jnp.zeros(table.shape[::-1], jnp.float32) if gradients else None,
        ),
    )
    nll = jnp.where(queue.counted, sums.negative_log_likelihood[queue.slot], 0)
    hidden_gradient = sums.hidden_gradient
    if hidden_gradient is not None:
        hidden_gradient = jnp.where(queue.counted[:, None], hidden_gradient[queue.slot], 0)
    return jnp.sum(weights * nll), nll, hidden_gradient, sums.table_gradient


def _one_pass(
    hidden: Float[Array, "M D"],
    table: Float[Array, "N+1 D"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"],
    table_gradient: Float[Array, "N+1 D"] | None,
) -> tuple[Array, Array | None, Array | None]:
    """A block of tokens against the whole catalogue, its logits computed once."""
    logits = _logits(hidden, table, 0)
    row = jnp.arange(hidden.shape[0])
    largest, own = jnp.max(logits, axis=1), logits[row, targets]
    powers = jnp.exp(logits - largest[:, None])
    total = jnp.sum(powers, axis=1)
    nll = largest + jnp.log(total) - own
    if table_gradient is None:
        return nll, None, None
    difference = powers.at[row, targets].add(-total, unique_indices=True)
    hidden_gradient, addition = _gradients(difference, hidden, table, weights / total)
    return nll, hidden_gradient, table_gradient + addition


def _two_passes(
    size: int,
    hidden: Float[Array, "M D"],
    table: Float[Array, "N+1 D"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"],
    table_gradient: Float[Array, "N+1 D"] | None,
) -> tuple[Array, Array | None, Array | None]:
    """A block of tokens against catalogue blocks: logsumexp first, then gradients."""
    tokens = hidden.shape[0]
    row = jnp.arange(tokens)

    def summarise(
        carry: tuple[Array, Array, Array], start: Array | int, items: Array
    ) -> tuple[Array, Array, Array]:
        largest, total, own = carry
        logits = _logits(hidden, items, start)
        new = jnp.maximum(largest, jnp.max(logits, axis=1))
        # A block of the padding row alone has no logit, and -inf - -inf is no number.
        safe = jnp.where(new == -jnp.inf, 0, new)
        total = total * jnp.exp(largest - safe) + jnp.sum(jnp.exp(logits - safe[:, None]), axis=1)
        local = targets - start
        inside = (local >= 0) & (local < items.shape[0])
        picked = logits[row, jnp.clip(local, 0, items.shape[0] - 1)]
        return new, total, jnp.where(inside, picked, own)

    zeros = jnp.zeros(tokens, jnp.float32)
    largest, total, own = _over_blocks(size, table, summarise, (zeros - jnp.inf, zeros, zeros))
    logsumexp = largest + jnp.log(total)
    nll = logsumexp - own
    if table_gradient is None:
        return nll, None, None

    def differentiate(
        carry: tuple[Array, Array], start: Array | int, items: Array
    ) -> tuple[Array, Array]:
        hidden_gradient, table_gradient = carry
        softmax = jnp.exp(_logits(hidden, items, start) - logsumexp[:, None])
        local = targets - start
        inside = (local >= 0) & (local < items.shape[0])
        difference = softmax.at[row, jnp.clip(local, 0, items.shape[0] - 1)].add(
            jnp.where(inside, -1.0, 0.0), unique_indices=True
        )
        addition, items_gradient = _gradients(difference, hidden, items, weights)
        before = lax.dynamic_slice(table_gradient, (0, start), items.shape[::-1])
        return hidden_gradient + addition, lax.dynamic_update_slice(
            table_gradient, before + items_gradient, (0, start)
        )

    hidden_gradient, table_gradient = _over_blocks(
        size, table, differentiate, (jnp.zeros(hidden.shape, jnp.float32), table_gradient)
    )
    return nll, hidden_gradient, table_gradient


def _over_blocks(
    size: int,
    table: Float[Array, "N+1 D"],
    function: Callable[[Carry, Array | int, Array], Carry],
    carry: Carry,
) -> Carry:
    """Folds `function(carry, start, items)` over the blocks of the table, the first one shorter."""
    rows, width = table.shape
    # The first block stands outside the loop: it alone has a padding row to hide.
    first = rows % size or size

    def step(index: Array, carry: Carry) -> Carry:
        start = first + index * size
        return function(carry, start, lax.dynamic_slice(table, (start, 0), (size, width)))

    return lax.fori_loop(0, (rows - first) // size, step, function(carry, 0, table[:first]))


def _logits(
    hidden: Float[Array, "M D"], items: Float[Array, "N D"], start: Array | int
) -> Float[Array, "M N"]:
    """Float32 scores of the table rows from `start` on; -inf for the padding row, if it is one."""
    scores = lax.dot_general(
        hidden, items, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    starts_the_table = isinstance(start, int) and start == 0
    # One column is written in place; a mask over all would cost another array of this size.
    return scores.at[:, 0].set(-jnp.inf) if starts_the_table else scores


def _gradients(
    difference: Float[Array, "M N"],
    hidden: Float[Array, "M D"],
    items: Float[Array, "N D"],
    scale: Float[Array, "M"],
) -> tuple[Float[Array, "M D"], Float[Array, "N D"]]:
    """Gradients to tokens and items from `scale * difference`, that to the logits."""
    compute = hidden.dtype
    difference = difference.astype(compute)
    hidden_gradient = scale[:, None] * lax.dot_general(
        difference, items, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    scaled = (scale[:, None] * hidden.astype(jnp.float32)).astype(compute)
    items_gradient = lax.dot_general(
        scaled, difference, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    return hidden_gradient, items_gradient
