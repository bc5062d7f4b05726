"""Normalised linear attention: full, and causal in three forms that compute the same function.

Axes: B batch, T time, H heads, K key width, V value width, C chunk, N chunks.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from linseqrec.ops.segments import segment_runs

Implementation = Literal["recurrent", "chunked", "associative", "full"]


class LinearAttentionState(NamedTuple):
    """What a row's past leaves behind for its future, in float32.

    Attributes:
      key_value: [B, H, K, V], the sum of key valueᵀ over the segment so far.
      key_sum: [B, H, K], the sum of its denominator keys.
    """

    key_value: Float[Array, "B H K V"]
    key_sum: Float[Array, "B H K"]


class _Inputs(NamedTuple):
    """The five feature arrays, [B, T, H, K or V], or in chunks [N, B, H, C, K or V]."""

    query: Array
    key: Array
    value: Array
    denominator_query: Array
    denominator_key: Array


def linear_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    *,
    denominator_query: Float[Array, "B T H Kd"] | None = None,
    denominator_key: Float[Array, "B T H Kd"] | None = None,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    epsilon: float = 1e-6,
    initial_state: LinearAttentionState | None = None,
    implementation: Implementation | None = None,
    chunk_size: int = 64,
) -> tuple[Float[Array, "B T H V"], LinearAttentionState]:
    """Averages values with weights that are inner products of features, in linear time and memory.

        o_m = sum_n <q_m, k_n> v_n / (sum_n <dq_m, dk_n> + epsilon)

    where n runs over the slots n <= m of m's segment (causal), or over all of them. Source: linear
    attention (arXiv 2006.16236); the separate denominator is RecGRELA's, whose rotation enters the
    numerator only. Features are taken as given: no feature map, no scaling.

    Args:
      query: [B, T, H, K] features of the reading slots, any float dtype.
      key: [B, T, H, K] features of the slots that are read.
      value: [B, T, H, V].
      denominator_query: [B, T, H, Kd], non-negative; None: query.
      denominator_key: [B, T, H, Kd], non-negative; None: key.
      causal: False sums over the whole segment, later slots included.
      segment_ids: [B, T], 0 = padding. None: every slot of a row is one segment, padding included
        (which is what the released RecGRELA does, with causal=False).
      epsilon: Added to every real slot's denominator.
      initial_state: The sums over what went before; belongs to the first segment of the row. None:
        zeros.
      implementation: None picks: "full" where not causal, else "recurrent" for T = 1 and "chunked"
        beyond. "recurrent" is the definition, one step at a time; "chunked" scans over chunks and
        stores nothing but their states for the gradient; "associative" combines all chunks in
        logarithmic depth. A form that does not fit `causal` raises.
      chunk_size: The most slots in a chunk.

    Returns:
      output: [B, T, H, V] in value's dtype; exactly 0 at padding, whatever stands there.
      state: The sums after the row's last segment; a row without events returns its initial state.

    Raises:
      ValueError: shapes that do not match, or an implementation that does not fit `causal`.
    """
    if (denominator_query is None) != (denominator_key is None):
        raise ValueError("give denominator_query and denominator_key together, or neither")
    inputs = _Inputs(
        query,
        key,
        value,
        query if denominator_query is None else denominator_query,
        key if denominator_key is None else denominator_key,
    )
    _check_shapes(inputs, segment_ids, chunk_size)
    implementation = _pick(implementation, causal, query.shape[1])

    real, runs = None, None
    if segment_ids is not None:
        real, runs = segment_ids > 0, segment_runs(segment_ids)
        inputs = _Inputs(*(jnp.where(real[..., None, None], x, 0) for x in inputs))
    state = _initial_state(inputs, initial_state)
    if implementation == "recurrent":
        numerator, denominator, state = _recurrent(inputs, runs, state)
    elif implementation == "full" and runs is None:
        numerator, denominator, state = _full(inputs, state)
    else:
        forms = {"chunked": _chunked, "associative": _associative, "full": _full_in_segments}
        numerator, denominator, state = forms[implementation](inputs, runs, state, chunk_size)
    denominator = denominator + epsilon
    if real is not None:
        denominator = jnp.where(real[..., None], denominator, 1)
    return (numerator / denominator[..., None]).astype(value.dtype), state


def _check_shapes(inputs: _Inputs, segment_ids: Array | None, chunk_size: int) -> None:
    for name, x in inputs._asdict().items():
        if x.ndim != 4 or x.shape[:3] != inputs.query.shape[:3]:
            raise ValueError(
                f"{name} must be [B, T, H, width] with query's {inputs.query.shape[:3]}, "
                f"got {x.shape}"
            )
    for name in ("query", "denominator_query"):
        other = name.replace("query", "key")
        widths = getattr(inputs, name).shape[-1], getattr(inputs, other).shape[-1]
        if widths[0] != widths[1]:
            raise ValueError(f"{name} and {other} have different widths: {widths}")
    if segment_ids is not None and segment_ids.shape != inputs.query.shape[:2]:
        raise ValueError(
            f"segment_ids must be [B, T] = {inputs.query.shape[:2]}, got {segment_ids.shape}"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")


def _pick(implementation: Implementation | None, causal: bool, time: int) -> Implementation:
    if implementation is None:
        if not causal:
            return "full"
        return "recurrent" if time == 1 else "chunked"
    allowed = ("recurrent", "chunked", "associative") if causal else ("full",)
    if implementation not in allowed:
        raise ValueError(
            f"implementation {implementation!r} with causal={causal}: choose None or one of "
            f"{', '.join(map(repr, allowed))}"
        )
    return implementation


def _initial_state(inputs: _Inputs, given: LinearAttentionState | None) -> LinearAttentionState:
    # Zeros made from the inputs, not bare ones: inside shard_map a scan's carry has to vary over
    # the same mesh axes as what is added to it.
    first = _Inputs(*(x[:, :1] for x in inputs))
    zeros = jax.tree.map(jnp.zeros_like, LinearAttentionState(*_sums(_to_heads(first))))
    if given is None:
        return zeros
    for name, expected, x in zip(zeros._fields, zeros, given, strict=True):
        if x.shape != expected.shape:
            raise ValueError(f"initial_state.{name} must be {expected.shape}, got {x.shape}")
    return jax.tree.map(lambda zero, x: zero + x.astype(zero.dtype), zeros, given)


def _accumulated(equation: str, *operands: Array) -> Array:
    """An einsum in the operands' dtype with sums in float32 (float64 for float64 operands)."""
    dtype = jnp.promote_types(jnp.result_type(*operands), jnp.float32)
    return jnp.einsum(equation, *operands, preferred_element_type=dtype)


