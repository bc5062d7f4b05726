"""The gated delta rule: a memory that forgets, corrects what it writes, and is read.

Axes: B batch, T time, H heads, K key width, V value width, C chunk, N chunks, G chunks of a group.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from linseqrec.ops.gated_delta_rule_associative import associative
from linseqrec.ops.gated_delta_rule_parts import (
    FORGET,
    Inputs,
    chunk_terms,
    einsum,
    einsum_for,
    log_decay_gradient,
    widen,
)
from linseqrec.ops.kernels import gated_delta_rule_triton, triton_choice
from linseqrec.ops.segments import cut, fill, keep, run_starts, segment_runs
from linseqrec.ops.triangular import inverse_unit_lower
from linseqrec.sharding import vary_alike

Implementation = Literal["recurrent", "chunked", "associative", "triton"]


def gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: Float[Array, "B H K V"] | None = None,
    implementation: Implementation | None = None,
    chunk_size: int = 64,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Runs a matrix-valued memory S over each history, one per row and head.

        S   <- exp(g_t) S                    forget
        u_t  = beta_t (v_t - Sᵀ k_t)         compare with what the key already recalls
        S   <- S + k_t u_tᵀ                  write the difference
        o_t  = Sᵀ q_t                        read, after the write

    Source: Gated DeltaNet (arXiv 2412.06464), with the decay before the correction as in its
    equations. No hidden scaling or normalisation: the caller normalises k (and q).

    All arithmetic is float32 (float64 for float64 inputs), and bfloat16 inputs are widened a chunk
    at a time. Matrix products of float32 inputs are exact to float32 on every backend; those of
    bfloat16 inputs may round operands to TF32 on a GPU, or take three bfloat16 passes on a TPU.
    "triton" rounds what it multiplies to bfloat16 if the inputs are, and sums in float32.

    Args:
      q: [B, T, H, K], any float dtype.
      k: [B, T, H, K]; |k| <= 1 keeps the memory bounded.
      v: [B, T, H, V].
      log_decay: [B, T, H], g <= 0; -inf forgets everything.
      beta: [B, T, H], in [0, 2].
      segment_ids: [B, T], 0 = padding; a new positive id starts from a zero state. None: a row is
        one segment without padding.
      initial_state: [B, H, K, V], the state before the row's first segment. None: zeros.
      implementation: "recurrent" is the definition, a step at a time. "chunked" makes what is local
        to a chunk in dense products, for a group of chunks at once (see `segments.cut`), and takes
        the state through them one by one. "associative" takes all chunks at once and combines their
        transitions S -> A S + B in logarithmic depth. "triton" runs kernels of its own on an NVIDIA
        GPU (Hopper or data-centre Blackwell, extra `cuda`), for K and V up to 128 and inputs in
        bfloat16 or float32. None picks "recurrent" for T = 1; beyond, "triton" on a GPU where it
        can run and agrees with XLA (`triton_choice`), else "chunked". With several devices, it can
        run where each has its own rows (`triton_choice.rows_apart`).
      chunk_size: The most slots in a chunk, rounded up to a tile of 16 on accelerators; a row is
        cut into equal ones. "triton" has 64.

    Returns:
      output: [B, T, H, V] in v's dtype; exactly 0 at padding, whatever stands there.
      final_state: [B, H, K, V] after the row's last segment, float32 (float64 for float64 inputs);
        a row without events returns its initial state.

    Raises:
      ValueError: shapes that do not match, an unknown implementation, or "triton" for inputs or on
        a machine that it does not fit.
      NotImplementedError: "triton" in a program for another platform than CUDA, when JAX lowers it.
    """
    arguments = (q, k, v, log_decay, beta, segment_ids, initial_state)
    _check_shapes(*arguments)
    _check_chunk_size(chunk_size)
    if implementation is None and q.shape[1] == 1:
        implementation = "recurrent"
    if implementation not in (None, "triton"):
        return _by_xla(*arguments, implementation=implementation, chunk_size=chunk_size)
    widths, dtype = {"K": q.shape[-1], "V": v.shape[-1]}, jnp.result_type(q, k, v)
    form = triton_choice.choose(
        implementation,
        q,
        triton_choice.unfit(widths, dtype),
        kernels=gated_delta_rule_triton.gated_delta_rule,
        by_xla=functools.partial(_by_xla, implementation="chunked", chunk_size=chunk_size),
        agrees=lambda: _kernels_agree(*widths.values(), dtype.name),
    )
    return form(*arguments)


