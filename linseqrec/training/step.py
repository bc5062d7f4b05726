"""The training state and the step that advances it: a plain function under `jax.jit`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from linseqrec import sharding
from linseqrec.data.rows import Batch
from linseqrec.sharding import while_tracing
from linseqrec.training.loss import PredictionLoss
from linseqrec.training.model import FunctionalModel

# Folded into a step's key: beyond the number of any key that it is split into.
_AFTER_STEP = 2**31 - 1


class _Reading(NamedTuple):
    """What a part of a batch gave beside its gradient; the parts' add up to the batch's."""

    losses: dict[str, Float[Array, ""]]
    metrics: dict[str, Float[Array, ""]]
    counts: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes.

    Attributes:
      step: Updates applied so far.
      params: The model's parameters, float32.
      buffers: The model's other variables, which no gradient moves: the model changes them itself
        in `after_step`. The optimizer has no moments for them.
      optimizer: Optax's state.
      halted: Set by the first non-finite loss or gradient; from then on nothing changes any more.
    """

    step: Int[Array, ""]
    params: nnx.State
    buffers: nnx.State
    optimizer: optax.OptState
    halted: Bool[Array, ""]

    @property
    def variables(self) -> nnx.State:
        """Parameters and buffers: what the model reads."""
        return nnx.merge_state(self.params, self.buffers)


