"""Triton kernels of the gated delta rule: what a GPU runs; `gated_delta_rule_triton` launches them.

Axes: B batch, T time, H heads, K key width, V value width, C slots in a chunk (64), N chunks.

A chunk of C slots with the state S before it (symbols as in `gated_delta_rule_parts`) gives

    X  = (I + StrictLower(diag(beta) D * K Kᵀ))^-1
    W  = X diag(beta e^G) K        U0 = X diag(beta) V        P = D * Q Kᵀ
    U  = U0 - W S
    O  = diag(e^G) Q S + P U
    S' = e^G_C S + Kᵀ diag(e^(G_C - G)) U

`chunk_forward` computes X, W, U0 and P of all chunks at once; `scan_forward` carries S through the
chunks of one row, head and block of value columns. `scan_backward` carries the gradient of S from
the last chunk to the first, and `chunk_backward` computes the gradients of the inputs of all chunks
at once. Arrays between the kernels are [B, H, N, C, ...] or [B, H, N, K, V].

At padding q, k, v and both gates are 0: such a slot changes nothing. `runs` [B, T] has the number
of each slot's run (see `segments`); without SEGMENTS no kernel reads it. The scans never do: Triton
does not load ahead where a mask depends on another load.

Source: the chunked form of Gated DeltaNet (arXiv 2412.06464); the kernels are ours.
"""

import triton
import triton.language as tl

from linseqrec.ops.kernels.triton_tiles import columns, per_slot, put_columns, runs_of, slots, tile

# Kernels read globals of this type only.
_LOG2_E = tl.constexpr(1.4426950408889634)
# As in `gated_delta_rule`: forgets everything, and is finite.
_FORGET = tl.constexpr(-1e3)


# --------------------------------------------------------------------------------- device functions


@triton.jit
def _decays(log_decay, run, carried, C: tl.constexpr):
    """D [C, C], e^G [C] and e^(G_C - G) [C], 0 where a boundary lies between."""
    slot = tl.arange(0, C)
    # Two floats hold each sum: a difference of two sums then keeps every decay between them, even
    # next to a gap that forgets everything.
    total = tl.cumsum(tl.maximum(log_decay, _FORGET).to(tl.float64) * _LOG2_E, 0)
    high = total.to(tl.float32)
    low = (total - high.to(tl.float64)).to(tl.float32)
    between = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    seen = (slot[:, None] >= slot[None, :]) & (run[:, None] == run[None, :])
    decay = tl.exp2(tl.where(seen, between, float("-inf")))
    reads = tl.where(run == carried, tl.exp2(high), 0.0)
    last = slot == C - 1
    high_end = tl.sum(tl.where(last, high, 0.0), 0)
    low_end = tl.sum(tl.where(last, low, 0.0), 0)
    to_end = (high_end - high) + (low_end - low)
    writes = tl.where(run == tl.max(run, 0), tl.exp2(to_end), 0.0)
    return decay, reads, writes


@triton.jit
def _quarters(x, n: tl.constexpr, R: tl.constexpr):
    """[n, 2R, 2R] -> the blocks [n, R, R] at (0, 0), (1, 0) and (1, 1)."""
    x = tl.permute(tl.reshape(x, [n, 2, R, 2, R]), (0, 2, 4, 1, 3))
    left, right = tl.split(x)
    first, corner = tl.split(left)
    _, second = tl.split(right)
    return first, corner, second


@triton.jit
def _joined(first, corner, second, n: tl.constexpr, R: tl.constexpr):
    """The blocks [n, R, R] of a lower triangular [n, 2R, 2R], put together."""
    left = tl.join(first, corner)
    right = tl.join(tl.zeros_like(first), second)
    x = tl.join(left, right)  # [n, R, R, half of the rows, half of the columns]
    return tl.reshape(tl.permute(x, (0, 3, 1, 4, 2)), [n, 2 * R, 2 * R])


