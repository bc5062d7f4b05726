"""Triton kernels of causal linear attention, which `linear_attention_triton` launches on a GPU.

Axes: B batch, T time, H heads, K key width, V value width, D width of the denominator's features,
C slots in a chunk, N chunks, P parts of a row, M chunks in a part (fewer in the last), W columns
that a program computes.

A chunk of C slots, whose queries are Q, keys K and values V, with the state (S, z) before it is
computed as

    n  = rowsum Lower(Qd Kdᵀ) + Qd z + epsilon
    O  = diag(1 / n) (Lower(Q Kᵀ) V + Q S)
    S' = S + Kᵀ V,  z' = z + Kdᵀ 1

and its gradients, with E = diag(1 / n) dO and e = -rowsum(E * O), as

    dQ = Lower(E Vᵀ) K + E Sᵀ           dQd = diag(e) (Lower(1) Kd + z)
    dV = Lower(Q Kᵀ)ᵀ E + K dS          dK  = Lower(E Vᵀ)ᵀ Q + V dSᵀ
    dS' = dS + Qᵀ E,  dz' = dz + Qdᵀ e  dKd = Lower(1)ᵀ diag(e) Qd + dz

So dQ, dV and dK are linear attention themselves: of the queries E, the keys V and the values K;
and backwards in time of K, Q and E, and of V, E and Q. One device function, `_step`, serves all.

A program takes W columns of one row and head. It keeps the state in registers, and writes none
but the last. Where rows and heads are too few to fill a GPU, rows are cut into P parts. `sum_keys`
and `sum_queries` then first sum what each part adds to the state, and a program adds up the parts
before its own.

At padding queries, keys and values are 0, and epsilon is 1. `runs` [B, T] has the number of each
slot's run (see `segments`): a slot sees the slots of its run, and a state belongs to one run.
Without SEGMENTS no kernel reads it.

Source: linear attention in chunks (arXiv 2006.16236, arXiv 2312.06635); the kernels are ours.
"""

import triton
import triton.language as tl

from linseqrec.ops.kernels.triton_tiles import columns, per_slot, put_columns, runs_of, slots, tile


@triton.jit
def _place(P, M, N, H, BLOCKS: tl.constexpr):
    """A program's block of columns, row, head, lane and part; the part's first chunk and end."""
    at = tl.program_id(0) // BLOCKS
    lane, part = at // P, at % P
    first = part * M
    return (
        tl.program_id(0) % BLOCKS,
        lane // H,
        lane % H,
        lane,
        part,
        first,
        tl.minimum(first + M, N),
    )


@triton.jit
def _vector(x, at, D: tl.constexpr, first, W: tl.constexpr):
    """Pointers to numbers first ... first + W of the at-th vector [D]."""
    return x + at.to(tl.int64) * D + first + tl.arange(0, W)


@triton.jit
def _transposed(x, at, R: tl.constexpr, D: tl.constexpr, first, W: tl.constexpr):
    """Pointers to [D, W]: rows first ... first + W of the at-th matrix [R, D]."""
    row, column = first + tl.arange(0, W), tl.arange(0, D)
    return x + at.to(tl.int64) * R * D + row[None, :] * D + column[:, None]


@triton.jit
def _run_before(runs, row, chunk, T, C: tl.constexpr, SEGMENTS: tl.constexpr):
    """The run of the last slot before a chunk, and so of the state there; 1 before the first."""
    run = 1
    if SEGMENTS:
        time = tl.minimum(chunk * C, T) - 1
        before = tl.load(runs + row * T + tl.maximum(time, 0))
        run = tl.where(chunk == 0, 1, before)
    return run


@triton.jit
def _visible(run, C: tl.constexpr, REVERSE: tl.constexpr):
    """[C, C]: whether a slot (first axis) reads another of its run: an earlier one, or itself.

    REVERSE: a later one, or itself.
    """
    index = tl.arange(0, C)
    if REVERSE:
        ordered = index[:, None] <= index[None, :]
    else:
        ordered = index[:, None] >= index[None, :]
    return ordered & (run[:, None] == run[None, :])


