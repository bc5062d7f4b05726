"""Linear attention whose memory decays: no denominator, no correction before a write.

Axes: B batch, T time, H heads, K key width, V value width, C chunk, N chunks, G chunks of a group.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from linseqrec.ops.chunks import cut, fill
from linseqrec.ops.gated_delta_rule_parts import Inputs, chunk_terms, einsum, einsum_for, widen
from linseqrec.ops.segments import keep, segment_runs

Implementation = Literal["recurrent", "chunked"]

# A log-decay that forgets everything in any float dtype, and is finite: masks multiply it by 0.
_FORGET = -1e3

# A state between chunks and the number of its run (see segments.py).
_Carry = tuple[Float[Array, "B H K V"], Int[Array, "B"]]


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

        S   <- exp(g_t) S + k_t v_tᵀ         decay, then write
        o_t  = Sᵀ q_t                        read, after the write

    which is o_t = Σ_s exp(g_{s+1} + … + g_t) <q_t, k_s> v_s over the events s up to t. Source:
    RetNet (arXiv 2307.08621) where the decay is constant, Mamba-2 (arXiv 2405.21060) where it is
    not. `ops/gated_delta_rule.py` is the memory that corrects what it writes. All arithmetic is
    float32 (float64 for float64 inputs); matrix products round as that rule's do.

    Args:
      query: [B, T, H, K], any float dtype.
      key: [B, T, H, K].
      value: [B, T, H, V].
      log_decay: [B, T, H], g <= 0; -inf forgets everything.
      segment_ids: [B, T], 0 = padding; a new positive id starts from a zero state. None: a row is
        one segment without padding.
      initial_state: [B, H, K, V], the state before the row's first segment. None: zeros.
      implementation: "recurrent" is the definition, a step at a time. "chunked" reads within chunks
        by dense products, and carries one state from chunk to chunk; the gradient recomputes what
        is local to a chunk. None picks "recurrent" for T = 1 and "chunked" beyond.
      chunk_size: The most slots in a chunk, rounded up to a tile of 16 on accelerators; a row is
        cut into equal ones.

    Returns:
      output: [B, T, H, V] in value's dtype; exactly 0 at padding, whatever stands there.
      final_state: [B, H, K, V] after the row's last segment, float32 (float64 for float64 inputs);
        a row without events returns its initial state.

    Raises:
      ValueError: If shapes do not match, or the implementation is unknown.
    """
    _check_shapes(query, key, value, log_decay, segment_ids, initial_state)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if implementation is None:
        implementation = "recurrent" if query.shape[1] == 1 else "chunked"
    dtype = jnp.result_type(query, key, value)
    wide = jnp.promote_types(dtype, jnp.float32)
    log_decay = jnp.maximum(log_decay.astype(wide), _FORGET)
    # A decayed memory has no β; zeros of the gates' dtype stand for it.
    query, key, narrow_value = (a.astype(dtype) for a in (query, key, value))
    x = Inputs(query, key, narrow_value, log_decay, jnp.zeros_like(log_decay))
    runs = jnp.ones_like(query, shape=query.shape[:2], dtype=jnp.int32)
    if segment_ids is not None:
        real, runs = segment_ids > 0, segment_runs(segment_ids)
        x = jax.tree.map(lambda a: keep(real, a), x)
    # Zeros derived from the inputs, not bare ones: inside shard_map, a scan's carry has to vary
    # over the mesh axes that what is added to it varies over.
    first = widen(jax.tree.map(lambda a: a[:, 0], x))
    state = jnp.zeros_like(_outer(first.key * first.log_decay[..., None], first.value))
    if initial_state is not None:
        state = state + initial_state.astype(wide)
    if implementation == "recurrent":
        output, state = _recurrent(x, runs, state)
    elif implementation == "chunked":
        output, state = _chunked(x, runs, state, chunk_size)
    else:
        raise ValueError(
            f"implementation {implementation!r}: choose None, 'recurrent' or 'chunked'"
        )
    return output.astype(value.dtype), state


