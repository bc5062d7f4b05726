"""SinkRec's conditional memory: recurring local patterns, quantised to codes (arXiv 2606.09888).

From the paper's abstract: a memory of contiguous and dilated windows, residual quantisation,
reinjection, and the memory as keys and values of the attention. Ours: all equations, because we
could not read the paper's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from linseqrec.layers.standard import Dense, dropout, exact_gelu, layer_norm, split_key
from linseqrec.layers.states import Stateless, empty, empty_recent, past_or_none
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

# The average of a code's use spans some 50 steps. A code is dead if its use is below a tenth of the
# mean. A new code starts at a quarter of the mean, so it has 46 steps before it can be dead: at the
# start of training the encoders still move away from new codes.
_USAGE_DECAY = 0.98
_DEAD = 0.1
_FRESH = 0.25
_TINY = 1e-12
# A residual whose mean square is below this is empty; the vectors have a mean square of 1.
_NOTHING_LEFT = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryReading:
    """What the memory holds for each event.

    Attributes:
      vector: m, [B, T, D] in the compute dtype.
      slots: n, [B, T, M, D_c] in the compute dtype: one slot per window and level.
      error: ρ, float32 [B, T], the mean of the windows' relative errors, without gradient.
      losses: "vq", L_vq, the mean over windows and events; with decoders "reconstruction", L_rec,
        the mean over windows; not weighted.
      code_counts: float32 [S, L, K], how many events took each code, without gradient.
      metrics: Perplexity a window and level, relative errors of quantisation and reconstruction a
        window; scalars.
    """

    vector: Float[Array, "B T D"]
    slots: Float[Array, "B T M D_c"]
    error: Float[Array, "B T"]
    losses: dict[str, Float[Array, ""]]
    code_counts: Float[Array, "S L K"]
    metrics: dict[str, Float[Array, ""]]

    def dropped(self, rate: float, key: PRNGKeyArray | None) -> "MemoryReading":
        """The reading with dropout on its vectors and slots."""
        vector_key, slots_key = split_key(key, 2)
        return dataclasses.replace(
            self,
            vector=dropout(self.vector, rate, vector_key),
            slots=dropout(self.slots, rate, slots_key),
        )


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
        until `reseed` first drew the code from the data. No parameter: no gradient moves it.
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
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes fresh parameters.

        Args:
          width: D.
          window: w, events in a window.
          dilations: r of each window.
          levels: L, codes per window.
          codes: K, codes in a codebook.
          frozen: Whether the codebooks stay as they were drawn.
          decoder: Whether the windows are reconstructed.
          dtype: Compute dtype; quantisation and losses are float32.
          rngs: Randomness.
        """
        self.width, self.window, self.dilations, self.dtype = width, window, dilations, dtype
        self.frozen, self.held = frozen, jax.lax.stop_gradient if frozen else _learned
        code_width, count = width // 2, len(dilations)

        def per_window(make: Callable[..., nnx.Module], *widths: int, **options: Any) -> Any:
            return nnx.List([make(*widths, dtype=dtype, rngs=rngs, **options) for _ in dilations])

        self.encoders = per_window(Dense, window * width, code_width)
        self.projections = per_window(Dense, code_width, code_width)
        self.norms = per_window(layer_norm, code_width, epsilon=1e-8)
        self.decoders = (
            per_window(Decoder, code_width, window * width)
            if decoder
            else nnx.List([NoDecoder() for _ in dilations])
        )
        self.output = Dense(count * code_width, width, bias=False, dtype=dtype, rngs=rngs)
        # Half as long as the normalised vectors they stand for: about where the nearest of a few
        # hundred random codes explains most.
        self.codebooks = nnx.Param(
            nnx.initializers.normal(0.5)(rngs.params(), (count, levels, codes, code_width))
        )
        self.usage = nnx.BatchStat(jnp.zeros((count, levels, codes), jnp.float32))
        self.types = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (count * levels, code_width))
        )

    @property
    def reach(self) -> int:
        """Slots before an event that its widest window sees."""
        return (self.window - 1) * max(self.dilations)

    def initial_state(self, batch_size: int) -> Recent:
        """The embeddings before any event."""
        return empty_recent(batch_size, empty(batch_size, self.reach, self.width))

    def __call__(
        self, embeddings: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], past: Recent
    ) -> tuple[MemoryReading, Recent]:
        """Reads the memory for each event.

        Args:
          embeddings: The items' embeddings.
          segment_ids: One id from 1 per history; 0 is padding.
          past: The embeddings before each row's first history.

        Returns:
          The reading, and the embeddings to go on from.
        """
        real, codebooks = segment_ids > 0, self.held(self.codebooks[...])
        windows, past = self._windows(embeddings, segment_ids, past)
        vectors, slots, errors, counts = [], [], [], []
        losses: dict[str, list[Float[Array, ""]]] = {}
        metrics = {}
        for index, (taps, present) in enumerate(windows):
            name = f"{self.window}x{self.dilations[index]}"
            encoded = self._encode(index, taps)
            quantized = residual_quantization(encoded, codebooks[index])
            vector = straight_through(encoded, jnp.sum(quantized.retrieved, axis=-2))
            vectors.append(vector.astype(self.dtype))
            slots.append(straight_through(quantized.residuals, quantized.retrieved))
            errors.append(relative_error(quantized))
            losses.setdefault("vq", []).append(quantization_loss(quantized, real))
            for kind, loss in self.decoders[index](vectors[-1], taps, present).items():
                losses.setdefault(kind, []).append(loss)
                metrics[f"{kind}_error/{name}"] = loss
            counts.append(code_counts(quantized.codes, codebooks.shape[2], real))
            for level, used in enumerate(perplexity(counts[-1])):
                metrics[f"perplexity/{name}/{level}"] = used
            metrics[f"quantization_error/{name}"] = masked_mean(errors[-1], real)
        slot = jnp.concatenate(slots, axis=-2) + self.types[...]
        reading = MemoryReading(
            vector=self.output(jnp.concatenate(vectors, axis=-1)),
            slots=slot.astype(self.dtype),
            error=_mean(errors),
            losses={kind: _mean(parts) for kind, parts in losses.items()},
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
        """Updates the average use of the codes, and replaces dead codes; changes the module.

        For each dead code the method draws an event of the batch, quantises it by the new codes of
        the earlier levels, and makes the residual the new code. The use of the new code starts at a
        quarter of the mean. All codes draw different events if the batch has enough: otherwise the
        new codes of one level would leave no residual for the next level. A dead code with an empty
        residual stays. Frozen codebooks, and batches without events, change nothing.

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
        before_any = self.initial_state(len(segment_ids))
        windows, _ = self._windows(embeddings, segment_ids, before_any)
        fresh, seeded = [], []
        for index, (taps, _) in enumerate(windows):
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
        past: Recent,
    ) -> tuple[list[tuple[Float[Array, "B T W D"], Bool[Array, "B T W"]]], Recent]:
        """Each dilation's taps, the current event first, and which are events; the new past."""
        extended, ids = after_recent(embeddings, segment_ids, past_or_none(past), self.reach)
        windows = []
        for dilation in self.dilations:
            steps = range(0, self.window * dilation, dilation)
            taps, present = slots_back(extended, ids, segment_ids, steps)
            windows.append((keep(present, taps), present))
        return windows, last_slots(extended, ids, self.reach)


class Decoder(Dense):
    """W_d z̃ + b_d: reconstructs a window from its quantised vector."""

    def __call__(  # type: ignore[override]
        self,
        vector: Float[Array, "B T D_c"],
        taps: Float[Array, "B T W D"],
        present: Bool[Array, "B T W"],
    ) -> dict[str, Float[Array, ""]]:
        """The share of the windows that is not reconstructed, over the taps that are events."""
        target = jax.lax.stop_gradient(taps.astype(jnp.float32))
        decoded = super().__call__(vector).astype(jnp.float32).reshape(target.shape)
        there = present[..., None]
        missed = jnp.sum(jnp.square(decoded - target) * there)
        square = jnp.sum(jnp.square(target) * there)
        return {"reconstruction": missed / jnp.maximum(square, _TINY)}


class NoDecoder(nnx.Module):
    """Stands for `Decoder` where nothing is reconstructed."""

    def __call__(
        self,
        vector: Float[Array, "B T D_c"],
        taps: Float[Array, "B T W D"],
        present: Bool[Array, "B T W"],
    ) -> dict[str, Float[Array, ""]]:
        """No loss."""
        del vector, taps, present
        return {}


class NoMemory(Stateless):
    """Stands for `ConditionalMemory` in a model without one: it has nothing to say."""

    def __call__(
        self, embeddings: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], past: tuple[()]
    ) -> tuple[MemoryReading, tuple[()]]:
        """A reading of zeros."""
        slots = jnp.zeros((*segment_ids.shape, 0, 0), embeddings.dtype)
        error = jnp.zeros(segment_ids.shape)
        nothing = MemoryReading(
            jnp.zeros_like(embeddings), slots, error, {}, jnp.zeros((0, 0, 0)), {}
        )
        return nothing, past

    def reseed(
        self,
        embeddings: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        counts: Float[Array, "S L K"],
        key: PRNGKeyArray,
    ) -> None:
        """Does nothing."""
        del embeddings, segment_ids, counts, key


def _learned(codebooks: Float[Array, "S L K D_c"]) -> Float[Array, "S L K D_c"]:
    return codebooks


def _mean(values: list[Float[Array, "..."]]) -> Float[Array, "..."]:
    return sum(values, jnp.zeros(())) / len(values)


def _different(real: Bool[Array, "E"], count: int, key: PRNGKeyArray) -> Int[Array, "N"]:
    """Places of `count` real events drawn without replacement; again from the start if too few."""
    order = jnp.argsort(jnp.where(real, jax.random.uniform(key, real.shape), 2.0))
    return order[jnp.arange(count) % jnp.maximum(jnp.sum(real), 1)]