def _to_heads(inputs: _Inputs) -> _Inputs:
    return _Inputs(*(jnp.swapaxes(x, 1, 2) for x in inputs))


def _sums(x: _Inputs) -> LinearAttentionState:
    """Sums over the time axis of [..., T, K or V]."""
    dtype = jnp.promote_types(x.key.dtype, jnp.float32)
    return LinearAttentionState(
        _accumulated("...ck,...cv->...kv", x.key, x.value),
        jnp.sum(x.denominator_key, axis=-2, dtype=dtype),
    )


def _read(x: _Inputs, state: LinearAttentionState) -> tuple[Array, Array]:
    """Numerator [..., T, V] and denominator [..., T] of queries against a state."""
    numerator = _accumulated("...ck,...kv->...cv", x.query, state.key_value)
    return numerator, _accumulated("...ck,...k->...c", x.denominator_query, state.key_sum)


def _recurrent(
    inputs: _Inputs, runs: Int[Array, "B T"] | None, state: LinearAttentionState
) -> tuple[Array, Array, LinearAttentionState]:
    if runs is None:
        starts = None
    else:
        starts = jnp.moveaxis(jnp.diff(runs, axis=1, prepend=jnp.ones_like(runs[:, :1])) > 0, 1, 0)

    def step(
        state: LinearAttentionState, now: tuple[_Inputs, Bool[Array, "B"] | None]
    ) -> tuple[LinearAttentionState, tuple[Array, Array]]:
        x, start = now
        if start is not None:
            state = jax.tree.map(lambda s: _keep(~start, s), state)
        key_value = state.key_value + _accumulated("bhk,bhv->bhkv", x.key, x.value)
        state = LinearAttentionState(key_value, state.key_sum + x.denominator_key)
        numerator = _accumulated("bhk,bhkv->bhv", x.query, state.key_value)
        denominator = _accumulated("bhk,bhk->bh", x.denominator_query, state.key_sum)
        return state, (numerator, denominator)

    over_time = _Inputs(*(jnp.moveaxis(x, 1, 0) for x in inputs))
    state, (numerator, denominator) = jax.lax.scan(step, state, (over_time, starts))
    return jnp.moveaxis(numerator, 0, 1), jnp.moveaxis(denominator, 0, 1), state


