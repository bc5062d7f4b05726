"""Training steps that update only the item rows which they touch.

With drawn negatives a batch has a gradient in a few thousand rows of the item table, and zeros in
all others. A step then reads these rows, updates them as if they were the whole table, and writes
them back: its time and memory do not grow with the catalogue.

Adam moves a row also where its gradient is zero, by the average of the gradients before. A row that
is read again is therefore brought up to date first. In k updates without a gradient, from the
update i on, and with r = b1 / sqrt(b2):

    m <- b1^k m;  v <- b2^k v
    row <- row - m / (sqrt(v) + sqrt(1 - b2^(i + 1)) epsilon) * sum over j = 1..k of
        r^j rate(i + j - 1) sqrt(1 - b2^(i + j)) / (1 - b1^(i + j))

This is what dense Adam does, except that its epsilon counts as in the first of the k updates, and
that terms of the sum below 1e-9 are left out. Source: ours.

Axis letters: N1 rows of the table, U rows that a batch touches.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.layers.standard import ItemRows
from linseqrec.training.optimizer import OptimizerConfig

# Terms of the sum below this are left out; the first is about 1.
_SMALLEST_TERM = 1e-9
# Terms of sums that `catch_up_all_rows` computes at a time: 64 MB.
_TERMS_AT_ONCE = 2**24

# `TrainState` of `step.py`, which builds on this module.
State = Any


@dataclasses.dataclass(frozen=True)
class CatchUpRule:
    """What Adam does to a row in updates in which its gradient is zero.

    Attributes:
      rate: The learning rate by update.
      b1: Decay of the gradient's average.
      b2: Decay of the squared gradient's average.
      epsilon: Added to the root of the squared average.
    """

    rate: optax.Schedule
    b1: float
    b2: float
    epsilon: float

    @classmethod
    def of(cls, config: OptimizerConfig, rate: optax.Schedule) -> "CatchUpRule":
        """The rule for the optimizer of `make_optimizer(config, rate)`."""
        return cls(rate, config.b1, config.b2, config.epsilon)

    def read_rows(self, state: State, rows: Int[Array, "U"]) -> State:
        """A training state of these item rows only, each up to date.

        Args:
          state: The training state; its `row_steps` say which updates a row has had.
          rows: Row numbers. A number outside the table gives a row of zeros.

        Returns:
          The state, with tables of U rows in parameters and optimizer, and without `row_steps`.
        """
        behind = state.row_steps.at[rows].get(mode="fill", fill_value=0)
        missed = (state.step - behind).astype(jnp.float32)[:, None]
        distance = self._distance(behind, state.step)[:, None]
        epsilon = self.epsilon * jnp.sqrt(1 - self.b2 ** (behind + 1.0))[:, None]

        def moved(row: Array, first: Array, second: Array) -> Array:
            return row - distance * first / (jnp.sqrt(second) + epsilon)

        def cut(table: Array) -> Array:
            return table.at[rows].get(mode="fill", fill_value=0)

        params, optimizer = of_rows(cut, (state.params, state.optimizer))
        mu, nu = optax.tree.get(optimizer, "mu"), optax.tree.get(optimizer, "nu")
        params = of_rows(moved, params, mu, nu)
        mu = of_rows(lambda first: first * self.b1**missed, mu)
        nu = of_rows(lambda second: second * self.b2**missed, nu)
        optimizer = optax.tree.set(optimizer, mu=mu, nu=nu)
        return dataclasses.replace(state, params=params, optimizer=optimizer, row_steps=None)

    def catch_up_all_rows(self, state: State) -> State:
        """The training state with all item rows up to date."""
        total = len(state.row_steps)
        size = min(total, max(1, _TERMS_AT_ONCE // self._terms))

        def next_block(block: Int[Array, ""], state: State) -> State:
            # The last block begins earlier, so as to be whole; rows that are up to date stay.
            rows = jnp.minimum(block * size, total - size) + jnp.arange(size)
            return write_rows(state, self.read_rows(state, rows), rows)

        return jax.lax.fori_loop(0, -(-total // size), next_block, state)

    def supports(self, shapes: tuple[nnx.State, nnx.State]) -> bool:
        """Whether a step may update single item rows of a model.

        The terms of the sum must shrink. And all arrays with a row per item must be `ItemRows`: a
        model that reads another array by item would read wrong rows of it.

        Args:
          shapes: Those of the model's parameters and buffers, without a mesh's padding.
        """
        nodes = jax.tree.leaves(shapes, is_leaf=lambda node: isinstance(node, ItemRows))
        tables = {_rows_in(node) for node in nodes if isinstance(node, ItemRows)}
        others = {_rows_in(node) for node in nodes if not isinstance(node, ItemRows)}
        return self._ratio < 1 and len(tables) == 1 and not tables & others

    @property
    def _ratio(self) -> float:
        return self.b1 / math.sqrt(self.b2) if self.b2 > 0 else math.inf

    @property
    def _terms(self) -> int:
        """The number of terms of the sum that count."""
        if self._ratio <= 0:
            return 1
        return math.ceil(math.log(_SMALLEST_TERM) / math.log(self._ratio))

    def _distance(self, behind: Int[Array, "U"], step: Int[Array, ""]) -> Float[Array, "U"]:
        """The sum in the module's text."""
        ahead = jnp.arange(1, 1 + self._terms)
        update = behind[:, None] + ahead - 1
        count = (update + 1).astype(jnp.float32)
        correction = jnp.sqrt(1 - self.b2**count) / (1 - self.b1**count)
        summands = self._ratio**ahead * jax.vmap(jax.vmap(self.rate))(update) * correction
        return jnp.where(update < step, summands, 0).sum(axis=1)


