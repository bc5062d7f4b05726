"""The training state and the step that advances it: a plain function under `jax.jit`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from linseqrec import sharding
from linseqrec.data.rows import Batch
from linseqrec.events import Events
from linseqrec.models.base import SequenceModel
from linseqrec.training import item_rows
from linseqrec.training.loss import PredictionLoss
from linseqrec.training.model import FunctionalModel

# `fold_in` index of the key of `after_step`; no other key of a step uses it.
_AFTER_STEP = 2**31 - 1


class _MicrobatchResult(NamedTuple):
    """Losses, metrics and counts of a microbatch; their sums over microbatches are the batch's."""

    losses: dict[str, Float[Array, ""]]
    metrics: dict[str, Float[Array, ""]]
    counts: Any


class _Microbatch(NamedTuple):
    """Rows of a batch, with the randomness that is drawn for them."""

    batch: Batch
    negatives: Int[Array, "..."]
    dropout_key: Array


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
      halted: Set by the first non-finite loss, gradient or update; nothing changes after it.
      row_steps: The updates that each item's row has had, in `params` and `optimizer`: a step
        brings a row up to date when it reads it (`item_rows`). None: all have had all updates.
    """

    step: Int[Array, ""]
    params: nnx.State
    buffers: nnx.State
    optimizer: optax.OptState
    halted: Bool[Array, ""]
    row_steps: Int[Array, "N1"] | None = None

    @property
    def variables(self) -> nnx.State:
        """Parameters and buffers: what the model reads."""
        return nnx.merge_state(self.params, self.buffers)


def init_state(
    params: nnx.State,
    buffers: nnx.State,
    optimizer: optax.GradientTransformation,
    *,
    by_rows: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      params: Fresh parameters.
      buffers: The fresh other variables.
      optimizer: The Optax chain.
      by_rows: Whether steps update single rows of the item table.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        buffers=buffers,
        optimizer=optimizer.init(params),
        halted=jnp.zeros((), jnp.bool_),
        row_steps=jnp.zeros(item_rows.num_table_rows(params), jnp.int32) if by_rows else None,
    )


def _num_events(batch: Batch) -> Int[Array, ""]:
    return (batch.events.items > 0).sum()


def _with_row_numbers(part: _Microbatch, rows: Int[Array, "U"]) -> _Microbatch:
    """The microbatch with row numbers, places in `rows`, for item ids."""
    batch, negatives = part.batch, item_rows.row_numbers(part.negatives, rows)
    targets = item_rows.row_numbers(batch.targets, rows)
    batch = dataclasses.replace(
        batch, events=_events_with_row_numbers(batch.events, rows), targets=targets
    )
    return part._replace(batch=batch, negatives=negatives)


def _events_with_row_numbers(events: Events, rows: Int[Array, "U"]) -> Events:
    return dataclasses.replace(events, items=item_rows.row_numbers(events.items, rows))


@dataclasses.dataclass(frozen=True)
class States:
    """The training states of a model: fresh ones, and any with all item rows up to date.

    Attributes:
      model: The model; its mesh is what a state is divided over.
      optimizer: The Optax chain.
      catch_up: What the optimizer does to item rows whose gradient is zero, if steps update single
        rows of the item table; None if they update the whole table.
    """

    model: FunctionalModel
    optimizer: optax.GradientTransformation
    catch_up: item_rows.CatchUpRule | None

    def initial_state(self) -> TrainState:
        """The training state before the first step."""
        if self.model.mesh is None:
            return self._init_state(*self.model.fresh())
        return jax.jit(self._init_state, out_shardings=self._shardings)(*self.model.fresh())

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and devices of the arrays of `initial_state`."""
        return sharding.abstract(self._unpadded, self.model.mesh)

    def up_to_date(self, state: TrainState) -> TrainState:
        """The state with all item rows as after its last step; it consumes the state.

        Steps on drawn negatives leave rows behind that they do not read. Before the table is used
        as a whole, all are brought up to date.
        """
        return self._catch_up_all(state)

    @functools.cached_property
    def _catch_up_all(self) -> Callable[[TrainState], TrainState]:
        if self.catch_up is None:
            return lambda state: state
        return jax.jit(
            self.catch_up.catch_up_all_rows,
            donate_argnums=0,
            in_shardings=(self._shardings,),
            out_shardings=self._shardings,
        )

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of those arrays of the state that the mesh pads, by name, without padding."""
        if self.model.mesh is None:
            return {}
        return sharding.shapes_before_padding(self._unpadded, self.model.mesh)

    @functools.cached_property
    def _unpadded(self) -> TrainState:
        return jax.eval_shape(self._init_state, *self.model.shapes)

    @functools.cached_property
    def _shardings(self) -> Any:
        """The shardings of the state's arrays; None without a mesh."""
        if self.model.mesh is None:
            return None
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    def _init_state(self, params: nnx.State, buffers: nnx.State) -> TrainState:
        by_rows = self.catch_up is not None
        return init_state(params, buffers, self.optimizer, by_rows=by_rows)