def _keep(where: Bool[Array, "..."], x: Array) -> Array:
    """x where the leading axes say so, else 0."""
    return jnp.where(where.reshape(*where.shape, *(1,) * (x.ndim - where.ndim)), x, 0)


def _full(
    inputs: _Inputs, state: LinearAttentionState
) -> tuple[Array, Array, LinearAttentionState]:
    x = _to_heads(inputs)
    state = jax.tree.map(jnp.add, state, _sums(x))
    numerator, denominator = _read(x, state)
    return jnp.swapaxes(numerator, 1, 2), jnp.swapaxes(denominator, 1, 2), state


# ------------------------------------------------------------------------------------- in chunks


def _to_chunks(x: Array, chunk_size: int, fill: str = "constant") -> Array:
    """[B, T, ...] -> [N, B, C, ...] with N the fewest chunks and C as even as they can be."""
    batch, time = x.shape[:2]
    count = max(1, -(-time // chunk_size))
    size = -(-time // count)
    padding = ((0, 0), (0, count * size - time), *((0, 0),) * (x.ndim - 2))
    x = jnp.pad(x, padding, mode=fill)  # type: ignore[arg-type]
    return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)


def _split(
    inputs: _Inputs, runs: Int[Array, "B T"] | None, chunk_size: int
) -> tuple[_Inputs, Int[Array, "N B C"] | None]:
    chunks = _Inputs(*(jnp.swapaxes(_to_chunks(x, chunk_size), 2, 3) for x in inputs))
    # The slots that fill up the last chunk continue the row's last segment, with zero features.
    return chunks, None if runs is None else _to_chunks(runs, chunk_size, "edge")


def _join(x: Array, time: int) -> Array:
    """[N, B, H, C, ...] -> [B, T, H, ...]."""
    x = jnp.moveaxis(x, (1, 0, 3, 2), (0, 1, 2, 3))
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]


def _within(
    x: _Inputs, runs: Int[Array, "... C"] | None, causal: bool
) -> tuple[Float[Array, "... H C V"], Float[Array, "... H C"]]:
    """Numerator and denominator from the chunk's own slots."""
    size = x.query.shape[-2]
    visible = jnp.tril(jnp.ones((size, size), bool)) if causal else jnp.ones((size, size), bool)
    if runs is not None:
        visible = visible & (runs[..., :, None] == runs[..., None, :])[..., None, :, :]
    scores = _accumulated("...ck,...nk->...cn", x.query, x.key)
    scores = jnp.where(visible, scores, 0)
    numerator = _accumulated("...cn,...nv->...cv", scores.astype(x.value.dtype), x.value)
    if x.denominator_query is x.query and x.denominator_key is x.key:
        return numerator, jnp.sum(scores, axis=-1)
    sums = _accumulated("...cn,...nk->...ck", visible.astype(x.denominator_key.dtype), x.denominator_key)
    return numerator, jnp.sum(x.denominator_query * sums, axis=-1)


def _of_run(x: _Inputs, runs: Int[Array, "... C"] | None, run: Int[Array, "..."]) -> _Inputs:
    """The inputs with the keys of all other runs than `run` set to zero."""
    if runs is None:
        return x
    mine = (runs == run[..., None])[..., None, :, None]
    return x._replace(
        key=jnp.where(mine, x.key, 0), denominator_key=jnp.where(mine, x.denominator_key, 0)
    )


def _read_as(
    x: _Inputs,
    runs: Int[Array, "... C"] | None,
    state: LinearAttentionState,
    run: Int[Array, "..."] | None,
) -> tuple[Array, Array]:
    """Reads a state that belongs to `run`: zero for the queries of all other runs."""
    numerator, denominator = _read(x, state)
    if runs is None or run is None:
        return numerator, denominator
    mine = (runs == run[..., None])[..., None, :]
    return jnp.where(mine[..., None], numerator, 0), jnp.where(mine, denominator, 0)


def _chunked(
    inputs: _Inputs,
    runs: Int[Array, "B T"] | None,
    state: LinearAttentionState,
    chunk_size: int,
) -> tuple[Array, Array, LinearAttentionState]:
    chunks, chunk_runs = _split(inputs, runs, chunk_size)
    run = None if runs is None else jnp.ones_like(runs[:, 0])

    def step(carry, now):  # type: ignore[no-untyped-def]
        (state, run), (x, runs) = carry, now
        numerator, denominator = _within(x, runs, causal=True)
        before = _read_as(x, runs, state, run)
        if runs is not None:
            last = runs[:, -1]
            state = jax.tree.map(lambda s: _keep(last == run, s), state)
            x, run = _of_run(x, runs, last), last
        state = jax.tree.map(jnp.add, state, _sums(x))
        return (state, run), (numerator + before[0], denominator + before[1])

    (state, _), (numerator, denominator) = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False), (state, run), (chunks, chunk_runs)
    )
    time = inputs.query.shape[1]
    return _join(numerator, time), _join(denominator, time), state