def _rows_in(tree: Any) -> tuple[int, ...]:
    """The length of a variable's first axis, in a tuple; () for a scalar."""
    return jax.tree.leaves(tree)[0].shape[:1]


def of_rows(function: Callable[..., Array], tree: Any, *others: Any) -> Any:
    """A tree with other values of its item tables; all other leaves stay.

    Args:
      function: From a table's value, and those at its place in `others`, to the new value.
      tree: Parameters, or a state with trees of their form.
      others: Trees of the same form.
    """

    def changed(leaf: Any, *beside: Any) -> Any:
        if not isinstance(leaf, ItemRows):
            return leaf
        return leaf.replace(function(leaf[...], *(each[...] for each in beside)))

    return jax.tree.map(changed, tree, *others, is_leaf=lambda node: isinstance(node, nnx.Variable))


def num_table_rows(params: Any) -> int:
    """N1, the rows of the item tables among the parameters."""
    leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, ItemRows))
    return next(len(leaf[...]) for leaf in leaves if isinstance(leaf, ItemRows))


def rows_of_ids(ids: Sequence[Int[Array, "..."]], num_rows: int) -> Int[Array, "U"]:
    """The item rows that a step reads, ascending, the padding item's row 0 first.

    Args:
      ids: The item ids of a batch and of its negatives.
      num_rows: N1, rows of the item table.

    Returns:
      Row numbers [U], filled up at the end with `num_rows`, which is no row. U is the number of ids
      plus 1, at most N1.
    """
    size = min(1 + sum(math.prod(each.shape) for each in ids), num_rows)
    every = jnp.concatenate([jnp.zeros(1, jnp.int32), *(jnp.ravel(each) for each in ids)])
    return jnp.unique(every, size=size, fill_value=num_rows)


def row_numbers(ids: Int[Array, "..."], rows: Int[Array, "U"]) -> Int[Array, "..."]:
    """Where item ids stand in the rows that `rows_of_ids` returned."""
    return jnp.searchsorted(rows, ids).astype(jnp.int32)


def write_rows(state: State, row_state: State, rows: Int[Array, "U"]) -> State:
    """The state `row_state`, with its item rows written to `rows` in the tables of `state`."""
    merged = of_rows(
        lambda part, table: table.at[rows].set(part, mode="drop"),
        dataclasses.replace(row_state, row_steps=None),
        dataclasses.replace(state, row_steps=None),
    )
    row_steps = state.row_steps.at[rows].set(row_state.step, mode="drop")
    return dataclasses.replace(merged, row_steps=row_steps)
