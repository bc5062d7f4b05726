"""A model whose scores start in favour of the items that the user had before (ours).

    m_k   mean of the history's item vectors, weighted by 2^(-age / half-life k), age in events
    h     what the model predicts with;   h' = h + sum over k of g_k * m_k;   scores h' Eᵀ

Item vectors are those of the output table, E. From the first step on, items of the history are
scored above the others, by how often and how lately they occurred: the counting baseline
`PersonalPopularity`, in a state of fixed size. Where users repeat items of a large catalogue, a
model needs many epochs to learn this by itself (results/recipe.md).

In an untrained model, a larger width D separates the user's items better from the others: the score
of an item that the user never had is a sum of products of unrelated vectors, each about 1 / √D.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.events import Events
from linseqrec.layers.states import empty, past_or_none
from linseqrec.models.base import Encoding, SequenceModel
from linseqrec.ops.decayed_linear_attention import decayed_linear_attention

# In events. A sum of the three falls with age about as `PersonalPopularity`'s weights do.
_HALF_LIVES = (8.0, 64.0, 512.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnItemsState:
    """The state of the model, and of the means.

    Attributes:
      model: The model's own.
      sums: float32 [B, means, 1, D + 1], weighted sums of item vectors, and of ones.
    """

    model: Any
    sums: Float[Array, "B M 1 D1"]


class OwnItems(SequenceModel):
    """Adds the means to the hidden vectors of a model; all else is the model's.

    Attributes:
      model: The model.
      gain: g, float32 [3, D]. Fresh ones are equal and sum to one over the mean square of E, so
        that an item that is the whole history has a score of about D.
    """

    def __init__(self, model: SequenceModel):
        self.model = model
        table = model.item_table()
        shape = (len(_HALF_LIVES), table.shape[1])
        self.gain = nnx.Param(jnp.full(shape, 1 / (len(_HALF_LIVES) * jnp.mean(table**2))))

    def encode(
        self, events: Events, state: OwnItemsState, *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns the model's encoding with the means added to its hidden vectors."""
        encoding = self.model(events, state.model, dropout_key=dropout_key)
        means, sums = self._means(events.items, events.segment_ids, past_or_none(state.sums))
        highest = jax.lax.Precision.HIGHEST
        added = jnp.einsum("BTMD,MD->BTD", means, self.gain[...], precision=highest)
        hidden = encoding.hidden + added.astype(encoding.hidden.dtype)
        after = OwnItemsState(encoding.state, sums)
        return dataclasses.replace(encoding, hidden=hidden, state=after)

    def _means(
        self,
        items: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        sums: Float[Array, "B M 1 D1"] | None,
    ) -> tuple[Float[Array, "B T M D"], Float[Array, "B M 1 D1"]]:
        """m, and the sums after each row's last history."""
        vectors = jnp.take(self.item_table(), items, axis=0)
        vectors = jnp.concatenate([vectors, jnp.ones_like(vectors[..., :1])], axis=-1)
        slots = (*items.shape, len(_HALF_LIVES))
        ones = jnp.ones((*slots, 1), vectors.dtype)
        log_decay = jnp.broadcast_to(-math.log(2) / jnp.array(_HALF_LIVES), slots)
        weighted, sums = decayed_linear_attention(
            ones,
            ones,
            jnp.broadcast_to(vectors[:, :, None], (*slots, vectors.shape[-1])),
            log_decay,
            segment_ids=segment_ids,
            initial_state=sums,
        )
        # At padding both are 0.
        return weighted[..., :-1] / jnp.maximum(weighted[..., -1:], 1e-9), sums

    def initial_state(self, batch_size: int) -> OwnItemsState:
        """The model's state, and empty sums."""
        means, width = self.gain.shape
        sums = empty(batch_size, means, 1, width + 1)
        return OwnItemsState(self.model.initial_state(batch_size), sums)

    @property
    def carries_state(self) -> bool:
        """Whether the model does; the sums alone are of no use."""
        return self.model.carries_state

    def item_table(self) -> Float[Array, "N1 D"]:
        """The model's."""
        return self.model.item_table()

    def after_step(self, events: Events, counts: Any, key: PRNGKeyArray) -> None:
        """The model's."""
        self.model.after_step(events, counts, key)
