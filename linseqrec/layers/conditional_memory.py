"""SinkRec's conditional memory: recurring local patterns, quantised to codes (arXiv 2606.09888).

That such a memory of contiguous and dilated windows is residually quantised, reinjected and shown
to the attention is the paper's; its equations are not public, and those here are ours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from linseqrec.layers.dense import dense, layer_norm
from linseqrec.layers.feed_forward import exact_gelu
from linseqrec.ops.quantization import (
    code_usage,
    masked_mean,
    nearest_code,
    perplexity,
    quantization_loss,
    relative_error,
    residual_quantization,
    straight_through,
)
from linseqrec.ops.recent import Recent, after_recent, last_slots
from linseqrec.ops.segments import segment_runs

# A code's use is averaged over some 50 steps; a code used a tenth as often as the mean is dead.
_USAGE_DECAY = 0.98
_DEAD = 0.1
_TINY = 1e-12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryReading:
    """What the memory holds for each event.

    Attributes:
      vector: m, [B, T, D] in the compute dtype.
      slots: n, [B, T, M, D_c] in the compute dtype: one slot a window and level.
      error: ρ, float32 [B, T], the mean of the windows' relative errors, without gradient.
      quantization_loss: L_vq, the mean over windows and events.
      reconstruction_loss: L_rec, the mean over windows; 0 where there is no decoder.
      metrics: Perplexity a window and level, relative errors of quantisation and reconstruction a
        window; scalars.
    """

    vector: Float[Array, "B T D"]
    slots: Float[Array, "B T M D_c"]
    error: Float[Array, "B T"]
    quantization_loss: Float[Array, ""]
    reconstruction_loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


class ConditionalMemory(nnx.Module):
    """Encodes each event's window of the past, at several dilations, and looks codes up for it.

        win_s(t) = e at t, t − r, .., t − (w − 1) r                    0 outside the history
        z_s = LN(W_2 GELU(W_1 win_s + b_1) + b_2)
        Σ_l c_l, ρ_s = residual quantisation of z_s;  z̃_s = z_s + sg(Σ_l c_l − z_s)
        m = W_m [z̃_1; ..];  n_sl = c_l + type_sl
        L_rec = Σ ‖W_d z̃_s + b_d − sg(win_s)‖² / Σ ‖sg(win_s)‖²       over the taps that are events

    L_rec is the share of the windows that is not reconstructed, so that its weight means the same
    whatever length embeddings grow to. Without the stop-gradient on its target, it would make the
    embeddings collapse to be easy to reconstruct. The codes n are straight-through too: L_vq alone
    moves the codebooks, and `reseed`, called once a training step, replaces dead codes.

    Attributes:
      codebooks: float32 [S, L, K, D_c].
      usage: float32 [S, L, K], the running average of each code's share of the events, times K; 0
        at first, so that the first `reseed` draws every code from the data. It takes no gradient: a
        parameter only to be trained state, saved and restored as such.
      types: float32 [S L, D_c], the slots' type embeddings.
    """

    def __init__(
        self,
        width: int,
        *,
        window: int,
        dilations: tuple[int, ...],
        levels: int,
        codes: int,
        frozen: bool = False,
        decoder: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes fresh parameters.

        Args:
          width: D.
          window: w, events in a window.
          dilations: r of each window.
          levels: L, codes a window.
          codes: K, codes in a codebook.
          frozen: Whether the codebooks stay as they were drawn.
          decoder: Whether the windows are reconstructed.
          dtype: Compute dtype; quantisation and losses are float32.
          rngs: Randomness.
        """
        self.window, self.dilations, self.frozen, self.dtype = window, dilations, frozen, dtype
        code_width, count = width // 2, len(dilations)
        make = lambda inputs, outputs: dense(inputs, outputs, dtype=dtype, rngs=rngs)  # noqa: E731
        self.encoders = nnx.List([make(window * width, code_width) for _ in dilations])
        self.projections = nnx.List([make(code_width, code_width) for _ in dilations])
        self.norms = nnx.List(
            [layer_norm(code_width, epsilon=1e-8, dtype=dtype, rngs=rngs) for _ in dilations]
        )
        self.decoders = (
            nnx.List([make(code_width, window * width) for _ in dilations]) if decoder else None
        )
        self.output = dense(count * code_width, width, bias=False, dtype=dtype, rngs=rngs)
        # Half as long as the normalised vectors they stand for: about where the nearest of a few
        # hundred random codes explains most.
        self.codebooks = nnx.Param(
            nnx.initializers.normal(0.5)(rngs.params(), (count, levels, codes, code_width))
        )
        self.usage = nnx.Param(jnp.zeros((count, levels, codes), jnp.float32))
        self.types = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (count * levels, code_width))
        )

    @property
    def reach(self) -> int:
        """Slots before an event that its widest window sees."""
        return (self.window - 1) * max(self.dilations)

    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        past: Recent | None = None,
    ) -> tuple[MemoryReading, Recent]:
        """Reads the memory for each event.

        Args:
          embeddings: The items' embeddings.
          segment_ids: One id from 1 per history; 0 is padding.
          past: The embeddings before each row's first history; None is no past.

        Returns:
          The reading, and the embeddings to go on from.
        """
        real = segment_ids > 0
        codebooks = self.codebooks[...]
        if self.frozen:
            codebooks = jax.lax.stop_gradient(codebooks)
        windows, past = self._windows(embeddings, segment_ids, past)
        vectors, slots, errors, quantization_losses, reconstructions = [], [], [], [], []
        metrics = {}
        for index, (taps, present) in enumerate(windows):
            name = f"{self.window}x{self.dilations[index]}"
            encoded = self._encode(index, taps)
            quantized = residual_quantization(encoded, codebooks[index])
            vector = straight_through(encoded, jnp.sum(quantized.retrieved, axis=-2))
            vectors.append(vector.astype(self.dtype))
            slots.append(straight_through(quantized.residuals, quantized.retrieved))
            errors.append(relative_error(quantized))
            quantization_losses.append(quantization_loss(quantized, real))
            if self.decoders is not None:
                decoded = self.decoders[index](vectors[-1]).astype(jnp.float32)
                target = jax.lax.stop_gradient(taps.astype(jnp.float32))
                there = present[..., None]
                missed = jnp.sum(jnp.square(decoded.reshape(target.shape) - target) * there)
                square = jnp.sum(jnp.square(target) * there)
                reconstructions.append(missed / jnp.maximum(square, _TINY))
                metrics[f"reconstruction_error/{name}"] = reconstructions[-1]
            usage = code_usage(quantized.codes, codebooks.shape[2], real)
            for level, used in enumerate(perplexity(usage)):
                metrics[f"perplexity/{name}/{level}"] = used
            metrics[f"quantization_error/{name}"] = masked_mean(errors[-1], real)
        slot = jnp.concatenate(slots, axis=-2) + self.types[...]
        mean = lambda values: sum(values, jnp.zeros(())) / len(self.dilations)  # noqa: E731
        reading = MemoryReading(
            vector=self.output(jnp.concatenate(vectors, axis=-1)),
            slots=slot.astype(self.dtype),
            error=mean(errors),
            quantization_loss=mean(quantization_losses),
            reconstruction_loss=mean(reconstructions),
            metrics=metrics,
        )
        return reading, past

    def reseed(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        key: PRNGKeyArray,
    ) -> None:
        """Counts a batch's use of the codes, and replaces the dead ones; changes the module.

        A dead code becomes what its level quantises of an event drawn from the batch, after the
        levels before it have got their new codes; it counts as used like the mean from then on.
        Frozen codebooks, and a batch without events, change nothing.

        Args:
          embeddings: The items' embeddings of a training batch.
          segment_ids: One id from 1 per history; 0 is padding.
          key: Randomness of the events drawn.
        """
        if self.frozen:
            return
        real = segment_ids > 0
        codebooks = self.codebooks[...]
        levels, codes = codebooks.shape[1:3]
        windows, _ = self._windows(embeddings, segment_ids, None)
        # Events of their own for each level, or a level's new codes would leave the next nothing.
        ordinals = jax.random.randint(key, (levels, codes), 0, jnp.maximum(jnp.sum(real), 1))
        drawn = jnp.searchsorted(jnp.cumsum(real.reshape(-1)), ordinals, side="right")
        fresh_codebooks, fresh_usage = [], []
        for index, (taps, _) in enumerate(windows):
            encoded = self._encode(index, taps)
            quantized = residual_quantization(encoded, codebooks[index])
            counts = code_usage(quantized.codes, codes, real)
            shares = counts / jnp.maximum(jnp.sum(real), 1) * codes
            usage = _USAGE_DECAY * self.usage[index] + (1 - _USAGE_DECAY) * shares
            # Only codes that were never seeded have an average of 0 from before.
            dead = (usage < _DEAD) | (self.usage[index] == 0)
            new: list[Float[Array, "K D_c"]] = []
            for level in range(levels):
                rest = encoded.reshape(-1, encoded.shape[-1])[drawn[level]]
                for before in new:
                    rest = rest - before[nearest_code(rest, before)]
                new.append(jnp.where(dead[level][:, None], rest, codebooks[index, level]))
            fresh_codebooks.append(jnp.stack(new))
            fresh_usage.append(jnp.where(dead, 1.0, usage))
        some = jnp.any(real)
        self.codebooks[...] = jnp.where(some, jnp.stack(fresh_codebooks), codebooks)
        self.usage[...] = jnp.where(some, jnp.stack(fresh_usage), self.usage[...])

    def _encode(self, index: int, taps: Float[Array, "B T W D"]) -> Float[Array, "B T D_c"]:
        """The vectors z of one window, float32."""
        hidden = exact_gelu(self.encoders[index](taps.reshape(*taps.shape[:2], -1)))
        return self.norms[index](self.projections[index](hidden)).astype(jnp.float32)

    def _windows(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        past: Recent | None,
    ) -> tuple[list[tuple[Float[Array, "B T W D"], Bool[Array, "B T W"]]], Recent]:
        """Each dilation's taps, the current event first, and which are events; the new past."""
        extended, ids = after_recent(embeddings, segment_ids, past, self.reach)
        runs, time = segment_runs(ids), embeddings.shape[1]

        def tap(back: int) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
            then = slice(self.reach - back, self.reach - back + time)
            same = (ids[:, then] > 0) & (segment_ids > 0) & (runs[:, then] == runs[:, self.reach :])
            seen = extended[:, then]
            return jnp.where(same[..., None], seen, 0), same

        windows = []
        for dilation in self.dilations:
            taps, present = zip(*(tap(step * dilation) for step in range(self.window)), strict=True)
            windows.append((jnp.stack(taps, axis=2), jnp.stack(present, axis=2)))
        return windows, last_slots(extended, ids, self.reach)