@triton.jit
def _step(
    state,
    queries,
    keys,
    values,
    run,
    carried,
    C: tl.constexpr,
    SEGMENTS: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a chunk's slots read, and the state on its other side.

    The state is of the run `carried` before the chunk, and of its last slot's run behind it.
    """
    end = tl.max(run, 0)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    scores = tl.where(_visible(run, C, REVERSE), scores, 0.0).to(values.dtype)
    out = tl.dot(queries, state.to(queries.dtype), input_precision=PRECISION)
    if SEGMENTS:
        out = tl.where((run == (end if REVERSE else carried))[:, None], out, 0.0)
    out = tl.dot(scores, values, acc=out, input_precision=PRECISION)
    if SEGMENTS:
        values = tl.where((run == (carried if REVERSE else end))[:, None], values, 0.0)
        state = tl.where(end == carried, state, 0.0)
    state = tl.dot(tl.trans(keys), values, acc=state, input_precision=PRECISION)
    return out, state


# ------------------------------------------------------------------------------------------ forward


@triton.jit
def sum_keys(
    key,
    value,
    denominator_key,
    runs,
    T,
    H,
    N,
    P,
    M,
    part_states,
    part_sums,
    K: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a part adds to the state behind it, W columns of S and all of z.

    Nothing reads what the last part would add.
    """
    block, row, head, lane, part, start, stop = _place(P, M, N, H, V // W)
    if part == P - 1:
        return
    first = block * W
    wanted = _run_before(runs, row, stop, T, C, SEGMENTS)
    state = tl.zeros([K, W], tl.float32)
    total = tl.zeros([D], tl.float32)
    for chunk in range(start, stop):
        slot, inside = slots(row, chunk, head, T, H, C)
        keys = columns(key, slot, inside, K, 0, K)
        values = columns(value, slot, inside, V, first, W)
        summed = columns(denominator_key, slot, inside, D, 0, D)
        if SEGMENTS:
            run, _ = runs_of(runs, row, chunk, T, C, SEGMENTS)
            values = tl.where((run == wanted)[:, None], values, 0.0)
            summed = tl.where((run == wanted)[:, None], summed, 0.0)
        state = tl.dot(tl.trans(keys), values, acc=state, input_precision=PRECISION)
        total += tl.sum(summed.to(tl.float32), 0)
    at = lane * P + part
    tl.store(tile(part_states, at, K, V, first, W), state)
    if block == 0:
        tl.store(_vector(part_sums, at, D, 0, D), total)


@triton.jit
def attend(
    query,
    key,
    value,
    denominator_query,
    denominator_key,
    epsilon,
    runs,
    initial_state,
    initial_sum,
    part_states,
    part_sums,
    T,
    H,
    N,
    P,
    M,
    output,
    final_state,
    final_sum,
    denominators,
    states,
    sums,
    K: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W columns of a part's output, and of the last part also of the final state.

    With SAVE also the denominators, and S and z before the part.
    """
    block, row, head, lane, part, start, stop = _place(P, M, N, H, V // W)
    first = block * W
    left = _run_before(runs, row, start, T, C, SEGMENTS)
    state = tl.load(tile(initial_state, lane, K, V, first, W))
    total = tl.load(_vector(initial_sum, lane, D, 0, D))
    if SEGMENTS:
        state = tl.where(left == 1, state, 0.0)
        total = tl.where(left == 1, total, 0.0)
    for earlier in range(part):
        at = lane * P + earlier
        of_part = tl.load(tile(part_states, at, K, V, first, W))
        of_sum = tl.load(_vector(part_sums, at, D, 0, D))
        if SEGMENTS:
            same = _run_before(runs, row, (earlier + 1) * M, T, C, SEGMENTS) == left
            of_part = tl.where(same, of_part, 0.0)
            of_sum = tl.where(same, of_sum, 0.0)
        state += of_part
        total += of_sum
    if SAVE:
        at = lane * P + part
        tl.store(tile(states, at, K, V, first, W), state)
        if block == 0:
            tl.store(_vector(sums, at, D, 0, D), total)
    for chunk in range(start, stop):
        slot, inside = slots(row, chunk, head, T, H, C)
        run, carried = runs_of(runs, row, chunk, T, C, SEGMENTS)
        asked = columns(denominator_query, slot, inside, D, 0, D)
        summed = columns(denominator_key, slot, inside, D, 0, D)
        denominator = tl.sum(asked.to(tl.float32) * total[None, :], 1)
        if SEGMENTS:
            denominator = tl.where(run == carried, denominator, 0.0)
        weights = tl.dot(asked, tl.trans(summed), input_precision=PRECISION)
        denominator += tl.sum(tl.where(_visible(run, C, False), weights, 0.0), 1)
        denominator += tl.load(epsilon + slot, mask=inside, other=1.0)
        if SAVE:
            if block == 0:
                tl.store(denominators + slot, denominator, mask=inside)
        if SEGMENTS:
            end = tl.max(run, 0)
            summed = tl.where((run == end)[:, None], summed, 0.0)
            total = tl.where(end == carried, total, 0.0)
        total += tl.sum(summed.to(tl.float32), 0)
        queries = columns(query, slot, inside, K, 0, K)
        keys = columns(key, slot, inside, K, 0, K)
        values = columns(value, slot, inside, V, first, W)
        out, state = _step(
            state, queries, keys, values, run, carried, C, SEGMENTS, False, PRECISION
        )
        put_columns(output, slot, inside, out / denominator[:, None], V, first, W)
    if part == P - 1:
        tl.store(tile(final_state, lane, K, V, first, W), state)
        if block == 0:
            tl.store(_vector(final_sum, lane, D, 0, D), total)


# ----------------------------------------------------------------------------------------- backward


@triton.jit
def differentiate_query(
    key,
    value,
    denominator_key,
    runs,
    states,
    sums,
    d_read,
    d_denominators,
    T,
    H,
    N,
    P,
    M,
    d_query,
    d_denominator_query,
    K: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W columns of the gradient of a part's queries, and the same share of the columns of dQd."""
    BLOCKS: tl.constexpr = K // W
    Wd: tl.constexpr = D // BLOCKS
    block, row, head, lane, part, start, stop = _place(P, M, N, H, BLOCKS)
    first, first_d = block * W, block * Wd
    at = lane * P + part
    state = tl.load(_transposed(states, at, K, V, first, W))
    total = tl.load(_vector(sums, at, D, first_d, Wd))
    for chunk in range(start, stop):
        slot, inside = slots(row, chunk, head, T, H, C)
        run, carried = runs_of(runs, row, chunk, T, C, SEGMENTS)
        d_denominator = per_slot(d_denominators, slot, inside)
        summed = columns(denominator_key, slot, inside, D, first_d, Wd)
        seen = tl.where(_visible(run, C, False), 1.0, 0.0).to(summed.dtype)
        before = tl.where((run == carried)[:, None], total[None, :], 0.0)
        d_asked = tl.dot(seen, summed, acc=before, input_precision=PRECISION)
        d_asked = d_asked * d_denominator[:, None]
        put_columns(d_denominator_query, slot, inside, d_asked, D, first_d, Wd)
        if SEGMENTS:
            end = tl.max(run, 0)
            summed = tl.where((run == end)[:, None], summed, 0.0)
            total = tl.where(end == carried, total, 0.0)
        total += tl.sum(summed.to(tl.float32), 0)
        values = columns(value, slot, inside, V, 0, V)
        keys = columns(key, slot, inside, K, first, W)
        d_queries, state = _step(
            state,
            columns(d_read, slot, inside, V, 0, V),
            values,
            keys,
            run,
            carried,
            C,
            SEGMENTS,
            False,
            PRECISION,
        )
        put_columns(d_query, slot, inside, d_queries, K, first, W)


@triton.jit
def sum_queries(
    query,
    denominator_query,
    runs,
    d_read,
    d_denominators,
    T,
    H,
    N,
    P,
    M,
    part_states,
    part_sums,
    K: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a part adds to the gradient of the state before it, W columns of dS and all of dz.

    Nothing reads what the first part would add.
    """
    block, row, head, lane, part, start, stop = _place(P, M, N, H, V // W)
    if part == 0:
        return
    first = block * W
    wanted = _run_before(runs, row, start, T, C, SEGMENTS)
    d_state = tl.zeros([K, W], tl.float32)
    d_total = tl.zeros([D], tl.float32)
    for chunk in range(start, stop):
        slot, inside = slots(row, chunk, head, T, H, C)
        queries = columns(query, slot, inside, K, 0, K)
        asked = columns(denominator_query, slot, inside, D, 0, D)
        d_denominator = per_slot(d_denominators, slot, inside)
        d_out = columns(d_read, slot, inside, V, first, W)
        if SEGMENTS:
            run, _ = runs_of(runs, row, chunk, T, C, SEGMENTS)
            d_out = tl.where((run == wanted)[:, None], d_out, 0.0)
            d_denominator = tl.where(run == wanted, d_denominator, 0.0)
        d_state = tl.dot(tl.trans(queries), d_out, acc=d_state, input_precision=PRECISION)
        d_total += tl.sum(asked.to(tl.float32) * d_denominator[:, None], 0)
    at = lane * P + part
    tl.store(tile(part_states, at, K, V, first, W), d_state)
    if block == 0:
        tl.store(_vector(part_sums, at, D, 0, D), d_total)


@triton.jit
def _reached(runs, row, stop, later, M, N, T, C: tl.constexpr, SEGMENTS: tl.constexpr):
    """Whether the state at chunk `stop` is still the one that a later part of its row reads.

    The part after the last one stands for the final state.
    """
    run = _run_before(runs, row, stop, T, C, SEGMENTS)
    return run == _run_before(runs, row, tl.minimum(later * M, N), T, C, SEGMENTS)


@triton.jit
def differentiate_value(
    query,
    key,
    runs,
    part_states,
    d_read,
    d_final_state,
    T,
    H,
    N,
    P,
    M,
    d_value,
    d_initial_state,
    K: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W columns of the gradient of a part's values; of the first part also of the initial state."""
    block, row, head, lane, part, start, stop = _place(P, M, N, H, V // W)
    first = block * W
    d_state = tl.load(tile(d_final_state, lane, K, V, first, W))
    if SEGMENTS:
        d_state = tl.where(_reached(runs, row, stop, P, M, N, T, C, SEGMENTS), d_state, 0.0)
    for later in range(part + 1, P):
        of_part = tl.load(tile(part_states, lane * P + later, K, V, first, W))
        if SEGMENTS:
            reached = _reached(runs, row, stop, later, M, N, T, C, SEGMENTS)
            of_part = tl.where(reached, of_part, 0.0)
        d_state += of_part
    for step in range(stop - start):
        chunk = stop - 1 - step
        slot, inside = slots(row, chunk, head, T, H, C)
        run, carried = runs_of(runs, row, chunk, T, C, SEGMENTS)
        queries = columns(query, slot, inside, K, 0, K)
        keys = columns(key, slot, inside, K, 0, K)
        d_out = columns(d_read, slot, inside, V, first, W)
        d_values, d_state = _step(
            d_state, keys, queries, d_out, run, carried, C, SEGMENTS, True, PRECISION
        )
        put_columns(d_value, slot, inside, d_values, V, first, W)
    if part == 0:
        tl.store(tile(d_initial_state, lane, K, V, first, W), d_state)


@triton.jit
def differentiate_key(
    query,
    value,
    denominator_query,
    runs,
    part_states,
    part_sums,
    d_read,
    d_denominators,
    d_final_state,
    d_final_sum,
    T,
    H,
    N,
    P,
    M,
    d_key,
    d_denominator_key,
    d_initial_sum,
    K: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    W: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W columns of the gradient of a part's keys, and the same share of the columns of dKd.

    Of the first part also the gradient of the initial z.
    """
    BLOCKS: tl.constexpr = K // W
    Wd: tl.constexpr = D // BLOCKS
    block, row, head, lane, part, start, stop = _place(P, M, N, H, BLOCKS)
    first, first_d = block * W, block * Wd
    d_state = tl.load(_transposed(d_final_state, lane, K, V, first, W))
    d_total = tl.load(_vector(d_final_sum, lane, D, first_d, Wd))
    if SEGMENTS:
        reached = _reached(runs, row, stop, P, M, N, T, C, SEGMENTS)
        d_state = tl.where(reached, d_state, 0.0)
        d_total = tl.where(reached, d_total, 0.0)
    for later in range(part + 1, P):
        at = lane * P + later
        of_part = tl.load(_transposed(part_states, at, K, V, first, W))
        of_sum = tl.load(_vector(part_sums, at, D, first_d, Wd))
        if SEGMENTS:
            reached = _reached(runs, row, stop, later, M, N, T, C, SEGMENTS)
            of_part = tl.where(reached, of_part, 0.0)
            of_sum = tl.where(reached, of_sum, 0.0)
        d_state += of_part
        d_total += of_sum
    for step in range(stop - start):
        chunk = stop - 1 - step
        slot, inside = slots(row, chunk, head, T, H, C)
        run, carried = runs_of(runs, row, chunk, T, C, SEGMENTS)
        end = tl.max(run, 0)
        asked = columns(denominator_query, slot, inside, D, first_d, Wd)
        d_denominator = per_slot(d_denominators, slot, inside)
        seen = tl.where(_visible(run, C, True), d_denominator[None, :], 0.0).to(asked.dtype)
        after = tl.where((run == end)[:, None], d_total[None, :], 0.0)
        d_summed = tl.dot(seen, asked, acc=after, input_precision=PRECISION)
        put_columns(d_denominator_key, slot, inside, d_summed, D, first_d, Wd)
        if SEGMENTS:
            d_denominator = tl.where(run == carried, d_denominator, 0.0)
            d_total = tl.where(end == carried, d_total, 0.0)
        d_total += tl.sum(asked.to(tl.float32) * d_denominator[:, None], 0)
        queries = columns(query, slot, inside, K, first, W)
        values = columns(value, slot, inside, V, 0, V)
        d_out = columns(d_read, slot, inside, V, 0, V)
        d_keys, d_state = _step(
            d_state, values, d_out, queries, run, carried, C, SEGMENTS, True, PRECISION
        )
        put_columns(d_key, slot, inside, d_keys, K, first, W)
    if part == 0:
        tl.store(_vector(d_initial_sum, lane, D, first_d, Wd), d_total)
