"""The last few slots of a history, carried from one call to the next: windows, caches, delays.

Axes: B batch, T time, S slots kept.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from linseqrec.ops.segments import keep, segment_runs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recent:
    """The last S events of each row's history.

    Attributes:
      values: [B, S, ...] or a pytree of such, newest last; 0 where the history is younger.
      length: int32 [B], how many of the S slots hold an event.
    """

    values: Any
    length: Int[Array, "B"]


def after_recent(
    values: Any, segment_ids: Int[Array, "B T"], recent: Recent | None, slots: int
) -> tuple[Any, Int[Array, "B S_T"]]:
    """Puts the kept slots before a row, as events of the row's first segment.

    They stand right before the segment's first event, behind any padding on its left, so that a
    distance in slots is a distance in events.

    Args:
      values: [B, T, ...] or a pytree of such.
      segment_ids: [B, T], 0 = padding; the events of one segment are contiguous.
      recent: What `last_slots` kept of each row's first segment; None is no past.
      slots: S, as many as `recent` has.

    Returns:
      The longer rows [B, S + T, ...], the row's slot t at S + t, and their segment ids.

    Raises:
      ValueError: If `recent` does not have S slots.
    """
    pad = lambda x: jnp.pad(x, ((0, 0), (slots, 0), *((0, 0),) * (x.ndim - 2)))  # noqa: E731
    longer, ids = jax.tree.map(pad, values), pad(segment_ids)
    if recent is None:
        return longer, ids
    for kept in jax.tree.leaves(recent.values):
        if kept.shape[1] != slots:
            raise ValueError(f"{slots} slots are kept, but the state has {kept.shape[1]}")
    at = jnp.argmax(segment_ids > 0, axis=1)
    put = jax.vmap(lambda row, kept, at: jax.lax.dynamic_update_slice_in_dim(row, kept, at, 0))
    # In a row without events they are a segment of any name: `last_slots` finds them again.
    name = jnp.maximum(jnp.take_along_axis(segment_ids, at[:, None], axis=1), 1)
    held = jnp.arange(slots) >= slots - recent.length[:, None]
    ids = put(ids, jnp.where(held, name, 0), at)
    longer = jax.tree.map(lambda x, kept: put(x, kept.astype(x.dtype), at), longer, recent.values)
    return longer, ids


def last_slots(values: Any, segment_ids: Int[Array, "B S_T"], slots: int) -> Recent:
    """The last S events of each row's last segment.

    Args:
      values: [B, S + T, ...] or a pytree of such, as from `after_recent`.
      segment_ids: [B, S + T], likewise.
      slots: S.

    Returns:
      What to pass to the next `after_recent`; values are float32 (float64 or integers where they
      were). A row without events keeps what it had.
    """
    runs = segment_runs(segment_ids)
    real = segment_ids > 0
    behind = jnp.max(jnp.where(real, jnp.arange(1, real.shape[1] + 1), 0), axis=1)
    start = jnp.maximum(behind, slots) - slots
    take = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, slots, 0))
    held = take(real, start) & (take(runs, start) == runs[:, -1:])

    def held_of(x: Shaped[Array, "B S_T ..."]) -> Shaped[Array, "B S ..."]:
        kept = keep(held, take(x, start))
        if jnp.issubdtype(x.dtype, jnp.integer):
            return kept
        return kept.astype(jnp.promote_types(x.dtype, jnp.float32))

    return Recent(jax.tree.map(held_of, values), jnp.sum(held, axis=1, dtype=jnp.int32))


def slots_back(
    longer: Any,
    ids: Int[Array, "B S_T"],
    segment_ids: Int[Array, "B T"],
    slots: Sequence[int],
) -> tuple[Any, Bool[Array, "B T W"]]:
    """What stands so many slots before each slot of a row.

    Args:
      longer: The row behind its past, from `after_recent`.
      ids: Likewise.
      segment_ids: [B, T], the row's own, 0 = padding.
      slots: How far back, W numbers from 0 to S.

    Returns:
      The values [B, T, W, ...], and where they are of the same history as the slot's own event.
    """
    runs, time = segment_runs(ids), segment_ids.shape[1]
    kept = ids.shape[1] - time
    back = lambda x: jnp.stack([x[:, kept - n : kept - n + time] for n in slots], axis=2)  # noqa: E731
    same = (back(ids) > 0) & (segment_ids > 0)[..., None] & (back(runs) == runs[:, kept:, None])
    return jax.tree.map(back, longer), same


def delayed(
    x: Any,
    events: int,
    fill: Float[Array, "D"] | None = None,
    *,
    segment_ids: Int[Array, "B T"],
    recent: Recent | None = None,
) -> tuple[Any, Recent]:
    """Shifts each segment to the right: y_t = x_{t - events}, within t's own segment.

    Args:
      x: [B, T, ...] or a pytree of such.
      events: By how many; 0 or more.
      fill: [D], what stands where a history is younger; also at padding. None: 0.
      segment_ids: [B, T], 0 = padding.
      recent: The last `events` inputs before the row's first segment; None is no past.

    Returns:
      y like x, and the last `events` inputs of the row's last segment.
    """
    longer, ids = after_recent(x, segment_ids, recent, events)
    before, same = slots_back(longer, ids, segment_ids, [events])

    def late(before: Shaped[Array, "B T 1 ..."]) -> Shaped[Array, "B T ..."]:
        if fill is None:
            return keep(same[:, :, 0], before[:, :, 0])
        return jnp.where(same, before[:, :, 0], fill.astype(before.dtype))

    return jax.tree.map(late, before), last_slots(longer, ids, events)
