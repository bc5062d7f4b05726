"""Normalised linear attention: full, and causal in three forms that compute the same function.

Axes: B batch, T time, H heads, K key width (Kd: of the denominator), V value width, C chunk,
N chunks.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from linseqrec.ops.kernels import linear_attention_triton, triton_choice
from linseqrec.ops.segments import (
    cut,
    fill,
    from_chunks,
    keep,
    run_starts,
    runs_to_chunks,
    segment_runs,
    to_chunks,
)

Implementation = Literal["recurrent", "chunked", "associative", "triton", "full"]


class LinearAttentionState(NamedTuple):
    """What a segment's past leaves behind for its future; float32, float64 for float64 inputs.

    Attributes:
      key_value: [B, H, K, V], the sum of key valueᵀ over the segment so far.
      key_sum: [B, H, Kd], the sum of its denominator keys.
    """

    key_value: Float[Array, "B H K V"]
    key_sum: Float[Array, "B H Kd"]


class _Features(NamedTuple):
    """What goes in, [B, T, H, width]; or with heads before time, [..., H, T or C, width].

    The denominator's features are None where they are the numerator's.
    """

    query: Array
    key: Array
    value: Array
    denominator_query: Array | None
    denominator_key: Array | None


# Numerator [..., V] and denominator [...] of the reading slots.
_Fraction = tuple[Array, Array]
# A state between chunks and the number of its run (see segments.py), None without segments.
_Carry = tuple[LinearAttentionState, Int[Array, "*N B"] | None]


def linear_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    *,
    denominator_query: Float[Array, "B T H Kd"] | None = None,
    denominator_key: Float[Array, "B T H Kd"] | None = None,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    epsilon: float | Float[Array, "B T H"] = 1e-6,
    initial_state: LinearAttentionState | None = None,
    implementation: Implementation | None = None,
    chunk_size: int = 64,
) -> tuple[Float[Array, "B T H V"], LinearAttentionState]:
    """Averages values with weights that are inner products of features, in time linear in T.

        o_m = sum_n <q_m, k_n> v_n / (sum_n <dq_m, dk_n> + epsilon)

    where n runs over the slots of m's segment: those up to m (causal), or all of them. Source:
    linear attention (arXiv 2006.16236); the denominator's own features are RecGRELA's (arXiv
    2506.13315), whose rotation enters the numerator only. Features are taken as given: no feature
    map, no scaling.

    Args:
      query: [B, T, H, K] features of the slots that read, any float dtype.
      key: [B, T, H, K] features of the slots that are read.
      value: [B, T, H, V].
      denominator_query: [B, T, H, Kd], non-negative. None: query.
      denominator_key: [B, T, H, Kd], non-negative. None: key.
      causal: False sums over the whole segment, later slots included.
      segment_ids: [B, T], 0 = padding. None: every slot of a row is of one segment, padding
        included (which is what the released RecGRELA does, with causal=False).
      epsilon: Added to the denominator, one number or [B, T, H]. The released RecGRELA adds 1e-6 to
        a mean over T slots: 1e-6 * T here.
      initial_state: The sums over what went before, for the first segment of the row. None: zeros.
      implementation: "recurrent" is the definition, a step at a time. "associative" takes all
        chunks at once and combines their states in logarithmic depth. "chunked" does so by groups
        of chunks (see `segments.cut`) and keeps only the states between groups for the gradient.
        "triton" runs kernels of its own on an NVIDIA GPU (Hopper or data-centre Blackwell, extra
        `cuda`), for widths up to 128 and inputs in bfloat16 or float32. It rounds what it
        multiplies to bfloat16 if all inputs are, and sums in float32. "full" is for causal=False,
        and the only one there. None picks "full" where not causal, else "recurrent" for T = 1;
        beyond, "triton" on a GPU where it can run and agrees with XLA (`triton_choice`), else
        "chunked". With several devices, it can run where each has its own rows
        (`triton_choice.rows_apart`).
      chunk_size: The most slots in a chunk; a row is cut into equal ones. "chunked" rounds it up to
        a tile of 16 on accelerators. "triton" has 64, and 32 for float32 inputs.

    Returns:
      output: [B, T, H, V] in value's dtype; exactly 0 at padding, whatever stands there.
      state: The sums over the row's last segment; a row without events returns its initial state.

    Raises:
      ValueError: shapes that do not match, an implementation that does not fit `causal`, or
        "triton" for inputs or on a machine that it does not fit.
      NotImplementedError: "triton" in a program for another platform than CUDA, when JAX lowers it.
    """
    x = _Features(query, key, value, denominator_query, denominator_key)
    _check_shapes(x, segment_ids, initial_state)
    if jnp.ndim(epsilon) and jnp.shape(epsilon) != query.shape[:3]:
        raise ValueError(
            f"epsilon must be a number or [B, T, H] = {query.shape[:3]}, got {jnp.shape(epsilon)}"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    picked = _pick(implementation, causal, query.shape[1])
    by_xla = functools.partial(_by_xla, implementation=picked, chunk_size=chunk_size)
    arguments = (x, segment_ids, epsilon, initial_state)
    if picked not in ("triton", "chunked") or implementation == "chunked":
        return by_xla(*arguments)
    dtype = jnp.result_type(*jax.tree.leaves(x))
    sizes = tuple(array.shape[-1] for array in x if array is not None)
    form = triton_choice.choose(
        implementation,
        query,
        triton_choice.unfit(_widths(x), dtype),
        kernels=_by_triton,
        by_xla=by_xla,
        agrees=lambda: _kernels_agree(sizes, dtype.name),
    )
    return form(*arguments)


@functools.cache
def _kernels_agree(widths: tuple[int, ...], dtype: str) -> bool:
    """Whether the kernels agree with XLA on rows with segments, that go on from a state."""
    rows = triton_choice.BATCH, triton_choice.TIME, triton_choice.HEADS
    key_width, value_width = widths[1:3]
    sum_width = widths[-1] if len(widths) > 3 else key_width

    def operation(*arrays: Array, implementation: Implementation) -> Any:
        query, key, value, *separate, numerator, denominator = arrays
        # Features of the denominator are non-negative.
        of_denominator: list[Array | None] = [None, None]
        if separate:
            of_denominator = [jnp.abs(x) + 0.1 for x in separate]
        else:
            query, key = jnp.abs(query) + 0.1, jnp.abs(key) + 0.1
        return linear_attention(
            query,
            key,
            value,
            denominator_query=of_denominator[0],
            denominator_key=of_denominator[1],
            segment_ids=triton_choice.segment_ids(),
            initial_state=LinearAttentionState(
                numerator.astype(jnp.float32), jnp.abs(denominator).astype(jnp.float32)
            ),
            implementation=implementation,
        )

    ends = triton_choice.BATCH, triton_choice.HEADS
    states = [(*ends, key_width, value_width), (*ends, sum_width)]
    shapes = [*((*rows, width) for width in widths), *states]
    return triton_choice.agree("linear attention", operation, shapes, dtype, "chunked")


def _by_triton(
    x: _Features,
    segment_ids: Int[Array, "B T"] | None,
    epsilon: float | Float[Array, "B T H"],
    initial_state: LinearAttentionState | None,
) -> tuple[Float[Array, "B T H V"], LinearAttentionState]:
    output, *state = linear_attention_triton.linear_attention(
        *x, epsilon, segment_ids, *(initial_state or (None, None))
    )
    return output, LinearAttentionState(*state)


def _by_xla(
    x: _Features,
    segment_ids: Int[Array, "B T"] | None,
    epsilon: float | Float[Array, "B T H"],
    initial_state: LinearAttentionState | None,
    *,
    implementation: Implementation,
    chunk_size: int,
) -> tuple[Float[Array, "B T H V"], LinearAttentionState]:
    dtype, real, runs = x.value.dtype, None, None
    if segment_ids is not None:
        real, runs = segment_ids > 0, segment_runs(segment_ids)
        x = jax.tree.map(lambda a: keep(real, a), x)
    state = _initial_state(x, initial_state)
    if implementation == "recurrent":
        (numerator, denominator), state = _recurrent(x, runs, state)
    elif implementation == "chunked":
        (numerator, denominator), state = _chunked(x, runs, state, chunk_size)
    elif implementation == "associative":
        (numerator, denominator), state = _associative(x, runs, state, chunk_size)
    elif runs is None:
        (numerator, denominator), state = _full(x, state)
    else:
        (numerator, denominator), state = _full_in_segments(x, runs, state, chunk_size)
    denominator = denominator + epsilon
    if real is not None:
        denominator = jnp.where(real[..., None], denominator, 1)
    return (numerator / denominator[..., None]).astype(dtype), state


def _check_shapes(
    x: _Features, segment_ids: Array | None, initial_state: LinearAttentionState | None
) -> None:
    if (x.denominator_query is None) != (x.denominator_key is None):
        raise ValueError("give denominator_query and denominator_key together, or neither")
    slots = x.query.shape[:3]
    for name, array in x._asdict().items():
        if array is not None and (array.ndim != 4 or array.shape[:3] != slots):
            raise ValueError(f"{name} must be [B, T, H, width], {slots} as query: {array.shape}")
    pairs = [("query", x.query, x.key), ("denominator_query", *x[3:])]
    for name, of_query, of_key in pairs:
        if of_query is not None and of_key is not None and of_query.shape != of_key.shape:
            raise ValueError(f"{name} and its key differ: {of_query.shape}, {of_key.shape}")
    if segment_ids is not None and segment_ids.shape != slots[:2]:
        raise ValueError(f"segment_ids must be [B, T] = {slots[:2]}, got {segment_ids.shape}")
    if initial_state is None:
        return
    key, value, denominator_key = _widths(x).values()
    rows = slots[0], slots[2]
    expected = {"key_value": (*rows, key, value), "key_sum": (*rows, denominator_key)}
    for name, array in initial_state._asdict().items():
        if array.shape != expected[name]:
            raise ValueError(f"initial_state.{name} must be {expected[name]}, got {array.shape}")


def _widths(x: _Features) -> dict[str, int]:
    denominator_key = x.key if x.denominator_key is None else x.denominator_key
    return {"K": x.key.shape[-1], "V": x.value.shape[-1], "Kd": denominator_key.shape[-1]}


def _pick(implementation: Implementation | None, causal: bool, time: int) -> Implementation:
    if implementation is None:
        if not causal:
            return "full"
        return "recurrent" if time == 1 else "chunked"
    fitting = ("recurrent", "chunked", "associative", "triton") if causal else ("full",)
    if implementation not in fitting:
        names = ", ".join(map(repr, fitting))
        raise ValueError(
            f"implementation {implementation!r} does not fit causal={causal}: None or {names} does"
        )
    return implementation


def _initial_state(x: _Features, given: LinearAttentionState | None) -> LinearAttentionState:
    # Zeros computed from every input: inside shard_map, the carry of a scan must vary over the same
    # mesh axes as the values that the scan adds to it.
    zeros = jax.tree.map(jnp.zeros_like, _sums(_heads_first(jax.tree.map(lambda a: a[:, :1], x))))
    if given is None:
        return zeros
    return jax.tree.map(lambda zero, array: zero + array.astype(zero.dtype), zeros, given)


# ------------------------------------------------------------------------------- building blocks


def _accumulated(equation: str, *operands: Array) -> Array:
    """An einsum in the operands' dtype with sums in float32 (float64 for float64 operands)."""
    dtype = jnp.promote_types(jnp.result_type(*operands), jnp.float32)
    narrow = [jnp.finfo(operand.dtype).bits < 32 for operand in operands]
    # An accelerator's default rounds float32 operands to TF32's 11 bits, or to bfloat16: sums over
    # a history are not to lose them. Bfloat16 operands are whole in either.
    highest = jax.lax.Precision.HIGH if any(narrow) else jax.lax.Precision.HIGHEST
    precision = None if all(narrow) else highest
    return jnp.einsum(equation, *operands, precision=precision, preferred_element_type=dtype)


