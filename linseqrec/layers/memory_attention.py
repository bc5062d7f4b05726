"""SinkRec's attention block: a sliding window, and each event's own memory slots beside it."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.layers.dense import dense
from linseqrec.ops.past import Past, extend, last_slots, no_past
from linseqrec.ops.softmax_attention import softmax_attention


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowState:
    """The last `window - 1` keys and values of each row's history, [B, P, H, K + K]."""

    key_value: Past


class MemoryAttention(nnx.Module):
    """Causal softmax attention over the last `window` events and the query's memory slots.

        q, k, v = W_qkv x;  k^m_j, v^m_j = W_kv^m n_j                        per head
        y = W_o softmax([q k_winᵀ ; q k^mᵀ] / √K) [v_win ; v^m]

    That the memory is shown to the attention as keys and values is SinkRec's (arXiv 2606.09888);
    the equations are ours. Linear in time.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        slot_width: int | None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args: `slot_width` is that of the memory slots; None: there are none."""
        self.heads, self.window = heads, window
        make = lambda inputs, outputs: dense(inputs, outputs, bias=False, dtype=dtype, rngs=rngs)  # noqa: E731
        self.query_key_value = make(width, 3 * width)
        self.memory_key_value = None if slot_width is None else make(slot_width, 2 * width)
        self.output = make(width, width)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        state: WindowState | None = None,
        *,
        slots: Float[Array, "B T M D_c"] | None = None,
    ) -> tuple[Float[Array, "B T D"], WindowState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: The past of each row's first segment; None is no past.
          slots: The memory slots of each event, if the layer was made for some.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        heads = lambda part: part.reshape(*part.shape[:-1], self.heads, -1)  # noqa: E731
        query, key, value = (heads(part) for part in jnp.split(self.query_key_value(x), 3, axis=-1))
        key_value = jnp.concatenate([key, value], axis=-1)
        past = None if state is None else state.key_value
        extended, ids = extend(
            key_value, segment_ids, no_past(key_value, self.window - 1) if past is None else past
        )
        after = WindowState(last_slots(extended, ids, self.window - 1))
        if past is None:
            # Nothing was carried: the row alone, or a quarter of the work would be on empty slots.
            extended, ids = key_value, segment_ids
        key, value = jnp.split(extended, 2, axis=-1)
        memory = (None, None)
        if self.memory_key_value is not None and slots is not None:
            memory = tuple(
                heads(part) for part in jnp.split(self.memory_key_value(slots), 2, axis=-1)
            )
        mixed = softmax_attention(
            query,
            key,
            value,
            memory_key=memory[0],
            memory_value=memory[1],
            window=self.window,
            segment_ids=ids,
        )
        # The past may have taken the place of padding on the row's left.
        mixed = jnp.where((segment_ids > 0)[..., None], mixed.reshape(x.shape), 0)
        return self.output(mixed), after
