"""Softmax cross-entropy over the whole catalogue, in blocks: no array of [tokens, items].

Axis letters: M tokens, D width, N items; row 0 of the table is the padding item.

The loss is a scalar, so its gradient can be formed on the way forward and only scaled on the way
back. Tokens are therefore taken block by block, and each block meets the catalogue

- **once**, where a block of tokens against all items fits the budget: logits and exponentials
  are computed once and turned into the block's gradients while they are there (three matmuls
  where the textbook's recomputation needs four);
- **twice**, where it does not: catalogue block by catalogue block, first for an online logsumexp,
  then again for the gradients.

With more than one block of tokens, the loop skips tokens of weight 0: a queue moves them to the
end, and the loop runs over the blocks of the other tokens. If a mesh splits the table, each device
makes two passes over its own rows. Between the passes the devices exchange one logsumexp per token,
and no rows of the table.
Everything here is ours; the online logsumexp is Milakov and Gimelshein's (arXiv 1805.02867).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from linseqrec.ops.loss_inputs import checked
from linseqrec.sharding import vary_alike

Carry = TypeVar("Carry")

# By platform ("" = any other): the most logits held at once in one pass, tokens a block, and rows a
# block in two passes. A CPU wants them in its caches, an accelerator wants few large kernels.
_LOGIT_BUDGET = {"cpu": 2**22, "": 2**26}
_TOKEN_BLOCK = {"cpu": 512, "": 4096}
_CATALOGUE_BLOCK = {"cpu": 4096, "": 16384}
_FEWEST_TOKENS = 256


class Blocks(NamedTuple):
    """Sizes of the blocks that `catalogue_cross_entropy` streams.

    Attributes:
      token: Tokens a block.
      catalogue: Rows of the item table per block; the whole table (N + 1) means one pass.
    """

    token: int
    catalogue: int


class _Part(NamedTuple):
    """Which part of the catalogue a table is: the device's along a mesh axis."""

    axis_name: str
    num_items: int  # N, of the whole catalogue

    def first_row(self, table: Array) -> Array:
        """The item id of the part's first row."""
        return lax.axis_index(self.axis_name) * table.shape[0]

    def mask(self, scores: Float[Array, "M n"], first: Array) -> Float[Array, "M n"]:
        """-inf for rows that are no items: padding before the first and after the last."""
        ids = first + jnp.arange(scores.shape[1])
        return jnp.where((ids >= 1) & (ids <= self.num_items), scores, -jnp.inf)


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
    limit = min(tokens, _TOKEN_BLOCK[key], affordable if one_pass else tokens)
    count = -(-tokens // limit)
    return Blocks(
        token=-(-tokens // count), catalogue=rows if one_pass else min(rows, _CATALOGUE_BLOCK[key])
    )


def catalogue_cross_entropy(
    hidden: Float[Array, "*M D"],
    table: Float[Array, "N1 D"],
    targets: Int[Array, "*M"],
    weights: Float[Array, "*M"],
    *,
    token_block: int | None = None,
    catalogue_block: int | None = None,
    num_items: int | None = None,
    axis_name: str | None = None,
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
      num_items: N, where the table has more rows; those past item N are no candidates.
      axis_name: Inside `jax.shard_map`, the mesh axis over which the table's rows are split into
        equal parts, in order; needs `num_items`. Tokens are then the same along that axis.

    Returns:
      The sum, a float32 scalar; with `axis_name` this device's share of it, whose sum over the
      axis (`jax.lax.psum`) is the loss and has its gradients.

    Raises:
      ValueError: Shapes or dtypes that do not fit, blocks below 1, no tokens or no items, one of
        `num_items` and `axis_name` without the other; outside
        of `jit` also a target out of 1..N with a weight. Under `jit`, where values cannot be
        looked at, such a target makes the loss and the table's gradient NaN, so that it cannot pass
        for a number; `loss_inputs.check_targets` on the batch then names it.
    """
    if (num_items is None) != (axis_name is None):
        raise ValueError("num_items and axis_name belong together: a table split over devices")
    hidden, targets, num_items = checked(hidden, table, targets, weights, num_items)
    part = None if axis_name is None else _Part(axis_name, num_items)
    rows = table.shape[0]
    chosen = choose_blocks(targets.size, rows - 1)
    blocks = Blocks(
        token=chosen.token if token_block is None else min(token_block, targets.size),
        catalogue=chosen.catalogue if catalogue_block is None else min(catalogue_block, rows),
    )
    if min(blocks) < 1:
        raise ValueError(f"blocks hold at least one row: {blocks}")
    hidden = hidden.reshape(-1, hidden.shape[-1])
    weights = jnp.asarray(weights, jnp.float32).reshape(-1)
    hidden, table, weights = vary_alike((hidden, jnp.asarray(table), weights))
    return _blockwise_loss(blocks, part, hidden, table, targets.reshape(-1), weights)


class _Queue(NamedTuple):
    """The tokens with a weight, moved to the front: blocks of padding need no work."""

    order: Int[Array, "slots"]  # the token in each slot
    slot: Int[Array, "M"]  # the slot of each token that has a weight
    filled: Int[Array, ""]  # number of slots in use


def _queue(weights: Float[Array, "M"], slots: int) -> _Queue:
    counted = weights != 0
    slot = jnp.cumsum(counted, dtype=jnp.int32) - 1
    tokens = jnp.arange(weights.shape[0], dtype=jnp.int32)
    order = jnp.zeros(slots, jnp.int32).at[jnp.where(counted, slot, slots)].set(tokens, mode="drop")
    return _Queue(order, jnp.maximum(slot, 0), slot[-1] + 1)


class _Gradients(NamedTuple):
    """Gradients for a cotangent of 1, float32. The gradient of the table is transposed.

    On a CPU, the matmul of the transposed gradient is faster.
    """

    hidden: Float[Array, "M D"]
    table: Float[Array, "D N1"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blockwise_loss(
    blocks: Blocks,
    part: _Part | None,
    hidden: Float[Array, "M D"],
    table: Float[Array, "N1 D"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"],
) -> Float[Array, ""]:
    nll, _ = _run(blocks, part, hidden, table, targets, weights, differentiate=False)
    return jnp.sum(weights * _share(part, nll))


def _share(part: _Part | None, nll: Float[Array, "M"]) -> Float[Array, "M"]:
    """A device's share of the losses: each device has all of them, and devices are summed over."""
    return nll if part is None else nll / lax.axis_size(part.axis_name)


def _forward(
    blocks: Blocks,
    part: _Part | None,
    hidden: Array,
    table: Array,
    targets: Array,
    weights: Array,
) -> Any:
    nll, gradients = _run(blocks, part, hidden, table, targets, weights, differentiate=True)
    nll = _share(part, nll)
    # The dtypes travel as empty arrays: residuals are arrays.
    dtypes = jnp.zeros(0, hidden.dtype), jnp.zeros(0, table.dtype)
    return jnp.sum(weights * nll), (gradients, nll, dtypes)


def _backward(blocks: Blocks, part: _Part | None, residuals: Any, cotangent: Array) -> Any:
    gradients, nll, (hidden_like, table_like) = residuals
    return (
        (cotangent * gradients.hidden).astype(hidden_like.dtype),
        (cotangent * gradients.table.T).astype(table_like.dtype),
        None,
        cotangent * nll,
    )


_blockwise_loss.defvjp(_forward, _backward)


def _run(
    blocks: Blocks,
    part: _Part | None,
    hidden: Float[Array, "M D"],
    table: Float[Array, "N1 D"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"],
    *,
    differentiate: bool,
) -> tuple[Float[Array, "M"], _Gradients | None]:
    """Negative log-likelihood of each token (0 without a weight), and gradients.

    Hidden states without a weight are finite here, and their gradient is not looked at: `checked`,
    which put them there, lets none through.
    """
    tokens, width = hidden.shape
    size = blocks.token
    table = table.astype(hidden.dtype)
    one_pass = blocks.catalogue >= table.shape[0] and part is None
    block = _one_pass if one_pass else functools.partial(_two_passes, blocks.catalogue, part)

    def zeros(*shape: int) -> Array:
        return jnp.zeros_like(weights, shape=shape)

    if size == tokens:
        # A loop whose end depends on the weights would make an accelerator wait for the host.
        table_gradient = zeros(width, table.shape[0]) if differentiate else None
        nll, gradients = block(hidden, table, targets, weights, table_gradient)
        return jnp.where(weights != 0, nll, 0), gradients
    slots = -(-tokens // size) * size
    queue = _queue(weights, slots)

    def step(index: Array, carry: tuple[Array, _Gradients | None]) -> Any:
        nll, gradients = carry
        start = index * size
        # Slots past the last token hold token 0, with a weight of 0.
        token = lax.dynamic_slice(queue.order, (start,), (size,))
        weight = jnp.where(start + jnp.arange(size) < queue.filled, weights[token], 0)
        so_far = None if gradients is None else gradients.table
        block_nll, new = block(hidden[token], table, targets[token], weight, so_far)
        nll = lax.dynamic_update_slice(nll, block_nll, (start,))
        if gradients is None or new is None:
            return nll, None
        return nll, new._replace(
            hidden=lax.dynamic_update_slice(gradients.hidden, new.hidden, (start, 0))
        )

    nll, gradients = lax.fori_loop(
        0,
        (queue.filled + size - 1) // size,
        step,
        (
            zeros(slots),
            _Gradients(zeros(slots, width), zeros(width, table.shape[0]))
            if differentiate
            else None,
        ),
    )
    if gradients is not None:
        gradients = gradients._replace(hidden=gradients.hidden[queue.slot])
    return jnp.where(weights != 0, nll[queue.slot], 0), gradients


def _one_pass(
    hidden: Float[Array, "M D"],
    table: Float[Array, "N1 D"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"],
    table_gradient: Float[Array, "D N1"] | None,
) -> tuple[Float[Array, "M"], _Gradients | None]:
    """A block of tokens against the whole catalogue, its logits computed once.

    With a `table_gradient` so far, returns the block's gradients too, the table's added to it.
    """
    logits = _logits(hidden, table, 0)
    row = jnp.arange(hidden.shape[0])
    largest, own = jnp.max(logits, axis=1), logits[row, targets]
    powers = jnp.exp(logits - largest[:, None])
    total = jnp.sum(powers, axis=1)
    nll = largest + jnp.log(total) - own
    if table_gradient is None:
        return nll, None
    difference = powers.at[row, targets].add(-total, unique_indices=True)
    gradients = _gradients(difference, hidden, table, weights / total)
    return nll, gradients._replace(table=table_gradient + gradients.table)


def _two_passes(
    size: int,
    part: _Part | None,
    hidden: Float[Array, "M D"],
    table: Float[Array, "N1 D"],
    targets: Int[Array, "M"],
    weights: Float[Array, "M"],
    table_gradient: Float[Array, "D N1"] | None,
) -> tuple[Float[Array, "M"], _Gradients | None]:
    """The same against catalogue blocks of `size` rows: logsumexp first, then gradients.

    Of a part of the catalogue the hidden states' gradient is the part's contribution.
    """
    tokens = hidden.shape[0]
    row = jnp.arange(tokens)
    if part is not None:
        targets = targets - part.first_row(table)

    def score(start: Array | int, items: Array) -> Array:
        if part is None:
            return _logits(hidden, items, start)
        return part.mask(_scores(hidden, items), part.first_row(table) + start)

    def locate(start: Array | int, items: Array) -> tuple[Array, Array]:
        """Column of each target in a block, and whether it is there."""
        column = targets - start
        inside = (column >= 0) & (column < items.shape[0])
        return jnp.where(inside, column, 0), inside

    def summarise(
        carry: tuple[Array, Array, Array], start: Array | int, items: Array
    ) -> tuple[Array, Array, Array]:
        largest, total, own = carry
        logits = score(start, items)
        new = jnp.maximum(largest, jnp.max(logits, axis=1))
        # A block of padding rows alone has no logit, and -inf - -inf is no number.
        safe = jnp.where(new == -jnp.inf, 0, new)
        total = total * jnp.exp(largest - safe) + jnp.sum(jnp.exp(logits - safe[:, None]), axis=1)
        column, inside = locate(start, items)
        return new, total, jnp.where(inside, logits[row, column], own)

    zeros = jnp.zeros_like(weights)
    largest, total, own = _over_blocks(size, table, summarise, (zeros - jnp.inf, zeros, zeros))
    if part is not None:
        overall = lax.pmax(largest, part.axis_name)
        total = lax.psum(total * jnp.exp(largest - overall), part.axis_name)
        largest, own = overall, lax.psum(own, part.axis_name)
    logsumexp = largest + jnp.log(total)
    nll = logsumexp - own
    if table_gradient is None:
        return nll, None

    def differentiate(carry: _Gradients, start: Array | int, items: Array) -> _Gradients:
        softmax = jnp.exp(score(start, items) - logsumexp[:, None])
        column, inside = locate(start, items)
        difference = softmax.at[row, column].add(jnp.where(inside, -1.0, 0.0), unique_indices=True)
        new = _gradients(difference, hidden, items, weights)
        before = lax.dynamic_slice(carry.table, (0, start), new.table.shape)
        return _Gradients(
            carry.hidden + new.hidden,
            lax.dynamic_update_slice(carry.table, before + new.table, (0, start)),
        )

    zeros = jnp.zeros_like(weights, shape=hidden.shape)
    start = _Gradients(zeros, table_gradient)
    return nll, _over_blocks(size, table, differentiate, start)


def _over_blocks(
    size: int,
    table: Float[Array, "N1 D"],
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
    scores = _scores(hidden, items)
    starts_the_table = isinstance(start, int) and start == 0
    # One column is written in place; a mask over all would cost another array of this size.
    return scores.at[:, 0].set(-jnp.inf) if starts_the_table else scores


def _scores(hidden: Float[Array, "M D"], items: Float[Array, "N D"]) -> Float[Array, "M N"]:
    return lax.dot_general(
        hidden, items, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )


def _gradients(
    difference: Float[Array, "M N"],
    hidden: Float[Array, "M D"],
    items: Float[Array, "N D"],
    scale: Float[Array, "M"],
) -> _Gradients:
    """The gradients of hidden states and table, from `scale * difference`, that of the logits."""
    compute = hidden.dtype
    difference = difference.astype(compute)
    scaled = (scale[:, None] * hidden.astype(jnp.float32)).astype(compute)
    return _Gradients(
        scale[:, None]
        * lax.dot_general(
            difference, items, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        ),
        lax.dot_general(
            scaled, difference, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        ),
    )