def _heads_first(x: _Features) -> _Features:
    return jax.tree.map(lambda a: jnp.swapaxes(a, -3, -2), x)


def _sums(x: _Features) -> LinearAttentionState:
    """The state that slots [..., H, C, width] amount to."""
    key = x.key if x.denominator_key is None else x.denominator_key
    return LinearAttentionState(
        _accumulated("...ck,...cv->...kv", x.key, x.value),
        jnp.sum(key, axis=-2, dtype=jnp.promote_types(key.dtype, jnp.float32)),
    )


def _read(x: _Features, state: LinearAttentionState) -> _Fraction:
    """Reads one state [..., H, K, V] by queries [..., H, C, K]."""
    query = x.query if x.denominator_query is None else x.denominator_query
    return (
        _accumulated("...ck,...kv->...cv", x.query, state.key_value),
        _accumulated("...ck,...k->...c", query, state.key_sum),
    )


def _add(a: _Fraction, b: _Fraction) -> _Fraction:
    return a[0] + b[0], a[1] + b[1]


def _recurrent(
    x: _Features, runs: Int[Array, "B T"] | None, state: LinearAttentionState
) -> tuple[_Fraction, LinearAttentionState]:
    starts = None if runs is None else run_starts(runs)

    def step(
        state: LinearAttentionState, now: tuple[_Features, Bool[Array, "B"] | None]
    ) -> tuple[LinearAttentionState, _Fraction]:
        x, start = now
        if start is not None:
            state = jax.tree.map(lambda s: keep(~start, s), state)
        x = jax.tree.map(lambda a: a[:, :, None], x)
        state = jax.tree.map(jnp.add, state, _sums(x))
        return state, jax.tree.map(lambda a: a[:, :, 0], _read(x, state))

    over_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x, starts))
    state, fraction = jax.lax.scan(step, state, over_time)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), fraction), state