@functools.cache
def _kernels_agree(key_width: int, value_width: int, dtype: str) -> bool:
    """Whether the kernels agree with XLA on rows with segments, that go on from a state."""
    rows = triton_choice.BATCH, triton_choice.TIME, triton_choice.HEADS

    def operation(
        q: Array,
        k: Array,
        v: Array,
        decay: Array,
        beta: Array,
        state: Array,
        *,
        implementation: Implementation,
    ) -> Any:
        norm = jnp.linalg.norm(k.astype(jnp.float32), axis=-1, keepdims=True)
        return gated_delta_rule(
            q,
            k / norm.astype(dtype),
            v,
            -jnp.exp(decay - 2),
            jax.nn.sigmoid(beta),
            segment_ids=triton_choice.segment_ids(),
            initial_state=state.astype(jnp.float32),
            implementation=implementation,
        )

    state = triton_choice.BATCH, triton_choice.HEADS, key_width, value_width
    shapes = [(*rows, key_width), (*rows, key_width), (*rows, value_width), rows, rows, state]
    return triton_choice.agree("gated delta rule", operation, shapes, dtype, "chunked")


def _by_xla(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    segment_ids: Array | None,
    initial_state: Array | None,
    *,
    implementation: str,
    chunk_size: int,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    x, runs, state = _prepare(q, k, v, log_decay, beta, segment_ids, initial_state)
    if implementation == "recurrent":
        output, state = _recurrent(x, runs, state)
    elif implementation == "chunked":
        output, state = _in_chunks(x, runs, state, chunk_size)
    elif implementation == "associative":
        output, state = associative(x, runs, state, chunk_size)
    else:
        raise ValueError(
            f"implementation {implementation!r}: choose None, 'recurrent', 'chunked', "
            "'associative' or 'triton'"
        )
    return output.astype(v.dtype), state


def sequence_parallel_gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    *,
    axis_name: str,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: Float[Array, "B H K V"] | None = None,
    chunk_size: int = 64,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """`gated_delta_rule` of rows whose time is split over devices; to be called in `jax.shard_map`.

    Each device works on its T slots at once ("associative"). What it sends is one transition
    [B, H, K, K + V], from all of which it composes the state before its first slot, and its
    segment ids.

    Args:
      q: [B, T, H, K], this device's part of the time axis; likewise k, v, log_decay and beta.
      k: See q.
      v: See q.
      log_decay: See q.
      beta: See q.
      axis_name: The mesh axis along which time is split, in order.
      segment_ids: [B, T], this device's part; segments go on across devices.
      initial_state: [B, H, K, V], before the whole row's first segment; the same on all devices.
      chunk_size: See `gated_delta_rule`.

    Returns:
      output: [B, T, H, V], this device's part.
      final_state: [B, H, K, V], the whole row's, the same on all devices.

    Raises:
      ValueError: shapes that do not match.
    """
    _check_shapes(q, k, v, log_decay, beta, segment_ids, initial_state)
    _check_chunk_size(chunk_size)
    x, runs, state = _prepare(q, k, v, log_decay, beta, segment_ids, initial_state)
    carried = None
    if segment_ids is not None:
        # Integers, 1 / (H K) of the inputs: gathered, they say all about segments across devices.
        everyone = jax.lax.all_gather(segment_ids, axis_name, axis=1, tiled=True)
        runs, start = segment_runs(everyone), jax.lax.axis_index(axis_name) * q.shape[1]
        before = jax.lax.dynamic_index_in_dim(runs, jnp.maximum(start - 1, 0), 1, keepdims=False)
        carried = jnp.where(start == 0, 1, before)
        runs = jax.lax.dynamic_slice_in_dim(runs, start, q.shape[1], axis=1)
    output, state = associative(x, runs, state, chunk_size, carried=carried, axis_name=axis_name)
    return output.astype(v.dtype), state


def _check_chunk_size(chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")


def _check_shapes(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    segment_ids: Array | None,
    initial_state: Array | None,
) -> None:
    slots = q.shape[:3]
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != slots:
        raise ValueError(
            f"q and k must be [B, T, H, K] and v [B, T, H, V], got {q.shape}, {k.shape}, {v.shape}"
        )
    if not slots[1]:
        raise ValueError("a row has no slot: T must be at least 1")
    for name, array in {"log_decay": log_decay, "beta": beta}.items():
        if array.shape != slots:
            raise ValueError(f"{name} must be [B, T, H] = {slots}, got {array.shape}")
    if segment_ids is not None and segment_ids.shape != slots[:2]:
        raise ValueError(f"segment_ids must be [B, T] = {slots[:2]}, got {segment_ids.shape}")
    state = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(f"initial_state must be [B, H, K, V] = {state}, got {initial_state.shape}")


def _prepare(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    segment_ids: Array | None,
    initial_state: Array | None,
) -> tuple[Inputs, Int[Array, "B T"], Float[Array, "B H K V"]]:
    """The inputs, 0 at padding, which then changes nothing; the runs (see segments); the state."""
    dtype = jnp.result_type(q, k, v)
    wide = jnp.promote_types(dtype, jnp.float32)
    x = Inputs(
        query=q.astype(dtype),
        key=k.astype(dtype),
        value=v.astype(dtype),
        log_decay=jnp.maximum(log_decay.astype(wide), FORGET),
        beta=beta.astype(wide),
    )
    runs = jnp.ones(q.shape[:2], jnp.int32)
    if segment_ids is not None:
        real, runs = segment_ids > 0, segment_runs(segment_ids)
        x = jax.tree.map(lambda a: keep(real, a), x)
    state = jnp.zeros((q.shape[0], *k.shape[2:], v.shape[3]), wide)
    if initial_state is not None:
        state = initial_state.astype(wide)
    return vary_alike((x, runs, state))


def _recurrent(
    x: Inputs, runs: Int[Array, "B T"], state: Float[Array, "B H K V"]
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    starts = run_starts(runs)

    def step(state: Array, now: tuple[Inputs, Bool[Array, "B"]]) -> tuple[Array, Array]:
        x, start = widen(now[0]), now[1]
        state = keep(~start, state) * jnp.exp(x.log_decay)[..., None, None]
        recalled = einsum("bhkv,bhk->bhv", state, x.key)
        update = x.beta[..., None] * (x.value - recalled)
        state = state + x.key[..., None] * update[..., None, :]
        return state, einsum("bhkv,bhk->bhv", state, x.query)

    over_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x, starts))
    state, output = jax.lax.scan(step, state, over_time)
    return jnp.moveaxis(output, 0, 1), state


# ------------------------------------------------------------------------------------- in chunks
#
# A group of chunks is worked on at once, but for the state, which goes through them one by one. Its
# arrays are [G, B, H, C, ...]. A group of one chunk has no axis G: with it XLA sums slower on CPUs.


def _group(x: Array, index: Array, chunks: int, size: int) -> Shaped[Array, "..."]:
    """One group of chunks of [B, T, H, ...], heads before time; of [B, T], [G, B, C]."""
    slots = jax.lax.dynamic_slice_in_dim(x, index * chunks * size, chunks * size, axis=1)
    if chunks > 1:
        slots = slots.reshape(x.shape[0], chunks, size, *x.shape[2:])
        slots = jnp.moveaxis(slots, 1, 0)
    time = int(chunks > 1) + 1
    return slots if x.ndim == 2 else jnp.swapaxes(slots, time, time + 1)


def _put(x: Float[Array, "B T H ..."], group: Array, index: Array) -> Array:
    """Writes one group into [B, T, H, ...]."""
    grouped = group.ndim > x.ndim
    slots = jnp.swapaxes(group, 1 + grouped, 2 + grouped)
    if grouped:
        slots = jnp.moveaxis(slots, 0, 1).reshape(x.shape[0], -1, *x.shape[2:])
    start = index * slots.shape[1]
    return jax.lax.dynamic_update_slice_in_dim(x, slots.astype(x.dtype), start, axis=1)


def _runs(
    runs: Int[Array, "B T"], index: Array, chunks: int, size: int
) -> tuple[Int[Array, "... B C"], Int[Array, "... B"]]:
    """The runs of a group's slots, and of the state before each of its chunks."""
    slots, start = _group(runs, index, chunks, size), index * chunks * size
    before = jax.lax.dynamic_index_in_dim(runs, jnp.maximum(start - 1, 0), 1, keepdims=False)
    before = jnp.where(start == 0, 1, before)
    if chunks > 1:
        before = jnp.concatenate([before[None], slots[:-1, :, -1]])
    return slots, before


def _one_by_one(
    step: Callable[[Array, Any], tuple[Array, Any]],
    state: Float[Array, "B H K V"],
    group: Any,
    chunks: int,
    *,
    reverse: bool = False,
) -> tuple[Float[Array, "B H K V"], Any]:
    """`jax.lax.scan` of the state over the chunks of a group."""
    if chunks == 1:
        return step(state, group)
    return jax.lax.scan(step, state, group, reverse=reverse)


def _in_chunks(
    x: Inputs, runs: Int[Array, "B T"], state: Float[Array, "B H K V"], chunk_size: int
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    batch, time, heads, width = x.key.shape
    # A slot's rows of D, of the scores, of the Gram matrix and of the inverse; its key and value.
    slot = 4 * chunk_size + width + x.value.shape[-1]
    rows = cut(time, chunk_size, batch * heads * chunk_size * slot)
    filled = jax.tree.map(lambda a: fill(a, rows.length), x)
    filled_runs = fill(runs, rows.length, "edge")
    output, state = _chunked(filled, filled_runs, state, rows.groups, rows.chunks)
    return output[:, :time], state


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _chunked(
    x: Inputs, runs: Int[Array, "B T"], state: Float[Array, "B H K V"], groups: int, chunks: int
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    return _chunked_forward(x, runs, state, groups, chunks, keep=False)[0]


class _Kept(NamedTuple):
    """What the gradient reads again, of all groups: T (C + V) + N K V numbers per head."""

    state: Array
    inverse: Array
    update: Array


def _chunked_forward(
    x: Inputs,
    runs: Int[Array, "B T"],
    state: Float[Array, "B H K V"],
    groups: int,
    chunks: int,
    *,
    keep: bool = True,
) -> tuple[tuple[Array, Array], tuple]:
    size, dot = runs.shape[1] // (groups * chunks), einsum_for(x.query.dtype)
    # Groups are cut out of the rows and written back within the loop, while they are in cache:
    # transposing whole rows to [N, B, H, C, ...] beforehand took a quarter of the time on a CPU.

    def step(carry: tuple[Array, Array], group: Array) -> tuple[tuple[Array, Array], _Kept | None]:
        state, output = carry
        now = widen(jax.tree.map(lambda a: _group(a, group, chunks, size), x))
        this = chunk_terms(now, *_runs(runs, group, chunks, size), dot)
        inverse = inverse_unit_lower(now.beta[..., None] * this.gram)

        def write(state: Array, chunk: tuple) -> tuple[Array, tuple[Array, Array]]:
            x, reads, writes, inverse = chunk
            missing = x.value - reads[..., None] * dot("bhck,bhkv->bhcv", x.key, state)
            update = dot("bhrc,bhcv->bhrv", inverse, x.beta[..., None] * missing)
            written = dot("bhck,bhcv->bhkv", x.key, writes[..., None] * update)
            return reads[..., -1, None, None] * state + written, (state, update)

        local = now, this.reads, this.writes, inverse
        state, (before, update) = _one_by_one(write, state, local, chunks)
        read = this.reads[..., None] * dot("...ck,...kv->...cv", now.query, before)
        read = read + dot("...rc,...cv->...rv", this.scores, update)
        return (state, _put(output, read, group)), _Kept(before, inverse, update) if keep else None

    (final, output), kept = jax.lax.scan(step, (state, jnp.zeros_like(x.value)), jnp.arange(groups))
    return (output, final), (x, runs, kept)


def _chunked_backward(
    groups: int,
    chunks: int,
    residuals: tuple[Inputs, Array, _Kept],
    cotangents: tuple[Array, Array],
) -> tuple[Inputs, None, Float[Array, "B H K V"]]:
    x, runs, kept = residuals
    d_output, d_final = cotangents
    size, dot = runs.shape[1] // (groups * chunks), einsum_for(x.query.dtype)
    earlier = jnp.tril(jnp.ones((size, size), x.beta.dtype), -1)

    def step(carry: tuple[Array, Inputs], now: tuple[Array, _Kept]) -> tuple[tuple, None]:
        (d_state, d_x), (group, (state, inverse, update)) = carry, now
        slots = widen(jax.tree.map(lambda a: _group(a, group, chunks, size), x))
        q, k, v, _, beta = slots
        decay, scores, gram, reads, writes = chunk_terms(
            slots, *_runs(runs, group, chunks, size), dot
        )
        d_read = _group(d_output, group, chunks, size).astype(state.dtype)

        # S' = reads_C S + Kᵀ diag(writes) U and O = diag(reads) Q S + scores U;
        # (I + diag(beta) gram) U = diag(beta) (V - diag(reads) K S)
        def back(d_state: Array, chunk: tuple) -> tuple[Array, tuple]:
            from_read, from_state, k, beta, reads, writes, inverse = chunk
            from_key = dot("bhck,bhkv->bhcv", k, d_state)
            d_update = from_read + writes[..., None] * from_key
            d_right = dot("bhrc,bhrv->bhcv", inverse, d_update)
            d_missing = (reads * beta)[..., None] * d_right
            before = reads[..., -1, None, None] * d_state + from_state
            return before - dot("bhck,bhcv->bhkv", k, d_missing), (d_state, from_key, d_right)

        from_read = dot("...rc,...rv->...cv", scores, d_read)
        from_state = dot("...ck,...cv->...kv", q, reads[..., None] * d_read)
        d_before, (d_state, from_key, d_right) = _one_by_one(
            back,
            d_state,
            (from_read, from_state, k, beta, reads, writes, inverse),
            chunks,
            reverse=True,
        )
        d_scores = dot("...rv,...cv->...rc", d_read, update)
        d_lower = -earlier * dot("...rv,...cv->...rc", d_right, update)
        d_gram = beta[..., None] * d_lower
        # <dO, Q S> and <dR, K S>, a slot
        to_query = dot("...cv,...kv->...ck", d_read, state)
        to_key = dot("...cv,...kv->...ck", d_right, state)
        recalled = jnp.sum(k * to_key, axis=-1)
        d_beta = jnp.sum(gram * d_lower, axis=-1) + jnp.sum(v * d_right, axis=-1) - reads * recalled
        d_reads = jnp.sum(q * to_query, axis=-1) - beta * recalled
        d_reads = d_reads.at[..., -1].add(jnp.sum(state * d_state, axis=(-2, -1)))
        d_writes = jnp.sum(update * from_key, axis=-1)

        # The gradient of an exponent is the exponential times the exponential's gradient; both are
        # known here.
        d_between = d_scores * scores + d_gram * gram
        d_log_decay = log_decay_gradient(d_between, d_reads * reads, d_writes * writes)

        d_scores, d_gram = decay * d_scores, decay * d_gram
        d_query = dot("...rc,...ck->...rk", d_scores, k) + reads[..., None] * to_query
        d_key = (
            dot("...rc,...rk->...ck", d_scores, q)
            + dot("...rc,...ck->...rk", d_gram + jnp.swapaxes(d_gram, -1, -2), k)
            + dot("...cv,...kv->...ck", writes[..., None] * update, d_state)
            - (beta * reads)[..., None] * to_key
        )
        d_slots = Inputs(d_query, d_key, beta[..., None] * d_right, d_log_decay, d_beta)
        return (d_before, jax.tree.map(lambda a, d: _put(a, d, group), d_x, d_slots)), None

    (d_state, d_x), _ = jax.lax.scan(
        step,
        (d_final, jax.tree.map(jnp.zeros_like, x)),
        (jnp.arange(groups), kept),
        reverse=True,
    )
    return d_x, None, d_state


_chunked.defvjp(_chunked_forward, _chunked_backward)