def init_state(
    params: nnx.State, buffers: nnx.State, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        buffers=buffers,
        optimizer=optimizer.init(params),
        halted=jnp.zeros((), jnp.bool_),
    )


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    prediction_loss: PredictionLoss,
    *,
    seed: int,
    accumulation_steps: int = 1,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Builds the step.

    Randomness is folded from the seed and the step's number, so a resumed run repeats it; one that
    is resumed on another kind of device draws other numbers. With accumulation the batch is split
    into parts of rows; the prediction loss's gradient is the whole batch's, weighted by target, up
    to rounding. An auxiliary loss, like a model's metric, is the mean of the parts' own.

    Args:
      graphdef: The model's structure (`split_model`).
      optimizer: The Optax chain.
      prediction_loss: The objective (`make_loss`).
      seed: Of the keys of dropout and of drawn negatives.
      accumulation_steps: Parts a batch is split into.
      mesh: Where the batch is divided (`linseqrec.sharding`); None for one device.

    Returns:
      `step(state, batch) -> (state, metrics)`, not jitted. The metrics are scalars: "loss" (mean
      per target), "loss/NAME" of each auxiliary loss, the model's own, "gradient_norm",
      "update_norm", "targets" and "events" (counts). A step whose loss or gradient is not finite
      changes neither the model nor the optimizer, and halts the state.
    """
    # Accelerators have an instruction for "rbg" bits. With several devices, XLA would draw the bits
    # of all on each.
    on_one = jax.default_backend() != "cpu" and mesh is None
    generator = "rbg" if on_one else "threefry2x32"

    def part_loss(
        params: nnx.State,
        buffers: nnx.State,
        batch: Batch,
        total: Float[Array, ""],
        key: Array,
    ) -> tuple[Float[Array, ""], _Reading]:
        # Copies of the buffers: what the model writes here is not the state's.
        model = nnx.merge(graphdef, params, buffers, copy=True)
        dropout_key, loss_key = jax.random.split(key)
        with while_tracing(mesh):
            encoding = model(batch.events, dropout_key=dropout_key)
        summed = prediction_loss(encoding.hidden, model.item_table(), batch, loss_key)
        auxiliary = {name: loss / accumulation_steps for name, loss in encoding.losses.items()}
        loss = summed / total
        losses = {"loss": loss} | {f"loss/{name}": value for name, value in auxiliary.items()}
        metrics = {name: value / accumulation_steps for name, value in encoding.metrics.items()}
        return loss + sum(auxiliary.values()), _Reading(losses, metrics, encoding.counts)

    def gradient(
        params: nnx.State, buffers: nnx.State, batch: Batch, key: Array
    ) -> tuple[nnx.State, _Reading]:
        total = jnp.maximum(batch.weights.sum(), 1.0)
        grad = jax.grad(part_loss, has_aux=True)
        if accumulation_steps == 1:
            return grad(params, buffers, batch, total, key)

        def accumulate(sums: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
            read = grad(params, buffers, part[0], total, part[1])
            return jax.tree.map(jnp.add, sums, read), None

        def part(x: Array) -> Array:
            x = x.reshape(accumulation_steps, -1, *x.shape[1:])
            if mesh is None:
                return x
            # Each part is divided over the devices, not the parts among them.
            spec = PartitionSpec(None, *sharding.batch_spec(x.shape[1:]))
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        parts = jax.tree.map(part, batch)
        keys = jax.random.split(key, accumulation_steps)
        first = grad(params, buffers, jax.tree.map(lambda x: x[0], parts), total, keys[0])
        remaining = jax.tree.map(lambda x: x[1:], (parts, keys))
        return jax.lax.scan(accumulate, first, remaining)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed, impl=generator), state.step)
        grads, read = gradient(state.params, state.buffers, batch, key)
        norm = optax.tree.norm(grads)
        halted = state.halted | ~(jnp.isfinite(norm) & jnp.isfinite(sum(read.losses.values())))
        updates, after = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # Copied: the state keeps its buffers if the step is not applied.
        model = nnx.merge(graphdef, params, state.buffers, copy=True)
        model.after_step(batch.events, read.counts, jax.random.fold_in(key, _AFTER_STEP))
        params, buffers = nnx.state(model, nnx.Param, ...)
        advanced = TrainState(state.step + 1, params, buffers, after, halted)
        kept = dataclasses.replace(state, halted=halted)
        state = jax.tree.map(lambda new, old: jnp.where(halted, old, new), advanced, kept)
        counts = {"targets": batch.weights.sum(), "events": (batch.events.items > 0).sum()}
        norms = {"gradient_norm": norm, "update_norm": optax.tree.norm(updates)}
        return state, read.losses | read.metrics | norms | counts

    return step


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The training step of a run, compiled for its devices, and the state that it starts from.

    Attributes:
      model: The model; its mesh is what batches and state are divided over.
      optimizer: The Optax chain.
      prediction_loss: The objective (`make_loss`).
      seed: The seed of dropout and drawn negatives.
      accumulation_steps: Parts a batch is split into.
    """

    model: FunctionalModel
    optimizer: optax.GradientTransformation
    prediction_loss: PredictionLoss
    _: dataclasses.KW_ONLY
    seed: int
    accumulation_steps: int = 1

    def initial_state(self) -> TrainState:
        """The training state before the first step."""

        def make(params: nnx.State, buffers: nnx.State) -> TrainState:
            # Copied: the step consumes its state, and the variables may be asked for again.
            params, buffers = jax.tree.map(jnp.copy, (params, buffers))
            return init_state(params, buffers, self.optimizer)

        fresh = (self.model.initial_params, self.model.initial_buffers)
        if self.model.mesh is None:
            return make(*fresh)
        return jax.jit(make, out_shardings=self._shardings)(*fresh)

    @functools.cached_property
    def update(self) -> Any:
        """The compiled step, `(state, batch) -> (state, metrics)`; it consumes its state."""
        step = make_train_step(
            self.model.graphdef,
            self.optimizer,
            self.prediction_loss,
            seed=self.seed,
            accumulation_steps=self.accumulation_steps,
            mesh=self.model.mesh,
        )
        if self.model.mesh is None:
            return jax.jit(step, donate_argnums=0)
        return jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(self._shardings, None),
            out_shardings=(self._shardings, sharding.replicated(self.model.mesh)),
        )

    def place(self, batch: Batch) -> Batch:
        """This process's rows of a batch on the devices: all rows of all processes together."""
        return batch if self.model.mesh is None else sharding.place_batch(batch, self.model.mesh)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of those arrays of the state that the mesh pads, by name, without padding."""
        if self.model.mesh is None:
            return {}
        params, buffers = nnx.split_state(self.model.shapes, nnx.Param, ...)
        state = jax.eval_shape(lambda: init_state(params, buffers, self.optimizer))
        return sharding.shapes_before_padding(state, self.model.mesh)

    @functools.cached_property
    def _shardings(self) -> Any:
        assert self.model.mesh is not None
        params, buffers = self.model.initial_params, self.model.initial_buffers
        state = jax.eval_shape(lambda: init_state(params, buffers, self.optimizer))
        return sharding.state_shardings(state, self.model.mesh)
