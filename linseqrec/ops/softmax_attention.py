"""Softmax attention: causal, over all of the past or a sliding window, segment-aware.

Axes: B batch, T time, S slots of keys, H heads, K key width, V value width, M memory slots,
E a memory slot's width, C block, N blocks.
"""

from collections.abc import Iterable
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from linseqrec.ops.kernels import softmax_attention_triton, triton_choice
from linseqrec.ops.segments import keep, segment_runs

Implementation = Literal["blockwise", "banded", "dense", "triton"]


class MemorySlots(NamedTuple):
    """Memory slots of each event: only the event's own query sees them, in the same softmax.

    Slot m has the key `slots[m] @ key[:, h]` and the value `slots[m] @ value[:, h]` in head h. The
    attention never computes these. It maps the query to the space of the slots, and maps the
    weighted sum of slots to a value. So M slots cost M vectors per event, not M keys and M values.

    Attributes:
      slots: [B, T, M, E], any float dtype.
      key: [E, H, K], a linear map from a slot to its keys.
      value: [E, H, V], a linear map from a slot to its values.
    """

    slots: Float[Array, "B T M E"]
    key: Float[Array, "E H K"]
    value: Float[Array, "E H V"]


class Fading(NamedTuple):
    """A key's score falls with its age: by `rate[h] * (times[t] - times[s])` for the query at t.

    Ages are differences of integers, taken for each pair: a bias for the key alone,
    `rate * times[s]`, would be the same to a softmax, and would round minutes away behind years.

    Attributes:
      times: int32 [B, S], of the keys' slots, in any unit; only differences count, and they may
        wrap around as long as those within one history and window fit int32.
      rate: [H], per unit of time.
    """

    times: Int[Array, "B S"]
    rate: Float[Array, "H"]