def _check_shapes(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array,
    segment_ids: Array | None,
    initial_state: Array | None,
) -> None:
    slots = query.shape[:3]
    if query.ndim != 4 or key.shape != query.shape or value.ndim != 4 or value.shape[:3] != slots:
        raise ValueError(
            "query and key must be [B, T, H, K] and value [B, T, H, V], got "
            f"{query.shape}, {key.shape}, {value.shape}"
        )
    if log_decay.shape != slots:
        raise ValueError(f"log_decay must be [B, T, H] = {slots}, got {log_decay.shape}")
    if segment_ids is not None and segment_ids.shape != slots[:2]:
        raise ValueError(f"segment_ids must be [B, T] = {slots[:2]}, got {segment_ids.shape}")
    state = (slots[0], slots[2], query.shape[3], value.shape[3])
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(f"initial_state must be [B, H, K, V] = {state}, got {initial_state.shape}")


def _outer(key: Float[Array, "B H K"], value: Float[Array, "B H V"]) -> Float[Array, "B H K V"]:
    return key[..., None] * value[..., None, :]


def _recurrent(
    x: Inputs, runs: Int[Array, "B T"], state: Float[Array, "B H K V"]
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    starts = jnp.diff(runs, axis=1, prepend=jnp.ones_like(runs[:, :1])) > 0

    def step(state: Array, now: tuple[Inputs, Bool[Array, "B"]]) -> tuple[Array, Array]:
        x, start = widen(now[0]), now[1]
        state = keep(~start, state) * jnp.exp(x.log_decay)[..., None, None]
        state = state + _outer(x.key, x.value)
        return state, einsum("bhkv,bhk->bhv", state, x.query)

    over_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x, starts))
    state, output = jax.lax.scan(step, state, over_time)
    return jnp.moveaxis(output, 0, 1), state


def _chunked(
    x: Inputs, runs: Int[Array, "B T"], state: Float[Array, "B H K V"], chunk_size: int
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    batch, time, heads, width = x.key.shape
    # A slot's rows of decays and of scores; its key and its value.
    slot = 2 * chunk_size + width + x.value.shape[-1]
    rows = cut(time, chunk_size, batch * heads * chunk_size * slot)
    dot = einsum_for(x.query.dtype)

    def grouped(a: Array) -> Array:
        """[B, T, ...] to [groups, G, B, C, ...], heads before C where there are heads."""
        a = a.reshape(batch, rows.groups, rows.chunks, rows.size, *a.shape[2:])
        a = jnp.moveaxis(a, 0, 2)
        return a if a.ndim == 4 else jnp.swapaxes(a, 3, 4)

    def put(state: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, written = chunk
        return kept[..., None, None] * state + written, state

    def step(carry: _Carry, group: tuple[Inputs, Int[Array, "G B C"]]) -> tuple[_Carry, Array]:
        (state, run), (x, runs) = carry, group
        x, before = widen(x), jnp.concatenate([run[None], runs[:-1, :, -1]])
        this = chunk_terms(x, runs, before, dot)
        written = dot("...ck,...cv->...kv", x.key, this.writes[..., None] * x.value)
        state, states = jax.lax.scan(put, state, (this.reads[..., -1], written))
        output = this.reads[..., None] * dot("...ck,...kv->...cv", x.query, states)
        output = output + dot("...rc,...cv->...rv", this.scores, x.value)
        return (state, runs[-1, :, -1]), output

    groups = jax.tree.map(lambda a: grouped(fill(a, rows.length)), x)
    group_runs = grouped(fill(runs, rows.length, "edge"))
    carry = state, jnp.ones_like(runs[:, 0])
    (state, _), output = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False), carry, (groups, group_runs)
    )
    # [groups, G, B, H, C, V]
    output = jnp.moveaxis(jnp.swapaxes(output, 3, 4), 2, 0)
    return output.reshape(batch, -1, heads, output.shape[-1])[:, :time], state
