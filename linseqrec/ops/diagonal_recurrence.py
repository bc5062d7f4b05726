"""A linear recurrence whose matrix is diagonal and constant, in logarithmic depth.

Axes: B batch, T time, E channels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Int

from linseqrec.ops.segments import keep, run_starts, segment_runs


def diagonal_recurrence(
    inputs: Complex[Array, "B T E"],
    multiplier: Complex[Array, "E"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: Complex[Array, "B E"] | None = None,
) -> tuple[Complex[Array, "B T E"], Complex[Array, "B E"]]:
    """Runs one complex number per channel over each history.

        h_t = multiplier * h_{t-1} + inputs_t

    Source: the linear recurrent unit (arXiv 2303.06349). A history's first event multiplies what
    was before it by 0, so that nothing of another history is left, whatever the multiplier.

    Args:
      inputs: [B, T, E], complex64 or complex128.
      multiplier: [E]; of magnitude at most 1, or states grow with the history.
      segment_ids: [B, T], 0 = padding; a new positive id starts from a zero state. None: a row is
        one segment without padding.
      initial_state: [B, E], the state before the row's first segment. None: zeros.

    Returns:
      states: [B, T, E] in the inputs' dtype; exactly 0 at padding, whatever stands there.
      final_state: [B, E] after the row's last segment; a row without events returns its initial
        state.

    Raises:
      ValueError: The shapes of multiplier, segment_ids or initial_state do not match the inputs.
    """
    batch, time, channels = inputs.shape
    for name, array, want in (
        ("multiplier", multiplier, (channels,)),
        ("segment_ids", segment_ids, (batch, time)),
        ("initial_state", initial_state, (batch, channels)),
    ):
        if array is not None and array.shape != want:
            raise ValueError(f"{name} must have the shape {want}, got {array.shape}")
    multipliers = jnp.broadcast_to(multiplier.astype(inputs.dtype), inputs.shape)
    real = None
    if segment_ids is not None:
        real, runs = segment_ids > 0, segment_runs(segment_ids)
        starts = run_starts(runs)
        multipliers = jnp.where(starts[..., None], 0, multipliers)
        # Padding carries the state on as it is.
        multipliers = jnp.where(real[..., None], multipliers, 1)
        inputs = keep(real, inputs)
    if initial_state is not None:
        first = multipliers[:, 0] * initial_state.astype(inputs.dtype)
        inputs = inputs.at[:, 0].add(first)
    states = _scan(multipliers, inputs)
    return states if real is None else keep(real, states), states[:, -1]


@jax.custom_vjp
def _scan(multipliers: Complex[Array, "B T E"], inputs: Complex[Array, "B T E"]) -> Array:
    return _compose(multipliers, inputs)


def _compose(multipliers: Array, inputs: Array, *, reverse: bool = False) -> Array:
    """h_t = a_t h_{t-1} + u_t, from h = 0; or from the end backwards."""

    def combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        (past, state), (multiplier, added) = earlier, later
        return multiplier * past, multiplier * state + added

    return jax.lax.associative_scan(combine, (multipliers, inputs), reverse=reverse, axis=1)[1]


def _forward(multipliers: Array, inputs: Array) -> tuple[Array, tuple[Array, Array]]:
    states = _compose(multipliers, inputs)
    return states, (multipliers, states)


def _backward(kept: tuple[Array, Array], slopes: Array) -> tuple[Array, Array]:
    # The gradient is such a recurrence itself, backwards. Left to JAX, the scan's own gradient
    # keeps the arrays of all its levels.
    multipliers, states = kept
    ahead = jnp.pad(multipliers[:, 1:], ((0, 0), (0, 1), (0, 0)))
    slopes = _compose(ahead, slopes, reverse=True)
    before = jnp.pad(states[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return slopes * before, slopes


_scan.defvjp(_forward, _backward)