def _full(x: _Features, state: LinearAttentionState) -> tuple[_Fraction, LinearAttentionState]:
    x = _heads_first(x)
    state = jax.tree.map(jnp.add, state, _sums(x))
    return jax.tree.map(lambda a: jnp.swapaxes(a, 1, 2), _read(x, state)), state


# ------------------------------------------------------------------------------------- in chunks
#
# A chunk's slots read each other through a masked [C, C] block of scores, and everything outside
# the chunk through one state, which belongs to one run (see segments.py): it is read by the slots
# of that run only, and only the keys of the chunk's edge run go into the state that leaves it.


def _split(x: _Features, chunk_size: int) -> _Features:
    return _heads_first(jax.tree.map(lambda a: to_chunks(a, chunk_size), x))


def _join(fraction: _Fraction, time: int) -> _Fraction:
    """[N, B, H, C, ...] to [B, T, H, ...]."""
    numerator, denominator = (from_chunks(jnp.swapaxes(x, 2, 3), time) for x in fraction)
    return numerator, denominator


def _within(x: _Features, runs: Int[Array, "... C"] | None, causal: bool) -> _Fraction:
    """What the chunk's slots read from each other."""
    size = x.query.shape[-2]
    visible = jnp.ones((size, size), bool)
    if causal:
        visible = jnp.tril(visible)
    if runs is not None:
        visible = visible & (runs[..., :, None] == runs[..., None, :])[..., None, :, :]
    scores = jnp.where(visible, _accumulated("...ck,...nk->...cn", x.query, x.key), 0)
    numerator = _accumulated("...cn,...nv->...cv", scores.astype(x.value.dtype), x.value)
    if x.denominator_query is None or x.denominator_key is None:
        return numerator, jnp.sum(scores, axis=-1)
    # Summing the keys first is cheaper than a second block of scores.
    key = x.denominator_key
    sums = _accumulated("...cn,...nk->...ck", visible.astype(key.dtype), key)
    return numerator, jnp.sum(x.denominator_query * sums, axis=-1)