def _carried(
    chunks: _Inputs,
    runs: Int[Array, "N B C"],
    state: LinearAttentionState,
    *,
    reverse: bool = False,
) -> tuple[LinearAttentionState, Int[Array, "N+1 B"]]:
    """The state between chunks, N + 1 of them, and the run each of them belongs to."""
    edge = 0 if reverse else -1
    run = runs[:, :, edge]
    sums = _sums(_of_run(chunks, runs, run))

    def extend(x: Array, outer: Array) -> Array:
        return jnp.concatenate([x, outer[None]] if reverse else [outer[None], x])

    states = jax.tree.map(extend, sums, state)
    run = extend(run, runs[-1, :, -1] if reverse else jnp.ones_like(run[0]))

    def combine(earlier, later):  # type: ignore[no-untyped-def]
        # Runs never decrease along the row, so equal ends mean that all between is the same run.
        (before, run_before), (after, run_after) = earlier, later
        goes_on = run_before == run_after
        return jax.tree.map(lambda a, b: b + _keep(goes_on, a), before, after), run_after

    return jax.lax.associative_scan(combine, (states, run), reverse=reverse)


def _associative(
    inputs: _Inputs,
    runs: Int[Array, "B T"] | None,
    state: LinearAttentionState,
    chunk_size: int,
) -> tuple[Array, Array, LinearAttentionState]:
    if runs is None:
        runs = jnp.ones_like(inputs.query, shape=inputs.query.shape[:2], dtype=jnp.int32)
    chunks, chunk_runs = _split(inputs, runs, chunk_size)
    states, ends = _carried(chunks, chunk_runs, state)
    before, final = (jax.tree.map(lambda x: x[:-1], states), jax.tree.map(lambda x: x[-1], states))
    carried = _read_as(chunks, chunk_runs, before, ends[:-1])
    within = _within(chunks, chunk_runs, causal=True)
    time = inputs.query.shape[1]
    return _join(within[0] + carried[0], time), _join(within[1] + carried[1], time), final


def _full_in_segments(
    inputs: _Inputs,
    runs: Int[Array, "B T"],
    state: LinearAttentionState,
    chunk_size: int,
) -> tuple[Array, Array, LinearAttentionState]:
    """A segment's sum is what came before the chunk, what stands in it and what comes after it.

    The state carried forwards and the one carried backwards give the first and the last part, so
    that the cost does not depend on the number of segments.
    """
    chunks, chunk_runs = _split(inputs, runs, chunk_size)
    zeros = jax.tree.map(jnp.zeros_like, state)
    before, ends = _carried(chunks, chunk_runs, state)
    after, starts = _carried(chunks, chunk_runs, zeros, reverse=True)
    final = jax.tree.map(lambda x: x[-1], before)

    def one(now):  # type: ignore[no-untyped-def]
        x, runs, before, end, after, start = now
        parts = (
            _within(x, runs, causal=False),
            _read_as(x, runs, before, end),
            _read_as(x, runs, after, start),
        )
        return tuple(map(sum, zip(*parts, strict=True)))

    before, ends = jax.tree.map(lambda x: x[:-1], (before, ends))
    after, starts = jax.tree.map(lambda x: x[1:], (after, starts))
    numerator, denominator = jax.lax.map(
        jax.checkpoint(one, prevent_cse=False), (chunks, chunk_runs, before, ends, after, starts)
    )
    time = inputs.query.shape[1]
    return _join(numerator, time), _join(denominator, time), final