def softmax_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H V"],
    *,
    memory: MemorySlots | None = None,
    fading: Fading | None = None,
    window: int | None = None,
    behind: int = 0,
    segment_ids: Int[Array, "B S"] | None = None,
    implementation: Implementation | None = None,
    scale: float | None = None,
    block_size: int = 64,
) -> Float[Array, "B T H V"]:
    """Averages values with weights softmax(scale <q_t, k_s> - faded) over the slots s t may see.

    Those are the slots of t's own segment up to t - behind, the last `window` of them where there
    is a window. Source: arXiv 1706.03762. Memory slots, if given, stand beside those in
    the same softmax, each query's own. A query that sees no slot at all reads 0.

    Args:
      query: [B, T, H, K], any float dtype.
      key: [B, S, H, K], S >= T: the queries are those of the last T slots, so that keys of the past
        may stand before them.
      value: [B, S, H, V].
      memory: Slots that only the query at t sees. Not for "dense".
      fading: What the scores lose with the keys' age, in float32 (float64 for float64). None:
        nothing.
      window: How many slots t sees, from t - behind - window + 1 to t - behind. None: all.
      behind: How many slots the last one that t sees stands before t.
      segment_ids: [B, S], 0 = padding. None: every slot of a row is one segment.
      implementation: None picks "triton" on a GPU where it can run and agrees with XLA
        (`triton_choice`), else "banded" where a window is shorter than T, else "blockwise". With
        several devices, "triton" can run where each has its own rows (`triton_choice.rows_apart`).
        "blockwise" takes a block of queries at a time, "banded" (window only) shows each block no
        more keys than its windows reach; both recompute the scores for the gradient, so that
        memory grows linearly with T. "dense" is `jax.nn.dot_product_attention` with a mask: all
        [T, T] scores at once. "triton" runs kernels of its own on an NVIDIA GPU (Hopper or
        data-centre Blackwell, extra `cuda`): without memory slots and fading, K and V up to 128,
        bfloat16 or float32. It reads no key outside a query's window or segment.
      scale: None: 1 / sqrt(K).
      block_size: The most queries in a block. "triton" has 64.

    Returns:
      [B, T, H, V] in value's dtype; exactly 0 at padding, whatever stands there.

    Raises:
      ValueError: shapes that do not match, a window that is not positive, negative slots behind,
        an unknown implementation, "banded" without a window, "dense" with memory slots, or "triton"
        for arguments or on a machine that it does not fit.
      NotImplementedError: "triton" in a program for another platform than CUDA, when JAX lowers it.
    """
    _check_shapes(query, key, value, fading, segment_ids)
    _check_memory(query, value, memory)
    time, past = query.shape[1], key.shape[1] - query.shape[1]
    if window is not None and window < 1:
        raise ValueError(f"a window is at least 1, got {window}")
    if behind < 0:
        raise ValueError(f"behind is at least 0, got {behind}")
    reach = None if window is None else window + behind
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    by_xla: Implementation = "banded" if reach is not None and reach < time else "blockwise"
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    # Padding makes up a run of its own, 0; what it reads is set to 0 at the end.
    runs = jnp.ones_like(key, shape=key.shape[:2], dtype=jnp.int32)
    if segment_ids is not None:
        real = segment_ids > 0
        runs = jnp.where(real, segment_runs(segment_ids), 0)
        key, value = keep(real, key), keep(real, value)
        real = real[:, past:]
        query = keep(real, query)
        if memory is not None:
            memory = memory._replace(slots=keep(real, memory.slots))

    def by_form(
        form: Implementation | None,
        query: Array,
        key: Array,
        value: Array,
        runs: Array,
        segment_ids: Array | None,
    ) -> Array:
        del segment_ids
        if form == "blockwise":
            return _blockwise(
                query, key, value, memory, fading, runs, reach, behind, scale, block_size
            )
        if form == "banded":
            if reach is None:
                raise ValueError("implementation 'banded' needs a window")
            most = min(reach, key.shape[1])
            return _banded(query, key, value, memory, fading, runs, most, behind, scale, block_size)
        if form == "dense":
            if memory is not None:
                raise ValueError("implementation 'dense' takes no memory slots")
            return _dense(query, key, value, fading, runs, reach, behind, scale)
        raise ValueError(
            f"implementation {form!r}: choose None, 'blockwise', 'banded', 'dense' or 'triton'"
        )

    def by_triton(
        query: Array, key: Array, value: Array, runs: Array, segment_ids: Array | None
    ) -> Array:
        del runs
        return softmax_attention_triton.softmax_attention(
            query, key, value, segment_ids, reach=reach, behind=behind, scale=scale
        )

    arrays = query, key, value, runs, segment_ids
    if implementation not in (None, "triton"):
        output = by_form(implementation, *arrays)
    else:
        sizes = query.shape[-1], value.shape[-1], jnp.result_type(query, key, value).name
        form = triton_choice.choose(
            implementation,
            query,
            _unfit_for_triton(query, key, value, memory, fading),
            kernels=by_triton,
            by_xla=partial(by_form, by_xla),
            agrees=lambda: _kernels_agree(*sizes),
        )
        output = form(*arrays)
    if behind and memory is None:
        # A query that sees no key has equal weights for all slots: its output must become 0.
        sees = jnp.pad(runs, ((0, 0), (behind, 0)), constant_values=-1)[:, past : past + time]
        output = keep(sees == runs[:, past:], output)
    return output if segment_ids is None else keep(real, output)


@cache
def _kernels_agree(key_width: int, value_width: int, dtype: str) -> bool:
    """Whether the kernels agree with XLA: all of the past, and a window behind with older keys."""
    rows = triton_choice.BATCH, triton_choice.TIME, triton_choice.HEADS

    def operation(query: Array, key: Array, value: Array, *, implementation: str) -> Any:
        whole: Implementation = "triton" if implementation == "triton" else "blockwise"
        form: Implementation = "triton" if implementation == "triton" else "banded"
        ids = triton_choice.segment_ids()
        return (
            softmax_attention(query, key, value, segment_ids=ids, implementation=whole),
            softmax_attention(
                query[:, 50:],
                key,
                value,
                segment_ids=ids,
                window=40,
                behind=3,
                implementation=form,
            ),
        )

    shapes = [(*rows, key_width), (*rows, key_width), (*rows, value_width)]
    return triton_choice.agree("softmax attention", operation, shapes, dtype, "XLA's")


