"""SinkRec's attention block: a sliding window, and each event's own memory slots beside it."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.layers.dense import dense
from linseqrec.layers.short_convolution import ShortConvolution
from linseqrec.layers.starting_values import copy_kernel, lookup_kernel, lookup_taps
from linseqrec.ops.recent import Recent, after_recent, last_slots
from linseqrec.ops.softmax_attention import MemorySlots, softmax_attention


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryAttentionState:
    """What the attention carries from one call to the next.

    Attributes:
      window: Keys and values [B, window - 1, H, K] of the last events.
      convolution: The last inputs of the short convolution, [B, W - 1, 3 D]; None without it.
    """

    window: Recent
    convolution: Float[Array, "B W-1 E"] | None


class MemoryAttention(nnx.Module):
    """Causal softmax attention over the last `window` events and the query's memory slots.

        q, k, v = SiLU(conv(W_qkv x));  k^m_j, v^m_j = W_kv^m n_j            per head
        y = W_o softmax([q k_winᵀ ; q k^mᵀ] / √K) [v_win ; v^m]

    That the memory is shown to the attention as keys and values is SinkRec's (arXiv 2606.09888);
    the equations are ours. Linear in time.

    The attention knows no positions. A short convolution like the recurrence's, with weights of its
    own, lets a key tell what came right before its event, so that one layer finds what followed the
    last items earlier on; without it (q, k, v = W_qkv x) the window is a bag of whatever x holds.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        slot_width: int | None,
        kernel: int | None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes fresh parameters.

        Args:
          width: D.
          heads: They divide the width.
          window: Events that a query sees, its own included.
          slot_width: Of the memory slots; None: there are none.
          kernel: Taps of the short convolution; None: there is none.
          dtype: Compute dtype.
          rngs: Randomness.
        """
        self.heads, self.window = heads, window
        make = lambda inputs, outputs: dense(inputs, outputs, bias=False, dtype=dtype, rngs=rngs)  # noqa: E731
        sizes = heads, width // heads, width // heads
        self.query_key_value = make(width, 3 * width)
        self.query_key_value.kernel[...] = lookup_kernel(width, *sizes, rngs=rngs)
        self.convolution = (
            None if kernel is None else ShortConvolution(3 * width, kernel, bias=False, rngs=rngs)
        )
        if self.convolution is not None and kernel is not None:
            self.convolution.weight[...] = lookup_taps(kernel, *sizes)
        self.memory_key_value = None if slot_width is None else make(slot_width, 2 * width)
        self.output = make(width, width)
        self.output.kernel[...] = copy_kernel(self.query_key_value.kernel[...], heads, sizes[-1])

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        state: MemoryAttentionState | None = None,
        *,
        slots: Float[Array, "B T M D_c"] | None = None,
    ) -> tuple[Float[Array, "B T D"], MemoryAttentionState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: What came before each row's first segment; None is no past.
          slots: The memory slots of each event, if the layer was made for some.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        heads = lambda part: part.reshape(*part.shape[:-1], self.heads, -1)  # noqa: E731
        mixed, convolution = self.query_key_value(x), None
        if self.convolution is not None:
            mixed, convolution = self.convolution(
                mixed, segment_ids, None if state is None else state.convolution
            )
        query, key, value = (heads(part) for part in jnp.split(mixed, 3, axis=-1))
        kept = self.window - 1
        past, past_ids = after_recent(
            (key, value), segment_ids, None if state is None else state.window, kept
        )
        # Without a past the row is attended to as it stands, not behind an empty cache.
        (key, value), ids = ((key, value), segment_ids) if state is None else (past, past_ids)
        memory = None
        if self.memory_key_value is not None:
            assert slots is not None, "the layer was made for memory slots"
            maps = self.memory_key_value.kernel[...].astype(query.dtype)
            memory = MemorySlots(slots, *(heads(part) for part in jnp.split(maps, 2, axis=-1)))
        attended = softmax_attention(
            query,
            key,
            value,
            memory=memory,
            window=self.window,
            segment_ids=ids,
        )
        window = last_slots(past, past_ids, kept)
        return self.output(attended.reshape(x.shape)), MemoryAttentionState(window, convolution)