@triton.jit
def _stacked(first, second, n: tl.constexpr, R: tl.constexpr):
    """Two [n, R, R] -> [2n, R, R], in turn."""
    return tl.reshape(tl.permute(tl.join(first, second), (0, 3, 1, 2)), [2 * n, R, R])


@triton.jit
def _apart(x, n: tl.constexpr, R: tl.constexpr):
    """The inverse of `_stacked`."""
    return tl.split(tl.permute(tl.reshape(x, [n, 2, R, R]), (0, 2, 3, 1)))


@triton.jit
def _inverse_of_blocks(lower, R: tl.constexpr):
    """(I + L)^-1 of strictly lower blocks [n, R, R], a column of L at a time."""
    row = tl.arange(0, R)[None, :, None]
    column = tl.arange(0, R)[None, None, :]
    inverse = tl.where(row == column, 1.0, 0.0) + tl.zeros_like(lower)
    for step in range(R - 1):
        below = tl.sum(tl.where(column == step, lower, 0.0), 2)
        solved = tl.sum(tl.where(row == step, inverse, 0.0), 1)
        inverse -= below[:, :, None] * solved[:, None, :]
    return inverse


@triton.jit
def _inverse(lower, C: tl.constexpr):
    """(I + L)^-1 of a strictly lower [C, C], C = 64, exact to float32.

    Blocks of 16 by substitution, put together by [[A, 0], [L, B]]^-1 = [[A', 0], [-B' L A', B']].
    Sums of powers of L would lose all digits where keys repeat.
    """
    R: tl.constexpr = 16
    first, corner, second = _quarters(tl.reshape(lower, [1, C, C]), 1, 2 * R)
    halves = _stacked(first, second, 1, 2 * R)
    first, inner, second = _quarters(halves, 2, R)
    blocks = _inverse_of_blocks(_stacked(first, second, 2, R), R)
    first, second = _apart(blocks, 2, R)
    inner = tl.dot(second, inner, input_precision="tf32x3")
    inner = tl.dot(inner, first, input_precision="tf32x3")
    first, second = _apart(_joined(first, -inner, second, 2, R), 1, 2 * R)
    corner = tl.dot(
        tl.reshape(second, [2 * R, 2 * R]),
        tl.reshape(corner, [2 * R, 2 * R]),
        input_precision="tf32x3",
    )
    corner = tl.dot(corner, tl.reshape(first, [2 * R, 2 * R]), input_precision="tf32x3")
    corner = tl.reshape(corner, [1, 2 * R, 2 * R])
    return tl.reshape(_joined(first, -corner, second, 1, 2 * R), [C, C])


# ------------------------------------------------------------------------------------------ forward