def _unfit_for_triton(
    query: Array,
    key: Array,
    value: Array,
    memory: MemorySlots | None,
    fading: Fading | None,
) -> str | None:
    """Why the Triton kernels cannot compute this; None if they can."""
    if memory is not None:
        return "it takes no memory slots"
    if fading is not None:
        return "it takes no fading"
    widths = {"K": query.shape[-1], "V": value.shape[-1]}
    return triton_choice.unfit(widths, jnp.result_type(query, key, value))


def _check_shapes(
    query: Array, key: Array, value: Array, fading: Fading | None, segment_ids: Array | None
) -> None:
    batch, time, *features = query.shape
    if (
        query.ndim != 4
        or key.ndim != 4
        or key.shape[1] < time
        or key.shape != (batch, key.shape[1], *features)
        or value.shape[:3] != key.shape[:3]
    ):
        raise ValueError(
            "query and key must be [B, T, H, K] and [B, S, H, K], value [B, S, H, V], S >= T; got "
            f"{query.shape}, {key.shape}, {value.shape}"
        )
    if fading is not None:
        if fading.times.shape != key.shape[:2] or fading.rate.shape != key.shape[2:3]:
            raise ValueError(
                f"fading must be of times [B, S] = {key.shape[:2]} and rates [H] = "
                f"{key.shape[2:3]}, got {fading.times.shape} and {fading.rate.shape}"
            )
        if not jnp.issubdtype(fading.times.dtype, jnp.integer):
            raise ValueError(f"fading's times must be integers, got {fading.times.dtype}")
    if segment_ids is not None and segment_ids.shape != key.shape[:2]:
        raise ValueError(f"segment_ids must be [B, S] = {key.shape[:2]}, got {segment_ids.shape}")


def _check_memory(query: Array, value: Array, memory: MemorySlots | None) -> None:
    if memory is None:
        return
    slots, key, value_map = memory
    fits = slots.ndim == 4 and slots.shape[:2] == query.shape[:2]
    width = slots.shape[-1]
    if (
        not fits
        or key.shape != (width, *query.shape[2:])
        or value_map.shape != (width, *value.shape[2:])
    ):
        raise ValueError(
            f"memory slots must be [B, T, M, E] with [B, T] = {query.shape[:2]}, and their maps "
            f"[E, H, K] and [E, H, V] with [H, K] = {query.shape[2:]} and [H, V] = "
            f"{value.shape[2:]}; got {slots.shape}, {key.shape}, {value_map.shape}"
        )


def _visible(
    query_slots: Int[Array, "Tq"],
    key_slots: Int[Array, "Tk"],
    query_runs: Int[Array, "B Tq"],
    key_runs: Int[Array, "B Tk"],
    reach: int | None,
    behind: int,
) -> Bool[Array, "B 1 Tq Tk"]:
    """Which key each query sees: those from `behind` slots before it on, and less than `reach`."""
    visible = query_runs[:, :, None] == key_runs[:, None, :]
    distance = query_slots[:, None] - key_slots[None, :]
    visible = visible & (distance >= behind)
    if reach is not None:
        visible = visible & (distance < reach)
    return visible[:, None]


def _faded(
    fading: Fading, query_times: Int[Array, "B Tq"], dtype: DTypeLike
) -> Float[Array, "B H Tq Tk"]:
    """What the scores of the fading's keys lose, each query at its own time."""
    ages = query_times[:, :, None] - fading.times[:, None, :]
    return ages.astype(dtype)[:, None] * fading.rate.astype(dtype)[:, None, None]


def _query_times(fading: Fading, past: int, behind: int) -> Int[Array, "B Tq"]:
    """For each query, the time of the last key that it sees, in place of the query's own time.

    The softmax is the same. But ages of years, from the query's own time, would round away the
    minutes between the keys.
    """
    times = fading.times
    return jnp.pad(times, ((0, 0), (behind, 0)))[:, past : times.shape[1]]


