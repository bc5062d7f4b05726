"""Linear attention that forgets: a decay for each event and head, and no correction of writes.

Axes: B batch, T time, H heads, K key width, V value width, C chunk, N chunks, G chunks of a group.

With G_r the sum of the log-decays up to slot r of a chunk, D_ri = exp(G_r - G_i) for i <= r and
S the state before the chunk:

    O = diag(e^G) Q S + (D * Q Kᵀ) V
    S' = e^G_C S + (diag(e^(G_C - G)) K)ᵀ V

These are the equations of `gated_delta_rule_parts` with V in the place of the corrected update U.
Sums of decays and the boundaries of segments are made there.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from linseqrec.ops.gated_delta_rule_parts import FORGET, chunk_decays, einsum, einsum_for
from linseqrec.ops.segments import cut, fill, from_chunks, keep, run_starts, segment_runs, to_chunks
from linseqrec.sharding import vary_alike

Implementation = Literal["recurrent", "chunked"]


class _Inputs(NamedTuple):
    """What goes in, [B, T, H, ...]; or chunks with heads before time, [G, B, H, C, ...]."""

    query: Array
    key: Array
    value: Array
    log_decay: Array


def decayed_linear_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: Float[Array, "B H K V"] | None = None,
    implementation: Implementation | None = None,
    chunk_size: int = 64,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Runs a matrix-valued memory S over each history, one per row and head.

        S   <- exp(g_t) S + k_t v_tᵀ         forget, then write
        o_t  = Sᵀ q_t                        read, after the write

    Source: the state space dual form of Mamba-2 (arXiv 2405.21060), and retention (arXiv
    2307.08621) for decays that are constant. No hidden scaling, and no denominator.

    All arithmetic is float32 (float64 for float64 inputs), and bfloat16 inputs are widened a chunk
    at a time. Matrix products of float32 inputs are exact to float32 on every backend; those of
    bfloat16 inputs may round operands to TF32 on a GPU, or take three bfloat16 passes on a TPU.

    Args:
      query: [B, T, H, K], any float dtype.
      key: [B, T, H, K].
      value: [B, T, H, V].
      log_decay: [B, T, H], g <= 0; -inf forgets everything.
      segment_ids: [B, T], 0 = padding; a new positive id starts from a zero state. None: a row is
        one segment without padding.
      initial_state: [B, H, K, V], the state before the row's first segment. None: zeros.
      implementation: "recurrent" is the definition, a step at a time. "chunked" works on groups of
        chunks (see `segments.cut`) in dense products, and keeps only the states between groups for
        the gradient. None picks "recurrent" for T = 1 and "chunked" beyond.
      chunk_size: The most slots in a chunk, rounded up to a tile of 16 on accelerators; a row is
        cut into equal ones.

    Returns:
      output: [B, T, H, V] in value's dtype; exactly 0 at padding, whatever stands there.
      final_state: [B, H, K, V] after the row's last segment, float32 (float64 for float64 inputs);
        a row without events returns its initial state.

    Raises:
      ValueError: shapes that do not match, or an unknown implementation.
    """
    _check(query, key, value, log_decay, segment_ids, initial_state, chunk_size)
    dtype = jnp.result_type(query, key, value)
    wide = jnp.promote_types(dtype, jnp.float32)
    decays = jnp.maximum(log_decay.astype(wide), FORGET)
    x = _Inputs(query.astype(dtype), key.astype(dtype), value.astype(dtype), decays)
    runs = jnp.ones(query.shape[:2], jnp.int32)
    if segment_ids is not None:
        real, runs = segment_ids > 0, segment_runs(segment_ids)
        x = jax.tree.map(lambda a: keep(real, a), x)
    state = jnp.zeros((query.shape[0], *key.shape[2:], value.shape[3]), wide)
    if initial_state is not None:
        state = initial_state.astype(wide)
    x, runs, state = vary_alike((x, runs, state))
    picked = implementation or ("recurrent" if query.shape[1] == 1 else "chunked")
    if picked == "recurrent":
        output, state = _recurrent(x, runs, state)
    elif picked == "chunked":
        output, state = _chunked(x, runs, state, chunk_size)
    else:
        raise ValueError(f"implementation {picked!r}: choose None, 'recurrent' or 'chunked'")
    return output.astype(value.dtype), state


