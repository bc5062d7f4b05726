"""GRU4Rec: recurrent neural networks for recommendation (arXiv 1511.06939, 1706.03847).

    X = Drop(E[items])
    per layer:  X = Drop(GRU(X))
    scores = X E^T

Marked [P]: the papers and the authors' PyTorch code. Marked [O]: ours.

- [P] The cell (`GRU`), an item table tied to the output (the authors' constrained embedding), one
  layer, the places of dropout, and the starting values of the GRUs.
- [O] Fresh item vectors are drawn from N(0, 1/D), as in this library's other models. The authors'
  are uniform up to ±√(6 / (N + D)) and are trained by Adagrad. Adam hardly moves so small a table
  beyond popularity: validation NDCG@10 is .086 after 12 epochs on 300 users of the quick world.
  From N(0, 1/D) it is .155.
- [O] The loss is the experiment's, by default full cross-entropy. Published are TOP1, BPR-max and
  sampled cross-entropy.
- [O] Gradients go back through whole rows. The authors' go back one event.
- [O] Dropout falls on a layer's outputs. The authors' code also drops entries of the carried state,
  which over hundreds of events would erase it.
- [O] The scores have no bias per item, as in every model here. The authors' have one.

The parameters by name, with i the layer from 0, kernels [in, out]. Columns are those of the reset
gate, then of the update gate, then of the candidate, as in PyTorch's cells:

    embedding/table [N + 1, D]                    E; row 0 is the padding item
    layers/i/input/kernel [D, 3 D]                W_i;  bias
    layers/i/recurrent/kernel [D, 3 D]            W_h;  bias
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from linseqrec.config_fields import Count, Rate
from linseqrec.events import Events
from linseqrec.layers.standard import Dense, ItemEmbedding, dropout, split_key
from linseqrec.layers.states import empty
from linseqrec.models.base import Dtype, Encoding, ModelConfig, SequenceModel, request_layer
from linseqrec.ops.segments import keep, run_starts, segment_runs


@dataclasses.dataclass(frozen=True)
class GRU4RecConfig(ModelConfig):
    """GRU4Rec's hyperparameters.

    Attributes:
      width: D, of the items' vectors and of the states.
      num_layers: GRUs, one behind the other.
      dropout: Rate on the embeddings and on each layer's output. The authors search the two rates
        for each log, from 0 to .5.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
        States are float32.
    """

    width: Count = 64
    num_layers: Count = 1
    dropout: Rate = 0.2
    dtype: Dtype = "auto"

    reads_request_times = True

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "GRU4Rec":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return GRU4Rec(self, num_items, request_time=request_time, rngs=rngs)


class GRU(nnx.Module):
    """A gated recurrent unit over each history.

        r, z = σ(W_i x + b_i + W_h h + b_h)
        n = tanh(W_i x + b_i + r ⊙ (W_h h + b_h))
        h = (1 - z) ⊙ n + z ⊙ h

    Source: arXiv 1406.1078, with the reset after the product, as PyTorch has it.
    """

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.width = width
        self.input = Dense(width, 3 * width, dtype=dtype, rngs=rngs)
        self.recurrent = Dense(width, 3 * width, dtype=dtype, rngs=rngs)
        # The authors' starting values: Glorot's bound of one square kernel a gate.
        bound = (3 / width) ** 0.5
        for layer in (self.input, self.recurrent):
            layer.kernel[...] = jax.random.uniform(
                rngs.params(), (width, 3 * width), minval=-bound, maxval=bound
            )

    def initial_state(self, batch_size: int) -> Float[Array, "B D"]:
        """The state before any event."""
        return empty(batch_size, self.width)

    def __call__(
        self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], state: Float[Array, "B D"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
        """Takes the state through a row's events.

        Args:
          x: Inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: The past of each row's first segment, float32.

        Returns:
          The state after each event, 0 at padding; and after each row's last segment, float32.
        """
        real, runs = segment_ids > 0, segment_runs(segment_ids)
        starts = run_starts(runs)

        def step(
            state: Float[Array, "B D"],
            now: tuple[Float[Array, "B E"], Bool[Array, "B"], Bool[Array, "B"]],
        ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
            projected, start, event = now
            before = keep(~start, state)
            recalled = self.recurrent(before.astype(projected.dtype)).astype(jnp.float32)
            gates, candidate = jnp.split(projected.astype(jnp.float32), [2 * self.width], axis=-1)
            of_gates, of_candidate = jnp.split(recalled, [2 * self.width], axis=-1)
            reset, update = jnp.split(jax.nn.sigmoid(gates + of_gates), 2, axis=-1)
            new = jnp.tanh(candidate + reset * of_candidate)
            state = jnp.where(event[:, None], (1 - update) * new + update * before, state)
            return state, state

        over_time = jax.tree.map(
            lambda a: jnp.moveaxis(a, 1, 0), (keep(real, self.input(x)), starts, real)
        )
        # Derived from the inputs: inside shard_map, a scan's carry has to vary as they do.
        begin = jnp.asarray(state) + jnp.zeros_like(x[:, 0], dtype=jnp.float32)
        state, states = jax.lax.scan(step, begin, over_time)
        return keep(real, jnp.moveaxis(states, 0, 1)).astype(x.dtype), state


class GRU4Rec(SequenceModel):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: GRU4RecConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [GRU(width, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> list[Float[Array, "B D"]]:
        """One state per layer."""
        return [layer.initial_state(batch_size) for layer in self.layers]

    def encode(
        self, events: Events, state: list[Float[Array, "B D"]], *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D], no auxiliary losses, and one state per layer."""
        embedding_key, *layer_keys = split_key(dropout_key, 1 + len(self.layers))
        x = self.request_time.enter(self.embedding(events.items), events)
        x = dropout(x, self.config.dropout, embedding_key)
        after = []
        for layer, before, key in zip(self.layers, state, layer_keys, strict=True):
            x, moved = layer(x, events.segment_ids, before)
            x = dropout(x, self.config.dropout, key)
            after.append(moved)
        return Encoding(self.request_time.leave(x, events), state=after)
