"""Triton kernels of causal softmax attention, which `softmax_attention_triton` launches on a GPU.

Axes: B batch, T time, S slots of keys, H heads, K key width, V value width, C slots in a chunk.

The query at slot t sees the keys from slot `lows[t]` to slot t - behind, without padding. No query
after slot `highs[s]` sees the key at slot s. `lows` and `highs` contain the bounds of segments,
windows and padding, so the kernels need no other mask. They skip chunks outside these bounds.

The scores are X = scale Q Kᵀ, L is the logarithm of each row's sum of exp(X), the weights are
P = exp(X - L), the output is O = P V, and D = rowsum(dO * O). A chunk adds

    dX = P * (dO Vᵀ - D),  dQ += scale dX K,  dK += scale dXᵀ Q,  dV += Pᵀ dO

The forward kernel keeps a running maximum and sum of each query; the backward ones compute P anew.

Source: FlashAttention-2 (arXiv 2307.08691); the kernels are ours.
"""

import triton
import triton.language as tl

from linseqrec.ops.kernels.triton_tiles import columns, per_slot, put_columns, slots

# Of a score that is not seen: finite, so that no difference of two is NaN.
_UNSEEN = tl.constexpr(-1e30)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _place(N, H):
    """A program's row, head and chunk; N chunks a row."""
    lane = tl.program_id(0) // N
    return lane // H, lane % H, tl.program_id(0) % N


@triton.jit
def _bounds(x, row, chunk, T, otherwise, C: tl.constexpr):
    """One number per slot of [B, T]."""
    time = chunk * C + tl.arange(0, C)
    return tl.load(x + row * T + time, mask=time < T, other=otherwise)


@triton.jit
def _visible(at, key_at, low, high, behind):
    """Whether the queries at some slots see the keys at others; arguments broadcast."""
    return (key_at >= low) & (key_at <= at - behind) & (at <= high)