def _check(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array,
    segment_ids: Array | None,
    initial_state: Array | None,
    chunk_size: int,
) -> None:
    slots = query.shape[:3]
    if query.ndim != 4 or key.shape != query.shape or value.ndim != 4 or value.shape[:3] != slots:
        raise ValueError(
            "query and key must be [B, T, H, K] and value [B, T, H, V], "
            f"got {query.shape}, {key.shape}, {value.shape}"
        )
    if log_decay.shape != slots:
        raise ValueError(f"log_decay must be [B, T, H] = {slots}, got {log_decay.shape}")
    if segment_ids is not None and segment_ids.shape != slots[:2]:
        raise ValueError(f"segment_ids must be [B, T] = {slots[:2]}, got {segment_ids.shape}")
    state = (query.shape[0], *query.shape[2:], value.shape[3])
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(f"initial_state must be [B, H, K, V] = {state}, got {initial_state.shape}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")


def _widen(x: _Inputs) -> _Inputs:
    return jax.tree.map(lambda a: a.astype(x.log_decay.dtype), x)


def _recurrent(
    x: _Inputs, runs: Int[Array, "B T"], state: Float[Array, "B H K V"]
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    starts = run_starts(runs)

    def step(state: Array, now: tuple[_Inputs, Bool[Array, "B"]]) -> tuple[Array, Array]:
        x, start = _widen(now[0]), now[1]
        state = keep(~start, state) * jnp.exp(x.log_decay)[..., None, None]
        state = state + x.key[..., None] * x.value[..., None, :]
        return state, einsum("bhkv,bhk->bhv", state, x.query)

    over_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x, starts))
    state, output = jax.lax.scan(step, state, over_time)
    return jnp.moveaxis(output, 0, 1), state


def _chunked(
    x: _Inputs, runs: Int[Array, "B T"], state: Float[Array, "B H K V"], chunk_size: int
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    batch, time, heads, width = x.key.shape
    # A slot's rows of D and of the scores, its key and its value.
    slot = 2 * chunk_size + width + x.value.shape[-1]
    rows = cut(time, chunk_size, batch * heads * chunk_size * slot)

    def grouped(chunks: Array) -> Array:
        return chunks.reshape(rows.groups, rows.chunks, *chunks.shape[1:])

    def heads_first(a: Array) -> Array:
        return jnp.swapaxes(to_chunks(fill(a, rows.length), rows.size), 2, 3)

    chunk_runs = to_chunks(fill(runs, rows.length, "edge"), rows.size)
    # What a row begins with belongs to its first segment, whose number is 1.
    before = jnp.concatenate([jnp.ones_like(chunk_runs[:1, :, 0]), chunk_runs[:-1, :, -1]])
    groups = jax.tree.map(grouped, (jax.tree.map(heads_first, x), chunk_runs, before))
    state, output = jax.lax.scan(jax.checkpoint(_group, prevent_cse=False), state, groups)
    output = output.reshape(-1, *output.shape[2:])
    return from_chunks(jnp.swapaxes(output, 2, 3), time), state


def _group(
    state: Float[Array, "B H K V"],
    group: tuple[_Inputs, Int[Array, "G B C"], Int[Array, "G B"]],
) -> tuple[Float[Array, "B H K V"], Float[Array, "G B H C V"]]:
    """Takes the state through a group of chunks; returns it and what the slots read."""
    x, runs, carried = group
    dot = einsum_for(x.query.dtype)
    x = _widen(x)
    left = chunk_decays(x.log_decay, runs, carried)
    written = dot("...ck,...cv->...kv", x.key, left.writes[..., None] * x.value)

    def write(state: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, written = chunk
        return kept[..., None, None] * state + written, state

    state, before = jax.lax.scan(write, state, (left.reads[..., -1], written))
    read = left.reads[..., None] * dot("...ck,...kv->...cv", x.query, before)
    scores = left.between * dot("...rk,...ik->...ri", x.query, x.key)
    return state, read + dot("...ri,...iv->...rv", scores, x.value)
