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
    code_counts,
    masked_mean,
    nearest_code,
    perplexity,
    quantization_loss,
    relative_error,
    residual_quantization,
    straight_through,
)
from linseqrec.ops.recent import Recent, after_recent, last_slots, slots_back
from linseqrec.ops.segments import keep

# A code's use is averaged over some 50 steps; a code used a tenth as often as the mean is dead. A
# new code has 46 steps to be used: at first the encoders still move, away from codes just seeded.
_USAGE_DECAY = 0.98
_DEAD = 0.1
_FRESH = 0.25
_TINY = 1e-12
# Of a residual's square, where that of a whole vector is its width: nothing is left to quantise.
_NOTHING_LEFT = 1e-6


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
      code_counts: float32 [S, L, K], how many events took each code, without gradient.
      metrics: Perplexity a window and level, relative errors of quantisation and reconstruction a
        window; scalars.
    """

    vector: Float[Array, "B T D"]
    slots: Float[Array, "B T M D_c"]
    error: Float[Array, "B T"]
    quantization_loss: Float[Array, ""]
    reconstruction_loss: Float[Array, ""]
    code_counts: Float[Array, "S L K"]
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
        until `reseed` first drew the code from the data. It takes no gradient: a parameter only to
        be trained state, saved and restored as such.
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
        counts, metrics = [], {}
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
            counts.append(code_counts(quantized.codes, codebooks.shape[2], real))
            for level, used in enumerate(perplexity(counts[-1])):
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
            code_counts=jnp.stack(counts),
            metrics=metrics,
        )
        return reading, past

    def reseed(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        counts: Float[Array, "S L K"],
        key: PRNGKeyArray,
    ) -> None:
        """Averages a batch's use of the codes in, and replaces the dead; changes the module.

        A dead code becomes what its level quantises of an event drawn from the batch, after the
        levels before it have got their new codes, and counts as used a quarter as often as the mean
        from then on. Codes of all levels draw different events while there are enough, or a level's
        new codes would leave the next nothing; a code that nothing is left for stays as it was.
        Frozen codebooks, and a batch without events, change nothing.

        Args:
          embeddings: The items' embeddings of a training batch.
          segment_ids: One id from 1 per history; 0 is padding.
          counts: The batch's `MemoryReading.code_counts`.
          key: Randomness of the events drawn.
        """
        if self.frozen:
            return
        codebooks, usage = self.codebooks[...], self.usage[...]
        levels, codes, width = codebooks.shape[1:]
        events = jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1)
        averaged = _USAGE_DECAY * usage + (1 - _USAGE_DECAY) * counts / events * codes
        averaged = jnp.where(usage == 0, 0, averaged)
        dead = averaged < _DEAD
        drawn = _different(segment_ids.reshape(-1) > 0, levels * codes, key)
        fresh, seeded = [], []
        for index, (taps, _) in enumerate(self._windows(embeddings, segment_ids, None)[0]):
            some = taps.reshape(1, -1, *taps.shape[2:])[:, drawn]
            rests = self._encode(index, some).reshape(levels, codes, width)
            books: list[Float[Array, "K D_c"]] = []
            for level, rest in enumerate(rests):
                for before in books:
                    rest = rest - before[nearest_code(rest, before)]
                left = jnp.sum(jnp.square(rest), axis=-1) > _NOTHING_LEFT * width
                seeded.append(dead[index, level] & left)
                books.append(jnp.where(seeded[-1][:, None], rest, codebooks[index, level]))
            fresh += books
        averaged = jnp.where(jnp.stack(seeded).reshape(usage.shape), _FRESH, averaged)
        some_event = jnp.any(segment_ids > 0)
        self.codebooks[...] = jnp.where(
            some_event, jnp.stack(fresh).reshape(codebooks.shape), codebooks
        )
        self.usage[...] = jnp.where(some_event, averaged, usage)

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
        windows = []
        for dilation in self.dilations:
            steps = range(0, self.window * dilation, dilation)
            taps, present = slots_back(extended, ids, segment_ids, steps)
            windows.append((keep(present, taps), present))
        return windows, last_slots(extended, ids, self.reach)


def _different(real: Bool[Array, "E"], count: int, key: PRNGKeyArray) -> Int[Array, "N"]:
    """Places of `count` real events drawn without replacement; again from the start if too few."""
    order = jnp.argsort(jnp.where(real, jax.random.uniform(key, real.shape), 2.0))
    return order[jnp.arange(count) % jnp.maximum(jnp.sum(real), 1)]