def _attend(
    query: Float[Array, "B H Tq K"],
    key: Float[Array, "B H Tk K"],
    value: Float[Array, "B H Tk V"],
    memory: MemorySlots | None,
    fading: Fading | None,
    query_times: Int[Array, "B Tq"] | None,
    visible: Bool[Array, "B 1 Tq Tk"],
    scale: float,
) -> Float[Array, "B H Tq V"]:
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhqk,bhnk->bhqn", query, key, preferred_element_type=dtype) * scale
    if fading is not None:
        assert query_times is not None
        scores = scores - _faded(fading, query_times, dtype)
    scores = jnp.where(visible, scores, jnp.finfo(dtype).min)
    if memory is not None:
        in_slots = jnp.einsum("bhqk,ehk->bhqe", query, memory.key)
        of_memory = jnp.einsum(
            "bhqe,bqme->bhqm", in_slots, memory.slots, preferred_element_type=dtype
        )
        scores = jnp.concatenate([scores, of_memory * scale], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    slots, of_memory = jnp.split(weights, [key.shape[2]], axis=-1)
    output = jnp.einsum("bhqn,bhnv->bhqv", slots, value, preferred_element_type=dtype)
    if memory is not None:
        collected = jnp.einsum("bhqm,bqme->bhqe", of_memory, memory.slots)
        output = output + jnp.einsum(
            "bhqe,ehv->bhqv", collected, memory.value, preferred_element_type=dtype
        )
    return output.astype(value.dtype)


def _to_blocks(x: Array, size: int, axis: int, fill: int = 0) -> Shaped[Array, "N ..."]:
    """Cuts an axis into N blocks, filling up the last one."""
    count = -(-x.shape[axis] // size)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, count * size - x.shape[axis])
    x = jnp.pad(x, padding, constant_values=fill)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)


def _from_blocks(blocks: Iterable[Float[Array, "_ B H C V"]], time: int) -> Array:
    """Joins blocks into [B, T, H, V]."""
    x = jnp.concatenate(list(blocks))
    x = jnp.transpose(x, (1, 0, 3, 2, 4))
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]


def _with_slots(memory: MemorySlots | None, slots: Array | None) -> MemorySlots | None:
    """The memory with the slots of one block of queries; both or neither are there."""
    if memory is None:
        return None
    assert slots is not None
    return memory._replace(slots=slots)