def _sums_of(
    run: Int[Array, "..."] | None, x: _Features, runs: Array | None
) -> LinearAttentionState:
    """The state that the chunk's slots of one run amount to."""
    if runs is None or run is None:
        return _sums(x)
    mine = (runs == run[..., None])[..., None, :]
    key = jnp.where(mine[..., None], x.key, 0)
    if x.denominator_key is None:
        return _sums(x._replace(key=key))
    denominator_key = jnp.where(mine[..., None], x.denominator_key, 0)
    return _sums(x._replace(key=key, denominator_key=denominator_key))


def _read_of(
    run: Int[Array, "..."] | None, x: _Features, runs: Array | None, state: LinearAttentionState
) -> _Fraction:
    """Reads the state of one run: nothing for the slots of other runs."""
    numerator, denominator = _read(x, state)
    if runs is None or run is None:
        return numerator, denominator
    mine = (runs == run[..., None])[..., None, :]
    return jnp.where(mine[..., None], numerator, 0), jnp.where(mine, denominator, 0)


def _advance(
    carry: _Carry, chunk: tuple[_Features, Int[Array, "B C"] | None], *, edge: int = -1
) -> _Carry:
    """The state behind a chunk from the one before it; edge 0 goes backwards in time."""
    (state, run), (x, runs) = carry, chunk
    if runs is not None and run is not None:
        before, run = run, runs[:, edge]
        goes_on = before == run
        state = jax.tree.map(lambda s: keep(goes_on, s), state)
    return jax.tree.map(jnp.add, state, _sums_of(run, x, runs)), run


