"""Causal depthwise convolution over a row's events, segment-aware and streaming.

Axes: B batch, T time, D width, W taps.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linseqrec.ops.segments import keep, segment_runs


def short_convolution(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    state: Float[Array, "B W-1 D"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W-1 D"]]:
    """Sums, for each event, the last W inputs of its own segment, weighted per channel.

        y[t] = bias + sum_j weight[W - 1 - j] * x[t - j],    j = 0 .. W - 1

    where taps before the start of the segment are zero, except that the row's first segment goes on
    from `state`. Source: the rank augmentation branch of RecGRELA (W = 4) without its SiLU.

    Args:
      x: [B, T, D], any float dtype.
      weight: [W, D]; weight[W - 1] multiplies the current event.
      bias: [D], or None for zero.
      segment_ids: [B, T], 0 = padding; the events of one segment are contiguous. None: every slot
        is an event of one segment.
      state: [B, W - 1, D], the inputs just before the row's first segment, oldest first. None:
        zeros.

    Returns:
      y: [B, T, D] in x's dtype (accumulated in float32); exactly 0 at padding.
      state: [B, W - 1, D] float32 (float64 for float64 inputs), the last W - 1 inputs of the row's
        last segment, zeros where it is younger; the given state where the row has no event.

    Raises:
      ValueError: the shapes of weight, bias, segment_ids or state do not match x.
    """
    batch, time, width = x.shape
    taps = weight.shape[0]
    _check("weight", weight.shape, (taps, width))
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if bias is not None:
        _check("bias", bias.shape, (width,))
    if state is not None:
        _check("state", state.shape, (batch, taps - 1, width))
        state = state.astype(dtype)

    inputs = x.astype(dtype)
    if segment_ids is None:
        if state is None:
            state = jnp.zeros_like(inputs, shape=(batch, taps - 1, width))
        inputs = jnp.concatenate([state, inputs], axis=1)
        y = jnp.zeros((), dtype) if bias is None else bias
        for w in range(taps):
            y = y + weight[w] * inputs[:, w : w + time]
        return y.astype(x.dtype), inputs[:, time:]

    _check("segment_ids", segment_ids.shape, (batch, time))
    real = segment_ids > 0
    runs = segment_runs(segment_ids)
    before = jnp.ones_like(runs, shape=(batch, taps - 1))
    runs = jnp.concatenate([before, runs], axis=1)
    inputs = keep(real, inputs)
    inputs = jnp.pad(inputs, ((0, 0), (taps - 1, 0), (0, 0)))
    if state is not None:
        # It stands right before the row's first event, behind any padding on its left. Training has
        # none: the gradient of this write would be a scatter.
        put = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))
        inputs = put(inputs, state, jnp.argmax(real, axis=1), 0)
    # The gradient of weights that all devices of a mesh share is to be summed over them.
    shared = weight.astype(dtype) + jnp.zeros_like(inputs, shape=(width,))
    y = _sum_of_taps(inputs, shared, runs, runs[:, taps - 1 :])
    y = keep(real, y if bias is None else bias + y).astype(x.dtype)

    # A row without events reads its given state back: it was written at slot 0.
    after_last = jnp.max(jnp.where(real, jnp.arange(1, time + 1), 0), axis=1)
    last = jax.vmap(jax.lax.dynamic_slice_in_dim, (0, 0, None, None))
    tail, tail_runs = last(inputs, after_last, taps - 1, 0), last(runs, after_last, taps - 1, 0)
    return y, keep(tail_runs == runs[:, -1:], tail)


@jax.custom_vjp
def _sum_of_taps(
    x: Float[Array, "B S D"],
    weight: Float[Array, "W D"],
    x_runs: Int[Array, "B S"],
    y_runs: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    """y[t] = sum_w weight[w] * x[t + w] over the taps within y[t]'s run; S is T + W - 1.

    The gradient is written out: XLA's own pads an array [B, T, D] for each tap, which took three
    times as long on a CPU.
    """
    time = y_runs.shape[1]
    y = jnp.zeros((), x.dtype)
    for w, taken in enumerate(weight):
        y = y + keep(x_runs[:, w : w + time] == y_runs, taken * x[:, w : w + time])
    return y


def _sum_of_taps_forward(*arrays: Array) -> tuple[Array, tuple[Array, ...]]:
    return _sum_of_taps(*arrays), arrays


def _sum_of_taps_backward(
    arrays: tuple[Array, ...], gradient: Float[Array, "B T D"]
) -> tuple[Array, Array, None, None]:
    x, weight, x_runs, y_runs = arrays
    time, beyond = y_runs.shape[1], len(weight) - 1
    # The taps of x[s] are those of y[s - w]: the same sum, the other way round.
    around = ((0, 0), (beyond, beyond))
    padded = jnp.pad(gradient, (*around, (0, 0)))
    no_run = jnp.pad(y_runs, around, constant_values=-1)
    x_gradient = _sum_of_taps(padded, weight[::-1], no_run, x_runs)
    weight_gradient = [
        jnp.sum(keep(x_runs[:, w : w + time] == y_runs, x[:, w : w + time]) * gradient, (0, 1))
        for w in range(len(weight))
    ]
    return x_gradient, jnp.stack(weight_gradient), None, None


_sum_of_taps.defvjp(_sum_of_taps_forward, _sum_of_taps_backward)


def sequence_parallel_short_convolution(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None = None,
    *,
    axis_name: str,
    segment_ids: Int[Array, "B T"],
    state: Float[Array, "B W-1 D"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W-1 D"]]:
    """`short_convolution` with time split over devices; call it inside `jax.shard_map`.

    Each device receives the W - 1 slots before its own.

    Args:
      x: [B, T, D], this device's part of the time axis.
      weight: See `short_convolution`; the same on all devices.
      bias: Likewise.
      axis_name: The mesh axis along which time is split, in order.
      segment_ids: [B, T], this device's part; segments go on across devices.
      state: [B, W - 1, D], before the whole row's first segment; the same on all devices.

    Returns:
      y: [B, T, D], this device's part.
      state: [B, W - 1, D], the whole row's, the same on all devices.

    Raises:
      ValueError: As `short_convolution`, or fewer than W - 1 slots a device.
    """
    kept, time = weight.shape[0] - 1, x.shape[1]
    if time < kept:
        raise ValueError(f"a device holds {time} slots; {kept + 1} taps need at least {kept}")
    devices, device = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    onward = [(index, index + 1) for index in range(devices - 1)]

    def longer(x: Array) -> Array:
        # The first device receives zeros: segment id 0, so padding.
        before = jax.lax.ppermute(x[:, time - kept :], axis_name, onward)
        return jnp.concatenate([before, x], axis=1)

    ids = longer(segment_ids)
    events = jnp.sum(segment_ids > 0, axis=1)
    given = state
    if state is not None:
        # The state precedes the row's first event. A device with events before the slots that it
        # receives cannot reach it.
        earlier = jnp.arange(devices) < device
        before = jnp.sum(keep(earlier, jax.lax.all_gather(events, axis_name)), axis=0)
        given = keep(before == jnp.sum(ids[:, :kept] > 0, axis=1), state)
    y, after = short_convolution(longer(x), weight, bias, segment_ids=ids, state=given)
    last = jax.lax.pmax(jnp.where(events > 0, device, -1), axis_name)
    after = jax.lax.psum(keep(last == device, after), axis_name)
    if state is not None:
        after = jnp.where((last < 0)[:, None, None], state.astype(after.dtype), after)
    return y[:, kept:], after


def _check(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(f"{name} must have the shape {expected}, got {shape}")
