"""SinkRec's attention block: a sliding window, and each event's own memory slots beside it."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.layers.short_convolution import NoConvolution, ShortConvolution
from linseqrec.layers.standard import Dense
from linseqrec.layers.starting_values import copy_kernel, lookup_kernel, lookup_taps
from linseqrec.layers.states import behind_recent, empty, empty_recent
from linseqrec.layers.window_attention import WindowState
from linseqrec.ops.softmax_attention import MemorySlots, softmax_attention


class MemoryAttention(nnx.Module):
    """Causal softmax attention over the last `window` events and the query's memory slots.

        q, k, v = SiLU(conv(W_qkv x));  k^m_j, v^m_j = W_kv^m n_j            per head
        y = W_o softmax([q k_winᵀ ; q k^mᵀ] / √K) [v_win ; v^m]

    From SinkRec's abstract (arXiv 2606.09888): the memory gives keys and values to the attention.
    Ours: the equations. The time is linear in the row's length.

    The attention has no positions. With the short convolution, a key also depends on the events
    right before its own, so that one layer can find which event followed the same items earlier.
    Without it (q, k, v = W_qkv x) the attention itself ignores the order of the window's events.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        slot_width: int | None,
        kernel: int | None,
        dtype: DTypeLike = jnp.float32,
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
        self.width, self.heads, self.window = width, heads, window
        sizes = heads, width // heads, width // heads
        self.query_key_value = Dense(width, 3 * width, bias=False, dtype=dtype, rngs=rngs)
        self.query_key_value.kernel[...] = lookup_kernel(width, *sizes, rngs=rngs)
        self.convolution: ShortConvolution | NoConvolution = NoConvolution()
        if kernel is not None:
            self.convolution = ShortConvolution(3 * width, kernel, bias=False, rngs=rngs)
            self.convolution.weight[...] = lookup_taps(kernel, *sizes)
        self.memory_key_value = (
            NoSlots()
            if slot_width is None
            else SlotKeyValue(slot_width, 2 * width, bias=False, dtype=dtype, rngs=rngs)
        )
        self.output = Dense(width, width, bias=False, dtype=dtype, rngs=rngs)
        self.output.kernel[...] = copy_kernel(self.query_key_value.kernel[...], heads, sizes[-1])

    def initial_state(self, batch_size: int) -> WindowState:
        """The state before any event."""
        kept = empty(batch_size, self.window - 1, self.heads, self.width // self.heads)
        return WindowState(
            empty_recent(batch_size, (kept, kept)), self.convolution.initial_state(batch_size)
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        state: WindowState,
        *,
        slots: Float[Array, "B T M D_c"],
    ) -> tuple[Float[Array, "B T D"], WindowState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: What came before each row's first segment.
          slots: The memory slots of each event; not read if the layer was made for none.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        mixed, convolution = self.convolution(
            self.query_key_value(x), segment_ids, state.convolution
        )
        query, key, value = (_heads(part, self.heads) for part in jnp.split(mixed, 3, axis=-1))
        (key, value), ids, window = behind_recent(
            (key, value), segment_ids, state.window, self.window - 1
        )
        attended = softmax_attention(
            query,
            key,
            value,
            memory=self.memory_key_value(slots, self.heads, query.dtype),
            window=self.window,
            segment_ids=ids,
        )
        return self.output(attended.reshape(x.shape)), WindowState(window, convolution)


class SlotKeyValue(Dense):
    """W_kv^m, which makes keys and values of the memory slots within the attention."""

    def __call__(  # type: ignore[override]
        self, slots: Float[Array, "B T M D_c"], heads: int, dtype: DTypeLike
    ) -> MemorySlots:
        """The slots, and the maps that the attention takes them through."""
        maps = self.kernel[...].astype(dtype)
        return MemorySlots(slots, *(_heads(part, heads) for part in jnp.split(maps, 2, axis=-1)))


class NoSlots(nnx.Module):
    """Stands for `SlotKeyValue` where the attention sees no memory."""

    def __call__(self, slots: Float[Array, "B T M D_c"], heads: int, dtype: DTypeLike) -> None:
        """No slots."""
        del slots, heads, dtype


def _heads(part: Float[Array, "... D"], heads: int) -> Float[Array, "... H K"]:
    return part.reshape(*part.shape[:-1], heads, -1)
