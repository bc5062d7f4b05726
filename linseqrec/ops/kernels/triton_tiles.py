"""Device functions that all Triton kernels use: which slots a chunk has, and how to read them.

Arrays of rows are [B, T, H, width] or [B, T, H]; arrays between kernels are matrices in a row.
"""

import triton
import triton.language as tl


@triton.jit
def slots(row, chunk, head, T, H, C: tl.constexpr):
    """A chunk's slots: which of [B, T, H] they are, and whether they are within the row."""
    time = chunk * C + tl.arange(0, C)
    return (row * T + time) * H + head, time < T


@triton.jit
def runs_of(runs, row, chunk, T, C: tl.constexpr, SEGMENTS: tl.constexpr):
    """The run of each of a chunk's slots, and that of the state before the chunk."""
    if SEGMENTS:
        time = chunk * C + tl.arange(0, C)
        run = tl.load(runs + row * T + tl.minimum(time, T - 1))
        carried = tl.load(runs + row * T + tl.maximum(chunk * C - 1, 0))
        carried = tl.where(chunk == 0, 1, carried)
    else:
        run = tl.full([C], 1, tl.int32)
        carried = 1
    return run, carried


@triton.jit
def per_slot(gate, slot, inside):
    """One number per slot, float32."""
    return tl.load(gate + slot, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def columns(x, slot, inside, D: tl.constexpr, first, W: tl.constexpr):
    """Columns first ... first + W of the slots' rows of [B, T, H, D]; 0 after the end."""
    at = slot.to(tl.int64)[:, None] * D + (first + tl.arange(0, W))[None, :]
    return tl.load(x + at, mask=inside[:, None], other=0.0)


@triton.jit
def put_columns(x, slot, inside, values, D: tl.constexpr, first, W: tl.constexpr):
    """Writes what `columns` reads."""
    at = slot.to(tl.int64)[:, None] * D + (first + tl.arange(0, W))[None, :]
    tl.store(x + at, values.to(x.dtype.element_ty), mask=inside[:, None])


@triton.jit
def tile(x, at, R: tl.constexpr, D: tl.constexpr, first, W: tl.constexpr):
    """Pointers to columns first ... first + W of the at-th matrix [R, D]."""
    row, column = tl.arange(0, R), first + tl.arange(0, W)
    return x + at.to(tl.int64) * R * D + row[:, None] * D + column[None, :]