@triton.jit
def attend(
    query,
    key,
    value,
    lows,
    highs,
    T,
    S,
    H,
    behind,
    output,
    log_sums,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    SCALE: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The output of a chunk of queries, and with SAVE the base-2 logarithms of their sums."""
    row, head, chunk = _place(tl.cdiv(T, C), H)
    slot, inside = slots(row, chunk, head, T, H, C)
    queries = columns(query, slot, inside, K, 0, K)
    low = _bounds(lows, row, chunk, T, S, C)
    at = S - T + chunk * C + tl.arange(0, C)
    largest = tl.full([C], _UNSEEN, tl.float32)
    total = tl.zeros([C], tl.float32)
    out = tl.zeros([C, V], tl.float32)
    last = tl.minimum(S - T + chunk * C + C - 1 - behind, S - 1)
    for key_chunk in range(tl.min(low, 0) // C, (last + C) // C):
        key_slot, key_inside = slots(row, key_chunk, head, S, H, C)
        keys = columns(key, key_slot, key_inside, K, 0, K)
        values = columns(value, key_slot, key_inside, V, 0, V)
        high = _bounds(highs, row, key_chunk, S, -1, C)
        key_at = key_chunk * C + tl.arange(0, C)
        visible = _visible(at[:, None], key_at[None, :], low[:, None], high[None, :], behind)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (SCALE * _LOG2_E)
        scores = tl.where(visible, scores, _UNSEEN)
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.where(visible, tl.exp2(scores - larger[:, None]), 0.0)
        left = tl.exp2(largest - larger)
        total = total * left + tl.sum(weights, 1)
        out = out * left[:, None]
        out = tl.dot(weights.to(values.dtype), values, acc=out, input_precision=PRECISION)
        largest = larger
    total = tl.where(total > 0, total, 1.0)
    put_columns(output, slot, inside, out / total[:, None], V, 0, V)
    if SAVE:
        tl.store(log_sums + slot, largest + tl.log2(total), mask=inside)


@triton.jit
def differentiate_query(
    query,
    key,
    value,
    lows,
    highs,
    log_sums,
    d_output,
    d_log_sums,
    T,
    S,
    H,
    behind,
    d_query,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of a chunk of queries; `d_log_sums` holds D."""
    row, head, chunk = _place(tl.cdiv(T, C), H)
    slot, inside = slots(row, chunk, head, T, H, C)
    queries = columns(query, slot, inside, K, 0, K)
    d_out = columns(d_output, slot, inside, V, 0, V)
    log_sum = per_slot(log_sums, slot, inside)
    d_log_sum = per_slot(d_log_sums, slot, inside)
    low = _bounds(lows, row, chunk, T, S, C)
    at = S - T + chunk * C + tl.arange(0, C)
    d_queries = tl.zeros([C, K], tl.float32)
    last = tl.minimum(S - T + chunk * C + C - 1 - behind, S - 1)
    for key_chunk in range(tl.min(low, 0) // C, (last + C) // C):
        key_slot, key_inside = slots(row, key_chunk, head, S, H, C)
        keys = columns(key, key_slot, key_inside, K, 0, K)
        values = columns(value, key_slot, key_inside, V, 0, V)
        high = _bounds(highs, row, key_chunk, S, -1, C)
        key_at = key_chunk * C + tl.arange(0, C)
        visible = _visible(at[:, None], key_at[None, :], low[:, None], high[None, :], behind)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (SCALE * _LOG2_E)
        weights = tl.where(visible, tl.exp2(scores - log_sum[:, None]), 0.0)
        d_weights = tl.dot(d_out, tl.trans(values), input_precision=PRECISION)
        d_scores = (weights * (d_weights - d_log_sum[:, None])).to(keys.dtype)
        d_queries = tl.dot(d_scores, keys, acc=d_queries, input_precision=PRECISION)
    put_columns(d_query, slot, inside, d_queries * SCALE, K, 0, K)


@triton.jit
def differentiate_key_value(
    query,
    key,
    value,
    lows,
    highs,
    log_sums,
    d_output,
    d_log_sums,
    T,
    S,
    H,
    behind,
    d_key,
    d_value,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of a chunk of keys and of its values; `d_log_sums` holds D."""
    row, head, key_chunk = _place(tl.cdiv(S, C), H)
    key_slot, key_inside = slots(row, key_chunk, head, S, H, C)
    keys = columns(key, key_slot, key_inside, K, 0, K)
    values = columns(value, key_slot, key_inside, V, 0, V)
    high = _bounds(highs, row, key_chunk, S, -1, C)
    past, key_at = S - T, key_chunk * C + tl.arange(0, C)
    d_keys = tl.zeros([C, K], tl.float32)
    d_values = tl.zeros([C, V], tl.float32)
    first = tl.maximum(key_chunk * C + behind - past, 0)
    last = tl.max(high, 0) - past
    for chunk in range(first // C, (last + C) // C):
        slot, inside = slots(row, chunk, head, T, H, C)
        queries = columns(query, slot, inside, K, 0, K)
        d_out = columns(d_output, slot, inside, V, 0, V)
        log_sum = per_slot(log_sums, slot, inside)
        d_log_sum = per_slot(d_log_sums, slot, inside)
        low = _bounds(lows, row, chunk, T, S, C)
        at = past + chunk * C + tl.arange(0, C)
        visible = _visible(at[None, :], key_at[:, None], low[None, :], high[:, None], behind)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * (SCALE * _LOG2_E)
        weights = tl.where(visible, tl.exp2(scores - log_sum[None, :]), 0.0)
        d_weights = tl.dot(values, tl.trans(d_out), input_precision=PRECISION)
        d_scores = (weights * (d_weights - d_log_sum[None, :])).to(queries.dtype)
        d_values = tl.dot(weights.to(d_out.dtype), d_out, acc=d_values, input_precision=PRECISION)
        d_keys = tl.dot(d_scores, queries, acc=d_keys, input_precision=PRECISION)
    put_columns(d_key, key_slot, key_inside, d_keys * SCALE, K, 0, K)
    put_columns(d_value, key_slot, key_inside, d_values, V, 0, V)