@triton.jit
def chunk_forward(
    q,
    k,
    v,
    log_decay,
    beta,
    runs,
    T,
    H,
    N,
    recall,
    update,
    scores,
    inverse,
    reads,
    writes,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W, U0, P, e^G and e^(G_C - G) of one chunk; with SAVE also X."""
    at = tl.program_id(0)
    chunk, lane = at % N, at // N
    row, head = lane // H, lane % H
    slot, inside = slots(row, chunk, head, T, H, C)
    run, carried = runs_of(runs, row, chunk, T, C, SEGMENTS)
    strength = per_slot(beta, slot, inside)
    decay, read, write = _decays(per_slot(log_decay, slot, inside), run, carried, C)
    index = tl.arange(0, C)
    tl.store(reads + at * C + index, read)
    tl.store(writes + at * C + index, write)
    keys = columns(k, slot, inside, K, 0, K)
    queries = columns(q, slot, inside, K, 0, K)
    score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * decay
    tl.store(tile(scores, at, C, C, 0, C), score.to(scores.dtype.element_ty))
    gram = tl.dot(keys, tl.trans(keys), input_precision=PRECISION) * decay
    lower = tl.where(index[:, None] > index[None, :], gram * strength[:, None], 0.0)
    solve = _inverse(lower, C)
    if SAVE:
        tl.store(tile(inverse, at, C, C, 0, C), solve)
    # Read again: kept over the inversion, the keys would spill.
    keys = columns(k, slot, inside, K, 0, K).to(tl.float32) * (strength * read)[:, None]
    keys = tl.dot(solve, keys, input_precision=PRECISION)
    tl.store(tile(recall, at, C, K, 0, K), keys.to(recall.dtype.element_ty))
    values = columns(v, slot, inside, V, 0, V).to(tl.float32) * strength[:, None]
    values = tl.dot(solve, values, input_precision=PRECISION)
    tl.store(tile(update, at, C, V, 0, V), values.to(update.dtype.element_ty))


@triton.jit
def scan_forward(
    q,
    k,
    initial,
    recall,
    update,
    scores,
    reads,
    writes,
    T,
    H,
    N,
    output,
    final,
    states,
    updates,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """O and the final state of W value columns of a row and head; with SAVE also each S and U."""
    blocks: tl.constexpr = V // W
    first, lane = tl.program_id(0) % blocks * W, tl.program_id(0) // blocks
    row, head = lane // H, lane % H
    index = tl.arange(0, C)
    state = tl.load(tile(initial, lane, K, V, first, W))
    for chunk in range(N):
        at = lane * N + chunk
        slot, inside = slots(row, chunk, head, T, H, C)
        recalls = tl.load(tile(recall, at, C, K, 0, K))
        written = tl.load(tile(update, at, C, V, first, W)).to(tl.float32)
        keys = columns(k, slot, inside, K, 0, K)
        queries = columns(q, slot, inside, K, 0, K)
        score = tl.load(tile(scores, at, C, C, 0, C))
        read = tl.load(reads + at * C + index)
        write = tl.load(writes + at * C + index)
        kept = tl.load(reads + at * C + C - 1)
        before = state.to(keys.dtype)
        written -= tl.dot(recalls, before, input_precision=PRECISION)
        narrow = written.to(keys.dtype)
        if SAVE:
            tl.store(tile(states, at, K, V, first, W), before)
            tl.store(tile(updates, at, C, V, first, W), narrow)
        state = tl.dot(
            tl.trans(keys),
            (written * write[:, None]).to(keys.dtype),
            acc=state * kept,
            input_precision=PRECISION,
        )
        out = tl.dot(queries, before, input_precision=PRECISION) * read[:, None]
        out = tl.dot(score, narrow, acc=out, input_precision=PRECISION)
        put_columns(output, slot, inside, out, V, first, W)
    tl.store(tile(final, lane, K, V, first, W), state)


# ----------------------------------------------------------------------------------------- backward


@triton.jit
def scan_backward(
    q,
    k,
    recall,
    scores,
    reads,
    writes,
    d_output,
    d_final,
    T,
    H,
    N,
    d_states,
    d_updates,
    d_initial,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of U and of the state after each chunk, of W value columns of a row."""
    blocks: tl.constexpr = V // W
    first, lane = tl.program_id(0) % blocks * W, tl.program_id(0) // blocks
    row, head = lane // H, lane % H
    index = tl.arange(0, C)
    d_state = tl.load(tile(d_final, lane, K, V, first, W))
    for step in range(N):
        chunk = N - 1 - step
        at = lane * N + chunk
        slot, inside = slots(row, chunk, head, T, H, C)
        keys = columns(k, slot, inside, K, 0, K)
        queries = columns(q, slot, inside, K, 0, K)
        recalls = tl.load(tile(recall, at, C, K, 0, K))
        score = tl.load(tile(scores, at, C, C, 0, C))
        d_out = columns(d_output, slot, inside, V, first, W)
        read = tl.load(reads + at * C + index)
        write = tl.load(writes + at * C + index)
        kept = tl.load(reads + at * C + C - 1)
        after = d_state.to(keys.dtype)
        tl.store(tile(d_states, at, K, V, first, W), after)
        d_update = tl.dot(keys, after, input_precision=PRECISION) * write[:, None]
        d_update = tl.dot(tl.trans(score), d_out, acc=d_update, input_precision=PRECISION)
        tl.store(tile(d_updates, at, C, V, first, W), d_update.to(keys.dtype))
        d_read = (d_out.to(tl.float32) * read[:, None]).to(keys.dtype)
        d_state = tl.dot(tl.trans(queries), d_read, acc=d_state * kept, input_precision=PRECISION)
        d_recall = (-d_update).to(keys.dtype)
        d_state = tl.dot(tl.trans(recalls), d_recall, acc=d_state, input_precision=PRECISION)
    tl.store(tile(d_initial, lane, K, V, first, W), d_state)


@triton.jit
def chunk_backward(
    q,
    k,
    v,
    log_decay,
    beta,
    runs,
    inverse,
    states,
    updates,
    d_states,
    d_updates,
    d_output,
    T,
    H,
    N,
    d_q,
    d_k,
    d_v,
    d_log_decay,
    d_beta,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    W_KEY: tl.constexpr,
    W_VALUE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of one chunk's inputs, W_KEY key and W_VALUE value columns at a time."""
    at = tl.program_id(0)
    chunk, lane = at % N, at // N
    row, head = lane // H, lane % H
    slot, inside = slots(row, chunk, head, T, H, C)
    strength = per_slot(beta, slot, inside)
    index = tl.arange(0, C)
    earlier = index[:, None] > index[None, :]

    # (I + diag(beta) gram) U = R, with R = diag(beta) (V - diag(reads) K S)
    d_scores = tl.zeros([C, C], tl.float32)
    d_lower = tl.zeros([C, C], tl.float32)
    d_strength = tl.zeros([C], tl.float32)
    for column in range(0, V, W_VALUE):
        d_update = tl.load(tile(d_updates, at, C, V, column, W_VALUE)).to(tl.float32)
        solve = tl.trans(tl.load(tile(inverse, at, C, C, 0, C)))
        d_right = tl.dot(solve, d_update, input_precision=PRECISION)
        put_columns(d_v, slot, inside, d_right * strength[:, None], V, column, W_VALUE)
        values = columns(v, slot, inside, V, column, W_VALUE).to(tl.float32)
        d_strength += tl.sum(values * d_right, 1)
        d_out = columns(d_output, slot, inside, V, column, W_VALUE)
        update = tl.load(tile(updates, at, C, V, column, W_VALUE))
        d_scores = tl.dot(d_out, tl.trans(update), acc=d_scores, input_precision=PRECISION)
        d_right = d_right.to(update.dtype)
        d_lower = tl.dot(d_right, tl.trans(update), acc=d_lower, input_precision=PRECISION)
    d_lower = tl.where(earlier, -d_lower, 0.0)

    log_kept = per_slot(log_decay, slot, inside)
    run, carried = runs_of(runs, row, chunk, T, C, SEGMENTS)
    decay, read, write = _decays(log_kept, run, carried, C)
    # The gradient of the exponent of D is D times that of D. The log-decay of slot j is in the
    # exponents of all pairs r >= j > i. In float32 the kernel sums these pairs. In bfloat16 that
    # would spill registers. There it takes the sum over rows r >= j less the sum over columns
    # i >= j, because both contain the pairs r > i >= j. This leaves a rounding error of float32
    # where a memory that forgot everything has a gradient of 0.
    keys = columns(k, slot, inside, K, 0, K)
    queries = columns(q, slot, inside, K, 0, K)
    gram = tl.dot(keys, tl.trans(keys), input_precision=PRECISION) * decay
    d_strength += tl.sum(gram * d_lower, 1)
    d_gram = d_lower * strength[:, None]
    d_between = d_gram * gram
    d_gram = d_gram * decay
    score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * decay
    d_between += tl.where(earlier, d_scores * score, 0.0)
    d_scores = (d_scores * decay).to(keys.dtype)
    if PRECISION == "tf32x3":
        d_later = tl.cumsum(d_between, 0, reverse=True)
        d_logs = tl.sum(tl.where(earlier, d_later, 0.0), 1)
    else:
        d_logs = tl.sum(d_between, 1) - tl.sum(d_between, 0)
        d_logs = tl.cumsum(d_logs, 0, reverse=True)
    d_pairs = (d_gram + tl.trans(d_gram)).to(keys.dtype)

    d_read = tl.zeros([C], tl.float32)
    d_write = tl.zeros([C], tl.float32)
    recalled = tl.zeros([C], tl.float32)
    d_kept = 0.0
    for first in range(0, K, W_KEY):
        block = at * (K // W_KEY) + first // W_KEY
        to_query = tl.zeros([C, W_KEY], tl.float32)
        for column in range(0, V, W_VALUE):
            d_out = columns(d_output, slot, inside, V, column, W_VALUE)
            state = tl.load(tile(states, block, W_KEY, V, column, W_VALUE))
            to_query = tl.dot(d_out, tl.trans(state), acc=to_query, input_precision=PRECISION)
        some_queries = columns(q, slot, inside, K, first, W_KEY)
        d_read += tl.sum(some_queries.to(tl.float32) * to_query, 1)
        some_keys = columns(k, slot, inside, K, first, W_KEY)
        d_query = to_query * read[:, None]
        d_query = tl.dot(d_scores, some_keys, acc=d_query, input_precision=PRECISION)
        put_columns(d_q, slot, inside, d_query, K, first, W_KEY)

        # dR Sᵀ, with dR = Xᵀ dU, as Xᵀ (dU Sᵀ): one product with X for all value columns.
        to_write = tl.zeros([C, W_KEY], tl.float32)
        to_key = tl.zeros([C, W_KEY], tl.float32)
        for column in range(0, V, W_VALUE):
            update = tl.load(tile(updates, at, C, V, column, W_VALUE))
            state = tl.load(tile(states, block, W_KEY, V, column, W_VALUE))
            d_state = tl.load(tile(d_states, block, W_KEY, V, column, W_VALUE))
            d_update = tl.load(tile(d_updates, at, C, V, column, W_VALUE))
            d_kept += tl.sum(state.to(tl.float32) * d_state.to(tl.float32))
            to_key = tl.dot(d_update, tl.trans(state), acc=to_key, input_precision=PRECISION)
            to_write = tl.dot(update, tl.trans(d_state), acc=to_write, input_precision=PRECISION)
        solve = tl.trans(tl.load(tile(inverse, at, C, C, 0, C)))
        to_key = tl.dot(solve, to_key, input_precision=PRECISION)
        some_keys = columns(k, slot, inside, K, first, W_KEY)
        d_write += tl.sum(some_keys.to(tl.float32) * to_write, 1)
        recalled += tl.sum(some_keys.to(tl.float32) * to_key, 1)
        d_key = to_write * write[:, None] - to_key * (strength * read)[:, None]
        d_key = tl.dot(d_pairs, some_keys, acc=d_key, input_precision=PRECISION)
        some_queries = columns(q, slot, inside, K, first, W_KEY)
        d_key = tl.dot(tl.trans(d_scores), some_queries, acc=d_key, input_precision=PRECISION)
        put_columns(d_k, slot, inside, d_key, K, first, W_KEY)

    d_strength -= read * recalled
    d_read = (d_read - strength * recalled) * read
    d_kept *= tl.sum(tl.where(index == C - 1, read, 0.0), 0)
    d_logs += tl.cumsum(d_read, 0, reverse=True) + d_kept
    # The exponent of e^(G_C - G) at slot i sums the log-decays after i, so log-decay j gets the sum
    # over slots i < j. A shift makes that sum: subtracting slot j's own term from the sum over
    # i <= j would lose small gradients, because the last slots' terms are large.
    earlier_write = tl.gather(d_write * write, tl.maximum(index - 1, 0), 0)
    d_logs += tl.cumsum(tl.where(index > 0, earlier_write, 0.0), 0)
    d_logs = tl.where(log_kept >= _FORGET, d_logs, 0.0)
    tl.store(d_log_decay + slot, d_logs.to(d_log_decay.dtype.element_ty), mask=inside)
    tl.store(d_beta + slot, d_strength.to(d_beta.dtype.element_ty), mask=inside)