def _blockwise(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H V"],
    memory: MemorySlots | None,
    fading: Fading | None,
    runs: Int[Array, "B S"],
    reach: int | None,
    behind: int,
    scale: float,
    block_size: int,
) -> Float[Array, "B T H V"]:
    time, total = query.shape[1], key.shape[1]
    past = total - time
    size = -(-time // -(-time // block_size))
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    # Fillers of the last block are runs of their own, -1, and see nothing; they are cut off again.
    queries, query_runs = _to_blocks(query, size, 2), _to_blocks(runs[:, past:], size, 1, -1)
    slots = _to_blocks(jnp.arange(past, total), size, 0)
    memory_slots = None if memory is None else _to_blocks(memory.slots, size, 1)
    times = None
    if fading is not None:
        times = _to_blocks(_query_times(fading, past, 0 if memory else behind), size, 1)
    count = len(queries)

    # A block needs no keys beyond its end, but a loop's body has one shape: so up to four
    # loops over parts of the row, each with the keys up to its part's end.
    parts = max(1, min(4, count // 2))
    ends = [count * (part + 1) // parts for part in range(parts)]
    outputs = []
    for start, end in zip([0, *ends], ends, strict=False):
        seen = min(past + end * size, total)
        keys, values, key_runs = key[:, :, :seen], value[:, :, :seen], runs[:, :seen]
        fades = None if fading is None else fading._replace(times=fading.times[:, :seen])

        def one(
            block: tuple[Array, Array, Array, Array | None, Array | None],
            keys: Array = keys,
            values: Array = values,
            fades: Fading | None = fades,
            key_runs: Array = key_runs,
        ) -> Array:
            query, query_runs, slots, memory_slots, times = block
            key_slots = jnp.arange(keys.shape[2])
            visible = _visible(slots, key_slots, query_runs, key_runs, reach, behind)
            own = _with_slots(memory, memory_slots)
            return _attend(query, keys, values, own, fades, times, visible, scale)

        blocks = (queries, query_runs, slots, memory_slots, times)
        part = jax.tree.map(lambda x: x[start:end], blocks)  # noqa: B023
        outputs.append(jax.lax.map(jax.checkpoint(one, prevent_cse=False), part))
    return _from_blocks(outputs, time)


def _banded(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H V"],
    memory: MemorySlots | None,
    fading: Fading | None,
    runs: Int[Array, "B S"],
    reach: int,
    behind: int,
    scale: float,
    block_size: int,
) -> Float[Array, "B T H V"]:
    """Attention over windows, in spans of at least four reaches, or in one span for the row.

    The reach - 1 slots before a span stand before it, because its first queries see them. A loop
    moves one block of queries along all spans at once, and gives it the keys that it reaches. So a
    query meets fewer than reach + block_size keys. The cost of the gradient of one step grows with
    the reach, not with T.
    """
    time = query.shape[1]
    size = min(block_size, time)
    count = max(1, time // max(4 * reach, size))
    length = -(-time // (count * size)) * size

    def in_spans(x: Array, axis: int, halo: int = 0, fill: int = 0) -> Array:
        """Makes rows of the spans, row by row, each behind the `halo` slots before it."""
        past = x.shape[axis] - time
        spans = _to_blocks(jax.lax.slice_in_dim(x, past, None, axis=axis), length, axis, fill)
        if halo:
            first = jax.lax.slice_in_dim(x, max(past - halo, 0), past, axis=axis)
            padding = [(0, 0)] * x.ndim
            padding[axis] = (halo - first.shape[axis], 0)
            before = jnp.pad(first, padding, constant_values=fill)[None]
            if len(spans) > 1:
                ends = jax.lax.slice_in_dim(spans[:-1], length - halo, length, axis=axis + 1)
                before = jnp.concatenate([before, ends])
            spans = jnp.concatenate([before, spans], axis=axis + 1)
        # Batch first: a batch that is divided over devices stays so.
        return jnp.swapaxes(spans, 0, 1).reshape(-1, *spans.shape[2:])

    halo = reach - 1
    queries = _to_blocks(in_spans(jnp.swapaxes(query, 1, 2), 2), size, 2)
    keys, values = (in_spans(jnp.swapaxes(x, 1, 2), 2, halo) for x in (key, value))
    all_times = None if fading is None else in_spans(fading.times, 1, halo)
    all_runs = in_spans(runs, 1, halo, -1)
    slots = None if memory is None else _to_blocks(in_spans(memory.slots, 1), size, 1)

    def one(block: tuple[Array, Array, Array | None]) -> Array:
        start, query, slots = block
        seen = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, halo + size, axis)  # noqa: E731
        key_runs = seen(all_runs, 1)
        key_slots = jnp.arange(-halo, size)
        visible = _visible(key_slots[halo:], key_slots, key_runs[:, halo:], key_runs, reach, behind)
        fades, times = None, None
        if fading is not None:
            fades = fading._replace(times=seen(all_times, 1))
            # As in `_query_times`; a halo of fewer slots than `behind` holds no visible key.
            first = max(halo - (0 if memory else behind), 0)
            times = fades.times[:, first : first + size]
        own = _with_slots(memory, slots)
        return _attend(query, seen(keys, 2), seen(values, 2), own, fades, times, visible, scale)

    starts = size * jnp.arange(len(queries))
    output = jax.lax.map(jax.checkpoint(one, prevent_cse=False), (starts, queries, slots))
    output = _from_blocks([output], length)
    return output.reshape(query.shape[0], -1, *output.shape[2:])[:, :time]


def _dense(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H V"],
    fading: Fading | None,
    runs: Int[Array, "B S"],
    reach: int | None,
    behind: int,
    scale: float,
) -> Float[Array, "B T H V"]:
    slots = jnp.arange(key.shape[1])
    past = key.shape[1] - query.shape[1]
    visible = _visible(slots[past:], slots, runs[:, past:], runs, reach, behind)
    bias = None
    if fading is not None:
        dtype = jnp.promote_types(query.dtype, jnp.float32)
        bias = -_faded(fading, _query_times(fading, past, behind), dtype)
    # JAX wants one width: features of zeros change no score, and values of zeros are cut off.
    width = value.shape[-1]
    common = max(query.shape[-1], width)
    query, key, value = (
        jnp.pad(x, ((0, 0),) * 3 + ((0, common - x.shape[-1]),)) for x in (query, key, value)
    )
    output = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=bias,
        mask=visible,
        scale=scale,
        implementation="xla",
    )
    return output[..., :width]