def _chunked(
    x: _Features, runs: Int[Array, "B T"] | None, state: LinearAttentionState, chunk_size: int
) -> tuple[_Fraction, LinearAttentionState]:
    batch, time, heads, width = x.key.shape
    # A slot's scores, its key and its value.
    rows = cut(time, chunk_size, batch * heads * chunk_size * (chunk_size + 2 * width))
    # [groups, G, B, H, C, ...]
    grouped = lambda a: a.reshape(rows.groups, rows.chunks, *a.shape[1:])  # noqa: E731
    filled = jax.tree.map(lambda a: fill(a, rows.length), x)
    groups = jax.tree.map(grouped, _split(filled, rows.size))
    first, group_runs = None, None
    if runs is not None:
        first = jnp.ones_like(runs[:, 0])
        group_runs = grouped(to_chunks(fill(runs, rows.length, "edge"), rows.size))
    (state, _), fraction = jax.lax.scan(
        jax.checkpoint(_at_once, prevent_cse=False), (state, first), (groups, group_runs)
    )
    return _join(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), fraction), time), state


def _full_in_segments(
    x: _Features, runs: Int[Array, "B T"], state: LinearAttentionState, chunk_size: int
) -> tuple[_Fraction, LinearAttentionState]:
    """A slot reads what came before its chunk, what stands in it, and what comes after it.

    The states carried forwards and backwards hold the first and the last of these, so that neither
    time nor memory depends on the number of segments.
    """
    chunks = _split(x, chunk_size), runs_to_chunks(runs, chunk_size)

    def forwards(carry: _Carry, chunk: tuple[_Features, Array]) -> tuple[_Carry, _Carry]:
        return _advance(carry, chunk), carry

    def backwards(carry: _Carry, chunk: tuple) -> tuple[_Carry, _Fraction]:
        (after, after_run), ((before, before_run), (x, runs)) = carry, chunk
        outside = _add(_read_of(before_run, x, runs, before), _read_of(after_run, x, runs, after))
        return _advance(carry, (x, runs), edge=0), _add(_within(x, runs, causal=False), outside)

    (final, _), before = jax.lax.scan(
        jax.checkpoint(forwards, prevent_cse=False), (state, jnp.ones_like(runs[:, 0])), chunks
    )
    _, fraction = jax.lax.scan(
        jax.checkpoint(backwards, prevent_cse=False),
        (jax.tree.map(jnp.zeros_like, state), runs[:, -1]),
        (before, chunks),
        reverse=True,
    )
    return _join(fraction, x.query.shape[1]), final


def _associative(
    x: _Features, runs: Int[Array, "B T"] | None, state: LinearAttentionState, chunk_size: int
) -> tuple[_Fraction, LinearAttentionState]:
    first, chunk_runs = None, None
    if runs is not None:
        first, chunk_runs = jnp.ones_like(runs[:, 0]), runs_to_chunks(runs, chunk_size)
    (state, _), fraction = _at_once((state, first), (_split(x, chunk_size), chunk_runs))
    return _join(fraction, x.query.shape[1]), state


def _at_once(
    carry: _Carry, chunks: tuple[_Features, Int[Array, "N B C"] | None]
) -> tuple[_Carry, _Fraction]:
    """All chunks [N, B, H, C, ...]: the states between them in logarithmic depth."""
    x, runs = chunks
    # On a CPU long rows are taken chunk by chunk: nothing to compose.
    if x.query.shape[0] == 1:
        one = jax.tree.map(lambda a: a[0], chunks)
        (state, run), (now, now_runs) = carry, one
        read = _read_of(run, now, now_runs, state)
        fraction = _add(_within(now, now_runs, causal=True), read)
        return _advance(carry, one), jax.tree.map(lambda a: a[None], fraction)
    last = None if runs is None else runs[:, :, -1]
    # What was before stands before the chunks' own states, as one more chunk.
    states, ends = jax.tree.map(
        lambda first, others: jnp.concatenate([first[None], others]),
        carry,
        (_sums_of(last, x, runs), last),
    )

    def combine(earlier: _Carry, later: _Carry) -> _Carry:
        (past, past_run), (state, run) = earlier, later
        if past_run is not None and run is not None:
            # Runs never decrease along the row: equal at both ends, they are equal all between.
            past = jax.tree.map(lambda s, goes_on=past_run == run: keep(goes_on, s), past)
        return jax.tree.map(jnp.add, past, state), run

    states, ends = jax.lax.associative_scan(combine, (states, ends))
    before, after = (jax.tree.map(lambda a, k=k: a[k], (states, ends)) for k in (slice(-1), -1))
    fraction = _add(_within(x, runs, causal=True), _read_of(before[1], x, runs, before[0]))
    return after, fraction
