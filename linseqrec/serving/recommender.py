"""`Recommender`: recommends while events arrive, and reads each event only once."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from linseqrec.config_json import to_json
from linseqrec.errors import first_ten
from linseqrec.evaluation.ranks import NonFiniteScoreError
from linseqrec.evaluation.visits import seen_slots
from linseqrec.events import Events
from linseqrec.files import sha256_of_json
from linseqrec.models.base import ModelConfig, SequenceModel
from linseqrec.ops.top_k import catalogue_top_k
from linseqrec.serving.states import (
    Identity,
    ServingError,
    UserStates,
    load_states,
    save_states,
)
from linseqrec.sharding import named_leaves
from linseqrec.training import saved_run
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.model import FunctionalModel, split_model

Tree = TypeVar("Tree")

_LAST_SECOND = np.iinfo(np.int32).max
# The year 2000. If a log begins later, a time from its origin on must be on the log's own clock: as
# seconds since the first event it would lie 30 years ahead.
_LATE_ORIGIN = 946_684_800
# What a run's card must hold.
_CARD = {"counts": {"items": int}, "time": {"first": int}}


class Recommender:
    """Updates users' states with new events, and recommends items from the states.

    An update costs the same for a user's 10th and 10,000th event. Up to rounding, a recommendation
    equals the model's output for the user's whole history. `launch.evaluate` differs: it reads only
    the last T events of a history.

    Times are seconds since the first event of the data set that the model was trained on
    (`Events.timestamps`); `seconds` converts the log's own times. In a log without times, the time
    of an event is its number in its history.

    Attributes:
      num_items: N.
      origin: The time of the data set's first event, in seconds on the log's own clock.
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        origin: int = 0,
        request_time: bool = False,
        longest_history: int | None = None,
        identity: Identity | None = None,
        chunk_length: int = 512,
        item_block: int = 8192,
    ):
        """Makes a recommender from a model in memory.

        Args:
          model: The model with its trained parameters.
          origin: `Dataset.origin` of the data set that the model was trained on.
          request_time: Whether the model reads request times, because it was trained with
            data.request_time="known".
          longest_history: The most events of a user that the model can read
            (`ModelConfig.longest_row`); None for any number.
          identity: Fields to add to the model's class and parameters in `identity`, by which
            `load` recognizes states of another model.
          chunk_length: Number of events that `start` encodes at once. Changes memory and speed,
            not results.
          item_block: Items to score at once, a multiple of 64. Changes memory and speed, not
            results.

        Raises:
          ServingError: The model cannot carry a state, or `chunk_length` is below 1.
        """
        if chunk_length < 1:
            raise ServingError(f"chunk_length must be at least 1, got {chunk_length}")
        self._identity_fields: Identity = {"model": type(model).__name__, **(identity or {})}
        if request_time:
            self._identity_fields = {**self._identity_fields, "request_time": "known"}
        self._request_time, self._longest_history = request_time, longest_history
        self._graphdef, self._params, self._rest = split_model(model)
        self._table = model.item_table()
        self.num_items, self.origin = self._table.shape[0] - 1, origin
        self._last_second = (
            min(_LAST_SECOND, origin - 1) if origin >= _LATE_ORIGIN else _LAST_SECOND
        )
        # A model with learned positions has no position beyond its max_length.
        self._chunk_length = min(chunk_length, longest_history or chunk_length)
        self._item_block = item_block
        self._initial_states = jax.jit(self._before_any_event, static_argnums=1)
        self._advance = jax.jit(
            self._after_events_and_requests if request_time else self._after_events
        )
        self._read_pending = jax.jit(self._hidden_at)
        if not model.carries_state:
            raise ServingError(
                f"this {type(model).__name__} carries no state from event to event (SASRec, HSTU, "
                "RecGRELA with causal=False and HyTRec with time='shuffled' read whole histories): "
                "use python -m launch.recommend, which reads whole histories"
            )

    @classmethod
    def from_workdir(
        cls, folder: str | Path, checkpoint: str | int = "best", **settings: int
    ) -> Self:
        """A recommender with the model of a run. Does not read the data set.

        Args:
          folder: The run's workdir.
          checkpoint: "best", "latest", or a step.
          **settings: `chunk_length` and `item_block` of the constructor.

        Raises:
          CheckpointError: There is no such checkpoint, or it does not fit the run's configuration.
          FileError: `config.json` or `card.json` is damaged.
          ServingError: The model cannot carry a state.
          WorkdirError: The folder is not the workdir of a run.
        """
        folder = Path(folder)
        experiment, card = saved_run.read_experiment(folder), saved_run.read_card(folder, _CARD)
        num_items = card["counts"]["items"]
        model = FunctionalModel.of(experiment, num_items, None)
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            step = checkpoints.resolve(checkpoint)
            variables = checkpoints.restore_variables(step, model, experiment.optimizer)
        return cls(
            model.merge(variables),
            origin=card["time"]["first"],
            request_time=experiment.data.request_time == "known",
            longest_history=experiment.model.longest_row,
            # What else a configuration holds changes no state, and much of it may be edited.
            identity={"configuration": _digest(experiment.model), "checkpoint": step},
            **settings,
        )

    def seconds(self, times: Any) -> Int[np.ndarray, "B"]:
        """Times in seconds since the data set's first event, int32, as `start` and `update` need.

        Args:
          times: Integers of any shape: times in whole seconds on the log's own clock, as in
            `Dataset.timestamps`. Most logs count seconds since 1970. 0 may stand for no event
            (item 0), also in a log that begins after 0.

        Raises:
          ServingError: A time is before the data set's first event, or far after it: 68 years, or
            in a log that begins after 2000 as long as that log's clock has run before it.
        """
        times = _integers("times", times)
        since_origin = np.where(times == 0, max(-self.origin, 0), times - self.origin)
        bad = since_origin[(since_origin < 0) | (since_origin > self._last_second)]
        if bad.size:
            raise ServingError(
                f"time {int(bad[0]) + self.origin} is not from {self.origin}, the time of the data "
                f"set's first event, to {self.origin + self._last_second}: give whole seconds on "
                "the log's own clock"
            )
        return since_origin.astype(np.int32)

    def start(self, history: Events) -> UserStates:
        """The states of users after their whole histories, which may have any length.

        Args:
          history: [B, T], one user per row, in time order, as from `gather_histories`. Events have
            segment 1 and positions from 0; padding is on the right only. A row without events is a
            new user. The method ignores `request_times` and takes the next event's time instead.

        Raises:
          ServingError: The rows do not have this form, an item or a time is out of range, or a
            history is longer than the model can read.
        """
        items, timestamps = self._checked_events(*_checked_rows(history))
        self._check_lengths((items > 0).sum(axis=1))
        num_users, longest = items.shape
        if not num_users:
            raise ServingError("the history has no rows: give one row per user")
        # Widths are powers of 2, so that JAX compiles for few of them.
        width = min(self._chunk_length, 1 << (longest - 1).bit_length())
        padding = ((0, 0), (0, -longest % width))
        items, timestamps = np.pad(items, padding), np.pad(timestamps, padding)
        states = self._initial_states(self._params, num_users)
        for first in range(0, items.shape[1], width):
            chunk = np.s_[:, first : first + width]
            states = self._advance(self._params, states, items[chunk], timestamps[chunk])
        return states

    def update(
        self, states: UserStates, items: Int[Any, "B"], timestamps: Int[Any, "B"]
    ) -> UserStates:
        """The states after one more event of each user.

        Args:
          states: The states before the events; the method does not change them.
          items: [B], item ids; 0 for a user without a new event.
          timestamps: [B], seconds since the data set's first event; any number if the item is 0. If
            an event arrives late, its time is raised to that of the user's last event.

        Returns:
          New states. Those of users without a new event are equal to the bit.

        Raises:
          ServingError: The number of items or times is not B, one of them is out of range, or a
            history becomes longer than the model can read.
        """
        items, timestamps = _integers("items", items), _integers("timestamps", timestamps)
        if items.shape != (states.num_users,) or timestamps.shape != items.shape:
            raise ServingError(
                f"the states are of {states.num_users} users, but items have shape {items.shape} "
                f"and timestamps {timestamps.shape}: give one item and one time per user"
            )
        items, timestamps = self._checked_events(items[:, None], timestamps[:, None])
        self._check_lengths(np.asarray(states.length) + (items[:, 0] > 0))
        return self._advance(self._params, states, items, timestamps)

    def recommend(
        self,
        states: UserStates,
        k: int,
        filter_seen: Int[Any, "B S"] | None = None,
        *,
        items: Int[Any, "C"] | None = None,
        now: int | Int[Any, "B"] | None = None,
    ) -> tuple[Int[np.ndarray, "B K"], Float[np.ndarray, "B K"]]:
        """The K best items of the catalogue for each user.

        Args:
          states: The users' states. Each user must have at least one event.
          k: K, from 1 to N. JAX compiles once for each value.
          filter_seen: Items to leave out, one row per user, in any order, padded with 0; None
            leaves out no item.
          items: The items to choose from, for all users, in any order; None: all of the catalogue.
          now: The time of the request, in seconds since the data set's first event: one for all
            users, or one per user [B]. Required for a model that reads request times; must be None
            for other models.

        Returns:
          ids: int32 [B, K], best first; of equal scores, the lower id first. Filled up with 0 if
            fewer than K items are left.
          scores: float32 [B, K]; -inf where the id is 0.

        Raises:
          NonFiniteScoreError: Some scores are NaN or infinite; names the users' rows.
          ServingError: A user has no event, an item of `filter_seen` or `items` is not in the
            catalogue, or `now` is missing, not allowed, or earlier than a user's last event.
          ValueError: `k` is not in 1..N.
        """
        without_event = np.flatnonzero(np.asarray(states.length) == 0)
        if without_event.size:
            raise ServingError(
                f"the users in rows {first_ten(without_event)} have no event yet, "
                "so the model has nothing to recommend from: leave these users out"
            )
        seen = None
        if filter_seen is not None:
            seen = _integers("filter_seen", filter_seen)
            if seen.ndim != 2 or len(seen) != states.num_users:
                raise ServingError(
                    f"filter_seen must be [{states.num_users}, S], one row per user, got "
                    f"{seen.shape}"
                )
            self._check_items(seen)
            padding = ((0, 0), (0, seen_slots(seen.shape[1]) - seen.shape[1]))
            seen = np.pad(seen, padding).astype(np.int32)
        allowed = None
        if items is not None:
            chosen = _integers("items", items).reshape(-1)
            self._check_items(chosen[None])
            allowed = np.zeros(self._table.shape[0], bool)
            allowed[chosen] = True
        requests = self._requests(states, now)
        hidden = (
            states.hidden
            if requests is None
            else self._read_pending(self._params, states, requests)
        )
        assert hidden is not None
        ids, scores, finite = catalogue_top_k(
            hidden, self._table, k, seen, allowed=allowed, item_block=self._item_block
        )
        bad = np.flatnonzero(~np.asarray(finite))
        if bad.size:
            raise NonFiniteScoreError(bad)
        return np.asarray(ids), np.asarray(scores)

    @functools.cached_property
    def identity(self) -> dict[str, str | int]:
        """The model's class, a digest of its parameters, and the fields given to the constructor.

        The first access reads all parameters.
        """
        digest = hashlib.sha256()
        for name, leaf in named_leaves(self._params).items():
            digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
            digest.update(np.asarray(leaf).tobytes())
        return {**self._identity_fields, "parameters": digest.hexdigest()}

    def save(self, path: str | Path, states: UserStates) -> None:
        """Writes states and the model's identity to an `.npz` file (see `save_states`)."""
        save_states(path, states, self.identity)

    def load(self, path: str | Path) -> UserStates:
        """The states in a file. Those of another model are an error (see `load_states`)."""
        return load_states(path, self.identity, self._shapes)

    def _shapes(self, num_users: int) -> UserStates:
        """States whose leaves are `jax.ShapeDtypeStruct`s."""
        before = functools.partial(self._before_any_event, num_users=num_users)
        return jax.eval_shape(before, self._params)

    def _before_any_event(self, params: nnx.State, num_users: int) -> UserStates:
        model = nnx.merge(self._graphdef, params, self._rest)
        state = jax.tree.map(jnp.asarray, model.initial_state(num_users))
        zeros = jnp.zeros(num_users, jnp.int32)
        if self._request_time:
            return UserStates(state, None, zeros, last_timestamp=zeros, pending=zeros)
        hidden = jnp.zeros((num_users, self._table.shape[1]), jnp.float32)
        return UserStates(state, hidden, length=zeros, last_timestamp=zeros)

    def _after_events(
        self,
        params: nnx.State,
        states: UserStates,
        items: Int[Array, "B T"],
        timestamps: Int[Array, "B T"],
    ) -> UserStates:
        """The states after the events of right-padded rows, for a model without request times."""
        real = items > 0
        timestamps = jnp.where(real, jnp.maximum(timestamps, states.last_timestamp[:, None]), 0)
        positions = jnp.where(real, states.length[:, None] + jnp.arange(items.shape[1]), 0)
        events = Events(items, timestamps, real.astype(jnp.int32), positions)
        encoding = nnx.merge(self._graphdef, params, self._rest)(events, states.model)
        count = jnp.sum(real, axis=1, dtype=jnp.int32)
        rows, last = jnp.arange(len(count)), jnp.maximum(count - 1, 0)
        after = UserStates(
            encoding.state,
            encoding.hidden[rows, last].astype(jnp.float32),
            length=states.length + count,
            last_timestamp=timestamps[rows, last],
        )
        return _where(count > 0, after, states)

    def _after_events_and_requests(
        self,
        params: nnx.State,
        states: UserStates,
        items: Int[Array, "B T"],
        timestamps: Int[Array, "B T"],
    ) -> UserStates:
        """As `_after_events`, for a model that reads request times.

        Slot j reads event j - 1, with the time of event j as its request time. Slot 0 reads the
        pending event, and the last event becomes pending.
        """
        real = items > 0
        assert states.pending is not None
        timestamps = jnp.where(real, jnp.maximum(timestamps, states.last_timestamp[:, None]), 0)
        previous = jnp.concatenate([states.pending[:, None], items[:, :-1]], axis=1)
        times = jnp.concatenate([states.last_timestamp[:, None], timestamps[:, :-1]], axis=1)
        # Before a user's first event nothing is pending, so slot 0 reads nothing.
        has_event = real & (previous > 0)
        positions = states.length[:, None] - 1 + jnp.arange(items.shape[1])
        fields = (previous, times, jnp.ones_like(previous), positions, timestamps)
        events = Events(*(jnp.where(has_event, field, 0) for field in fields))
        encoding = nnx.merge(self._graphdef, params, self._rest)(events, states.model)
        count = jnp.sum(real, axis=1, dtype=jnp.int32)
        rows, last = jnp.arange(len(count)), jnp.maximum(count - 1, 0)
        after = UserStates(
            _where(jnp.any(has_event, axis=1), encoding.state, states.model),
            None,
            length=states.length + count,
            last_timestamp=timestamps[rows, last],
            pending=items[rows, last],
        )
        return _where(count > 0, after, states)

    def _hidden_at(
        self, params: nnx.State, states: UserStates, now: Int[Array, "B"]
    ) -> Float[Array, "B D"]:
        """The hidden vectors of the pending events, with request time `now` [B]."""
        assert states.pending is not None
        fields = (
            states.pending,
            states.last_timestamp,
            jnp.ones_like(now),
            states.length - 1,
            now,
        )
        events = Events(*(field[:, None] for field in fields))
        model = nnx.merge(self._graphdef, params, self._rest)
        return model(events, states.model).hidden[:, 0].astype(jnp.float32)

    def _requests(
        self, states: UserStates, now: int | Int[Any, "B"] | None
    ) -> Int[np.ndarray, "B"] | None:
        """Each user's request time, checked; None for a model that does not read request times."""
        if not self._request_time:
            if now is not None:
                raise ServingError(
                    "this model was trained with data.request_time='hidden' and does not read the "
                    f"time of a request, but now is {now}: leave now out"
                )
            return None
        if now is None:
            raise ServingError(
                "this model was trained with data.request_time='known': give now, the time of the "
                "request in seconds since the data set's first event"
            )
        times = _integers("now", now)
        if times.shape not in ((), (states.num_users,)):
            raise ServingError(
                f"now must be one time, or one per user [{states.num_users}], got shape "
                f"{times.shape}"
            )
        times = np.broadcast_to(times, states.num_users)
        last = np.asarray(states.last_timestamp)
        bad = np.flatnonzero((times < last) | (times > self._last_second))
        if bad.size:
            row = bad[0]
            raise ServingError(
                f"row {row}: now is {times[row]}, but must be at least {last[row]}, the time of "
                f"the user's last event, and at most {self._last_second}, in seconds since the "
                "data set's first event: convert the log's own times with Recommender.seconds"
            )
        return times.astype(np.int32)

    def _checked_events(
        self, items: np.ndarray, timestamps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items and timestamps [B, T], checked, as int32; 0 at padding."""
        self._check_items(items)
        bad = (items > 0) & ((timestamps < 0) | (timestamps > self._last_second))
        if bad.any():
            row, slot = np.argwhere(bad)[0]
            raise ServingError(
                f"row {row}: timestamp {timestamps[row, slot]} is not from 0 to "
                f"{self._last_second} seconds since the data set's first event: convert the "
                "log's own times with Recommender.seconds"
            )
        timestamps = np.where(items > 0, timestamps, 0)
        return items.astype(np.int32), timestamps.astype(np.int32)

    def _check_lengths(self, lengths: np.ndarray) -> None:
        if self._longest_history is None:
            return
        rows = np.flatnonzero(lengths > self._longest_history)
        if rows.size:
            raise ServingError(
                f"the users in rows {first_ten(rows)} have more than "
                f"{self._longest_history} events, and the model has positions for no more: train "
                "it with a greater model.max_length"
            )

    def _check_items(self, items: np.ndarray) -> None:
        bad = (items < 0) | (items > self.num_items)
        if bad.any():
            row, slot = np.argwhere(bad)[0]
            raise ServingError(
                f"row {row}: item {items[row, slot]} is not in the catalogue: ids run from 1 to "
                f"{self.num_items}, and 0 means no item"
            )


def _digest(model: ModelConfig) -> str:
    """A digest of a model's configuration: its class, and the fields that are not the defaults."""
    held = to_json(model)
    changed = {
        field.name: held[field.name]
        for field in dataclasses.fields(cast(Any, model))
        if getattr(model, field.name) != field.default
    }
    return sha256_of_json({"class": held["class"], **changed})


def _where(chosen: Bool[Array, "B"], new: Tree, old: Tree) -> Tree:
    """A pytree with the leaves of `new` for the chosen users and of `old` for the others."""

    def choose(new_leaf: Array, old_leaf: Array) -> Array:
        mask = chosen.reshape(-1, *(1,) * (new_leaf.ndim - 1))
        return jnp.where(mask, new_leaf, old_leaf)

    return jax.tree.map(choose, new, old)


def _checked_rows(history: Events) -> tuple[np.ndarray, np.ndarray]:
    """Items and timestamps [B, T] of histories that have the form `start` describes."""
    fields: dict[str, np.ndarray] = {
        name: _integers(name, getattr(history, name))
        for name in ("items", "timestamps", "segment_ids", "positions")
    }
    items = fields["items"]
    if items.ndim != 2 or items.shape[1] < 1 or {x.shape for x in fields.values()} != {items.shape}:
        raise ServingError(
            "histories must be arrays of one shape [B, T] with at least one slot, got "
            + ", ".join(f"{name} {value.shape}" for name, value in fields.items())
        )
    real, slots = items > 0, np.arange(items.shape[1])
    timestamps = fields["timestamps"]
    earlier = np.diff(timestamps, axis=1, prepend=timestamps[:, :1]) < 0
    wrong = {
        "there is padding before an event": real & (slots >= real.sum(1, keepdims=True)),
        "segment_ids are not 1 at events and 0 at padding": fields["segment_ids"] != real,
        "positions do not count from 0": real & (fields["positions"] != slots),
        "timestamps decrease": real & earlier,
    }
    for problem, at_slots in wrong.items():
        if at_slots.any():
            row = np.argwhere(at_slots)[0][0]
            raise ServingError(
                f"row {row}: {problem}: give whole histories, as gather_histories returns them"
            )
    return items, timestamps


def _integers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" and array.size:  # an empty list has no integers to show
        hint = (
            ": find_items (data/histories.py) gives those of ids" if array.dtype.kind == "U" else ""
        )
        raise ServingError(f"{name} must be integers, got {array.dtype}{hint}")
    return array.astype(np.int64)