@dataclasses.dataclass(frozen=True)
class CompiledStep(States):
    """The training step of a run, compiled for its devices, and the state that it starts from.

    The seed and the step's number give all random numbers. A resumed run draws the same ones on the
    same kind of device; another kind draws others. Accumulation splits the batch into microbatches.
    The gradient of the prediction loss is, up to rounding, that of the whole batch, weighted by
    target. Auxiliary losses and the model's metrics are means over microbatches, weighted by their
    events.

    Attributes:
      prediction_loss: The objective (`make_loss`).
      seed: The seed of dropout and drawn negatives.
      accumulation_steps: Microbatches that a batch is split into.
    """

    prediction_loss: PredictionLoss
    seed: int
    accumulation_steps: int = 1

    @functools.cached_property
    def update(self) -> Any:
        """`step`, compiled; it consumes its state."""
        mesh = self.model.mesh
        return jax.jit(
            self.step,
            donate_argnums=0,
            in_shardings=(self._shardings, None),
            out_shardings=(self._shardings, None if mesh is None else sharding.replicated(mesh)),
        )

    @functools.cached_property
    def structure(self) -> Any:
        """The structure of all training states; between the steps of a run, arrays are enough."""
        return jax.tree.structure(self.abstract_state)

    @functools.cached_property
    def update_arrays(self) -> Any:
        """`update` for the arrays of a state alone, compiled."""

        def step(arrays: list[Array], batch: Batch) -> tuple[list[Array], dict[str, Array]]:
            state, metrics = self.update(jax.tree.unflatten(self.structure, arrays), batch)
            return jax.tree.leaves(state), metrics

        return jax.jit(step, donate_argnums=0)

    def place(self, batch: Batch) -> Batch:
        """The batch of all processes on the devices, made from this process's rows."""
        return batch if self.model.mesh is None else sharding.place_batch(batch, self.model.mesh)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Updates a state by a batch; a plain function, for `jax.jit`.

        Args:
          state: The state. If it has `row_steps`, the step reads and writes only the item rows that
            the batch and its negatives name.
          batch: The batch of all processes.

        Returns:
          The state after the step, and metrics, which are scalars: "loss" (mean per target),
          "loss/NAME" of each auxiliary loss, the model's own, "gradient_norm", "update_norm",
          "targets" and "events" (counts). A step whose loss, gradient or update is not finite
          changes neither the model nor the optimizer, and halts the state.
        """
        counts = {"targets": batch.weights.sum(), "events": _num_events(batch)}
        key = jax.random.fold_in(jax.random.key(self.seed, impl=self._generator), state.step)
        parts = self._split_batch(batch, key)
        if state.row_steps is None or self.catch_up is None:
            state, metrics = self._apply_update(state, batch.events, parts, key)
            return state, metrics | counts
        # ------------------------------------------------- the rows that the batch names
        ids = (batch.events.items, batch.targets, parts.negatives)
        rows = item_rows.rows_of_ids(ids, len(state.row_steps))
        row_state = self.catch_up.read_rows(state, rows)
        # ------------------------------------------------- the update, of these rows only
        events, parts = _events_with_row_numbers(batch.events, rows), _with_row_numbers(parts, rows)
        row_state, metrics = self._apply_update(row_state, events, parts, key, rows)
        # ------------------------------------------------- back into the table
        return item_rows.write_rows(state, row_state, rows), metrics | counts

    def _apply_update(
        self,
        state: TrainState,
        events: Events,
        parts: _Microbatch,
        key: Array,
        rows: Int[Array, "U"] | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        grads, result = self._gradient(state.params, state.buffers, parts, rows)
        updates, after = self.optimizer.update(grads, state.optimizer, state.params)
        norms = {"gradient_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        decisive = jnp.stack([*result.losses.values(), *norms.values()])
        halted = state.halted | ~jnp.isfinite(decisive).all()
        params = optax.apply_updates(state.params, updates)
        # Copied: the state keeps its buffers if the step is not applied.
        model = nnx.merge(self.model.graphdef, params, state.buffers, copy=True)
        model.after_step(events, result.counts, jax.random.fold_in(key, _AFTER_STEP))
        params, buffers = nnx.state(model, nnx.Param, ...)
        advanced = TrainState(state.step + 1, params, buffers, after, halted)
        unchanged = dataclasses.replace(state, halted=halted)
        state = jax.tree.map(lambda new, old: jnp.where(halted, old, new), advanced, unchanged)
        return state, result.losses | result.metrics | norms

    def _gradient(
        self,
        params: nnx.State,
        buffers: nnx.State,
        parts: _Microbatch,
        rows: Int[Array, "U"] | None,
    ) -> tuple[nnx.State, _MicrobatchResult]:
        num_targets = jnp.maximum(parts.batch.weights.sum(), 1.0)
        num_events = jnp.maximum(_num_events(parts.batch), 1.0)
        grad = jax.grad(self._microbatch_loss, has_aux=True)
        if self.accumulation_steps == 1:
            return grad(params, buffers, parts, num_targets, num_events, rows)

        def accumulate(sums: Any, part: _Microbatch) -> tuple[Any, None]:
            result = grad(params, buffers, part, num_targets, num_events, rows)
            return jax.tree.map(jnp.add, sums, result), None

        first = grad(
            params, buffers, jax.tree.map(lambda x: x[0], parts), num_targets, num_events, rows
        )
        return jax.lax.scan(accumulate, first, jax.tree.map(lambda x: x[1:], parts))[0]

    def _microbatch_loss(
        self,
        params: nnx.State,
        buffers: nnx.State,
        part: _Microbatch,
        num_targets: Float[Array, ""],
        num_events: Float[Array, ""],
        rows: Int[Array, "U"] | None,
    ) -> tuple[Float[Array, ""], _MicrobatchResult]:
        # Copies of the buffers: what the model writes here is not the state's.
        model = nnx.merge(self.model.graphdef, params, buffers, copy=True)
        with sharding.while_tracing(self.model.mesh):
            encoding = model(part.batch.events, dropout_key=part.dropout_key)
        _check_unchanged(model, params, buffers)
        table = model.item_table()
        summed = self.prediction_loss(encoding.hidden, table, part.batch, part.negatives, rows)
        # The model's own losses and metrics are means over events.
        share = _num_events(part.batch) / num_events
        auxiliary = {name: share * loss for name, loss in encoding.losses.items()}
        loss = summed / num_targets
        losses = {"loss": loss} | {f"loss/{name}": value for name, value in auxiliary.items()}
        metrics = {name: share * value for name, value in encoding.metrics.items()}
        return loss + sum(auxiliary.values()), _MicrobatchResult(losses, metrics, encoding.counts)

    def _split_batch(self, batch: Batch, key: Array) -> _Microbatch:
        """The microbatches; if there are several, arrays have a leading axis over them."""
        if self.accumulation_steps == 1:
            return self._with_randomness(batch, key)
        keys = jax.random.split(key, self.accumulation_steps)
        return jax.lax.map(
            lambda part: self._with_randomness(*part), (jax.tree.map(self._split_rows, batch), keys)
        )

    def _split_rows(self, x: Array) -> Array:
        x = x.reshape(self.accumulation_steps, -1, *x.shape[1:])
        if self.model.mesh is None:
            return x
        # Each microbatch is divided over the devices.
        spec = PartitionSpec(None, *sharding.batch_spec(x.shape[1:]))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.model.mesh, spec))

    def _with_randomness(self, batch: Batch, key: Array) -> _Microbatch:
        dropout_key, loss_key = jax.random.split(key)
        negatives = self.prediction_loss.draw(loss_key, batch.targets.shape)
        return _Microbatch(batch, negatives, dropout_key)

    @property
    def _generator(self) -> str:
        """JAX's generator of random bits."""
        # Accelerators have an instruction for "rbg" bits. With several devices, XLA would draw the
        # bits of all devices on each.
        on_one = jax.default_backend() != "cpu" and self.model.mesh is None
        return "rbg" if on_one else "threefry2x32"


