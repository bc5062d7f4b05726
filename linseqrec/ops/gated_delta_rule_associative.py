"""The gated delta rule by transitions: all chunks at once, on one device or on several.

Axes: B batch, T time, H heads, K key width, V value width, C chunk, N chunks.

A chunk maps the state before it to the state behind it: S' = A S + B. With U = U_0 - W S,
U_0 = (I + L)^-1 diag(beta) V and W = (I + L)^-1 diag(beta e^G) K:

    A = e^G_C I - Kᵀ diag(e^(G_C - G)) W,        B = Kᵀ diag(e^(G_C - G)) U_0

and A is 0 where a new segment starts in the chunk. Transitions compose, across devices as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linseqrec.ops.gated_delta_rule_parts import Inputs, chunk_terms, einsum, einsum_for, widen
from linseqrec.ops.segments import from_chunks, runs_to_chunks, to_chunks
from linseqrec.ops.triangular import inverse_unit_lower


class _Transition(NamedTuple):
    """S' = A S + B: A [..., K, K], B [..., K, V]."""

    factor: Array
    offset: Array


def _then(earlier: _Transition, later: _Transition) -> _Transition:
    return _Transition(
        einsum("...kj,...ji->...ki", later.factor, earlier.factor),
        einsum("...kj,...jv->...kv", later.factor, earlier.offset) + later.offset,
    )


def _apply(transition: _Transition, state: Float[Array, "B H K V"]) -> Array:
    return einsum("...kj,...jv->...kv", transition.factor, state) + transition.offset


def associative(
    x: Inputs,
    runs: Int[Array, "B T"],
    state: Float[Array, "B H K V"],
    chunk_size: int,
    *,
    carried: Int[Array, "B"] | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """All chunks at once; with an axis name, those of the devices along it, too.

    `carried` is the run that the state before these slots belongs to; None: the row's first.
    """
    dot = einsum_for(x.query.dtype)
    chunks = jax.tree.map(lambda a: jnp.swapaxes(to_chunks(a, chunk_size), 2, 3), x)
    chunk_runs = runs_to_chunks(runs, chunk_size)
    carried = jnp.ones_like(runs[:, 0]) if carried is None else carried
    before_runs = jnp.concatenate([carried[None], chunk_runs[:-1, :, -1]])

    @jax.checkpoint
    def solve(x: Inputs) -> tuple[Array, Array, Array, Array, _Transition]:
        x = widen(x)
        this = chunk_terms(x, chunk_runs, before_runs, dot)
        inverse = inverse_unit_lower(x.beta[..., None] * this.gram)
        update = dot("...rc,...cv->...rv", inverse, x.beta[..., None] * x.value)
        recall = dot("...rc,...ck->...rk", inverse, (x.beta * this.reads)[..., None] * x.key)
        writes = this.writes[..., None]
        identity = jnp.eye(x.key.shape[-1], dtype=x.beta.dtype)
        transition = _Transition(
            this.reads[..., -1, None, None] * identity
            - dot("...ck,...ci->...ki", x.key, writes * recall),
            dot("...ck,...cv->...kv", x.key, writes * update),
        )
        return this.scores, this.reads, update, recall, transition

    scores, reads, update, recall, transition = solve(chunks)
    up_to = jax.lax.associative_scan(_then, transition)
    if axis_name is None:
        start, final = state, _apply(jax.tree.map(lambda a: a[-1], up_to), state)
    else:
        start, final = _across_devices(jax.tree.map(lambda a: a[-1], up_to), state, axis_name)
    before = _apply(jax.tree.map(lambda a: a[:-1], up_to), start)
    before = jnp.concatenate([start[None], before])
    update = update - dot("...ck,...kv->...cv", recall, before)
    output = reads[..., None] * dot("...ck,...kv->...cv", widen(chunks).query, before)
    output = output + dot("...rc,...cv->...rv", scores, update)
    return from_chunks(jnp.swapaxes(output, 2, 3), runs.shape[1]), final


def _across_devices(
    transition: _Transition, state: Float[Array, "B H K V"], axis_name: str
) -> tuple[Float[Array, "B H K V"], Float[Array, "B H K V"]]:
    """The state before this device's slots, and the one after the last device's, on all of them."""
    everyone = jax.lax.all_gather(transition, axis_name)
    final, starts = jax.lax.scan(lambda s, t: (_apply(t, s), s), state, everyone)
    index = jax.lax.axis_index(axis_name)
    start = jax.lax.dynamic_index_in_dim(starts, index, keepdims=False)
    # Equal on every device already; the sum tells JAX so.
    return start, jax.lax.psum(jnp.where(index == 0, final, 0), axis_name)