def _check_unchanged(model: SequenceModel, params: nnx.State, buffers: nnx.State) -> None:
    """Refuses a model whose `encode` has written into its variables: the step drops that."""
    before = jax.tree_util.tree_leaves_with_path(nnx.merge_state(params, buffers))
    after = jax.tree.leaves(nnx.state(model))
    written = [
        sharding.parameter_path(path)
        for (path, old), new in zip(before, after, strict=True)
        if new is not old
    ]
    if written:
        raise ValueError(
            f"{type(model).__name__}.encode wrote to {', '.join(written)}, which a step drops: "
            "return what a statistic needs as Encoding.counts and write it in after_step, and draw "
            "random numbers from dropout_key (nnx.BatchNorm and nnx.Dropout do neither)"
        )


class StepRunner:
    """Runs the compiled step on a training state, which is plain arrays between the steps.

    Flax's variables are objects of Python. To take 190 of them apart and to put them together again
    costs a step .9 ms, which a GPU would wait for.
    """

    def __init__(self, compiled: CompiledStep, state: TrainState):
        """Args: `compiled` is the step; `state` is the state to begin with, which it consumes."""
        self._compiled, self._arrays = compiled, jax.tree.leaves(state)

    def step(self, batch: Batch) -> dict[str, Array]:
        """Updates the state by a batch, and returns the step's metrics."""
        self._arrays, metrics = self._compiled.update_arrays(self._arrays, batch)
        return metrics

    @property
    def state(self) -> TrainState:
        """The state as it is now. The next step consumes it."""
        return jax.tree.unflatten(self._compiled.structure, self._arrays)

    def catch_up(self) -> None:
        """Brings all item rows up to date (`States.up_to_date`)."""
        self._arrays = jax.tree.leaves(self._compiled.up_to_date(self.state))
