"""`Recommender`: a model that is served, one event a user at a time."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from linseqrec import config as config_lib
from linseqrec.evaluation.ranks import NonFiniteScoreError, seen_slots
from linseqrec.events import Events
from linseqrec.models.encoding import SequenceModel
from linseqrec.models.weights import parameter_path
from linseqrec.ops.top_k import catalogue_top_k
from linseqrec.serving.states import (
    Identity,
    ServingError,
    UserStates,
    load_states,
    save_states,
)
from linseqrec.training import workdir
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.model import build_model, split_model

Tree = TypeVar("Tree")

_LAST_SECOND = np.iinfo(np.int32).max


class Recommender:
    """Carries users' states from event to event, and recommends from them.

    An event costs the same whether it is a user's tenth or ten-thousandth. What follows is, up to
    rounding, what the model says of the whole history: not of its last T events, as launch.evaluate
    reads it.

    A model that was trained with data.request_time="known" reads an event as of the next one's
    time, or as of the `now` of a recommendation: see `UserStates`.

    Times are seconds since the first event of the data set that the model was trained on
    (`Events.timestamps`); `seconds` makes them of a log's own. In a log without times an event's
    time is its number in its history.

    Attributes:
      num_items: N.
      origin: The log's own time of that first event, in seconds.
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        origin: int = 0,
        request_time: bool = False,
        identity: Identity | None = None,
        chunk_length: int = 512,
        item_block: int = 8192,
    ):
        """Takes a model as it is.

        Args:
          model: With its trained parameters.
          origin: `Dataset.origin` of the data set that it was trained on.
          request_time: Whether the model is told request times: trained with
            data.request_time="known".
          identity: What is known of the model besides its class and parameters, for saved states.
          chunk_length: The most events of a history that are encoded at once; changes memory and
            speed, no result.
          item_block: Items scored at once, a multiple of 64; changes memory and speed, no result.

        Raises:
          ServingError: If the model carries no state.
        """
        if chunk_length < 1:
            raise ServingError(f"chunk_length must be at least 1, got {chunk_length}")
        self._known: Identity = {"model": type(model).__name__, **(identity or {})}
        if request_time:
            self._known = {**self._known, "request_time": "known"}
        self._request_time = request_time
        self._graphdef, self._params, self._rest = split_model(model)
        self._table = model.item_table()
        self.num_items, self.origin = self._table.shape[0] - 1, origin
        self._chunk_length, self._item_block = chunk_length, item_block
        self._none = jax.jit(self._before_any_event, static_argnums=1)
        self._advance = jax.jit(
            self._after_events_and_requests if request_time else self._after_events
        )
        self._ask = jax.jit(self._hidden_at)
        if self._shapes(1).model is None:
            raise ServingError(
                f"this {type(model).__name__} carries no state from event to event (SASRec, "
                "RecGRELA with causal=False and HyTRec with time='shuffled' read whole rows): "
                "recommend from whole histories, by launch.recommend"
            )

    @classmethod
    def from_workdir(
        cls, folder: str | Path, checkpoint: str | int = "best", **settings: int
    ) -> Self:
        """A run's model, from its workdir alone: the data set is not opened.

        Args:
          folder: The workdir.
          checkpoint: "best", "latest", or a step.
          **settings: `chunk_length` and `item_block`.

        Raises:
          CheckpointError: If there is no such checkpoint, or it is not the configuration's.
          ServingError: If the model carries no state.
          WorkdirError: If the folder is no run's workdir.
        """
        folder = Path(folder)
        experiment, card = workdir.read_experiment(folder), workdir.read_card(folder)
        num_items = int(card["counts"]["items"])
        model = build_model(experiment, num_items)
        graphdef, params, rest = split_model(model)
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            step = checkpoints.resolve(checkpoint)
            params = checkpoints.restore_params(step, params)
        configuration = json.dumps(config_lib.to_json(experiment), sort_keys=True)
        return cls(
            nnx.merge(graphdef, params, rest),
            origin=int(card["time"]["first"]),
            request_time=experiment.data.request_time == "known",
            identity={
                "configuration": hashlib.sha256(configuration.encode()).hexdigest(),
                "checkpoint": step,
            },
            **settings,
        )

    def seconds(self, times: Any) -> Int[np.ndarray, "B"]:
        """A log's own times, in whole seconds, as what `start` and `update` take.

        Args:
          times: Integers of any shape, as in `Dataset.timestamps` (of a log by the clock, seconds
            since 1970).

        Returns:
          int32, seconds since the data set's first event.

        Raises:
          ServingError: If a time lies before that event, or more than 68 years after it.
        """
        times = _integers("times", times)
        since = times - self.origin
        bad = since[(since < 0) | (since > _LAST_SECOND)]
        if bad.size:
            raise ServingError(
                f"time {int(bad[0]) + self.origin} is not within 2^31 s after {self.origin}, the "
                "first event that the model was trained on: times are whole seconds of its log"
            )
        return since.astype(np.int32)

    def start(self, history: Events) -> UserStates:
        """Encodes whole histories, of any length, a chunk of events at a time.

        Args:
          history: [B, T], a user a row: segment 1, positions from 0, padding on the right only
            (as of `gather_histories`). A row without events is a user of whom nothing is known.
            Request times are not read: each is the next event's time.

        Returns:
          The users' states.

        Raises:
          ServingError: If the rows are not of that form or not in time order, or hold items or
            times that cannot be.
        """
        items, timestamps = self._checked(*_rows(history))
        num_users, longest = items.shape
        # In powers of 2, for few compilations.
        width = min(self._chunk_length, 1 << (longest - 1).bit_length())
        padding = ((0, 0), (0, -longest % width))
        items, timestamps = np.pad(items, padding), np.pad(timestamps, padding)
        states = self._none(self._params, num_users)
        for first in range(0, items.shape[1], width):
            chunk = np.s_[:, first : first + width]
            states = self._advance(self._params, states, items[chunk], timestamps[chunk])
        return states

    def update(
        self, states: UserStates, items: Int[Any, "B"], timestamps: Int[Any, "B"]
    ) -> UserStates:
        """Goes on by one event a user.

        Args:
          states: Where the users stand; it stays as it is.
          items: [B], item ids; 0 where a user has no event this time.
          timestamps: [B], seconds since the data set's first event; any number where the item is 0.
            An event that comes late, after one of a later time, is taken for one of that time.

        Returns:
          The states after the events. Those of users without one are the same to the bit.

        Raises:
          ServingError: If there are other numbers of users, or items or times that cannot be.
        """
        items, timestamps = _integers("items", items), _integers("timestamps", timestamps)
        if items.shape != (states.num_users,) or timestamps.shape != items.shape:
            raise ServingError(
                f"the states are of {states.num_users} users, but there are items {items.shape} "
                f"and timestamps {timestamps.shape}: give one of each a user"
            )
        items, timestamps = self._checked(items[:, None], timestamps[:, None])
        return self._advance(self._params, states, items, timestamps)

    def recommend(
        self,
        states: UserStates,
        k: int,
        filter_seen: Int[Any, "B S"] | None = None,
        *,
        now: int | Int[Any, "B"] | None = None,
    ) -> tuple[Int[np.ndarray, "B K"], Float[np.ndarray, "B K"]]:
        """The best items of the catalogue for each user, scored a block of items at a time.

        Args:
          states: Where the users stand; each has had an event.
          k: How many, from 1 to N; a program is compiled for each.
          filter_seen: Items not to recommend, padded with 0, in any order; None: every item may be.
          now: The request's time, in seconds since the data set's first event, of all users or one
            a user [B]; for a model that is told request times, and for no other.

        Returns:
          ids: int32 [B, K], best first, the lower id first among equals; 0 where no item is left.
          scores: float32 [B, K]; -inf where the id is 0.

        Raises:
          NonFiniteScoreError: If scores are NaN or infinite, with the rows of the users.
          ServingError: If a user has had no event, an item to filter cannot be, `now` is missing or
            of no use, or `now` lies before a user's last event.
          ValueError: If the catalogue does not have k items.
        """
        strangers = np.flatnonzero(np.asarray(states.length) == 0)
        if strangers.size:
            raise ServingError(
                f"no event yet of users in rows {', '.join(map(str, strangers[:10]))}: there is "
                "nothing to recommend from; leave them out"
            )
        seen = None
        if filter_seen is not None:
            seen = _integers("filter_seen", filter_seen)
            if seen.ndim != 2 or len(seen) != states.num_users:
                raise ServingError(
                    f"filter_seen must be [{states.num_users}, S], one row a user, not {seen.shape}"
                )
            self._check_items(seen)
            padding = ((0, 0), (0, seen_slots(seen.shape[1]) - seen.shape[1]))
            seen = np.pad(seen, padding).astype(np.int32)
        requests = self._requests(states, now)
        hidden = states.hidden if requests is None else self._ask(self._params, states, requests)
        assert hidden is not None
        ids, scores, finite = catalogue_top_k(
            hidden, self._table, k, seen, item_block=self._item_block
        )
        bad = np.flatnonzero(~np.asarray(finite))
        if bad.size:
            raise NonFiniteScoreError(bad)
        return np.asarray(ids), np.asarray(scores)

    @functools.cached_property
    def identity(self) -> dict[str, str | int]:
        """Whose states these are: the model's class, a digest of its parameters, and what is known.

        The first to ask waits for the parameters to be read once.
        """
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._params):
            digest.update(f"{parameter_path(path)} {leaf.shape} {leaf.dtype}\n".encode())
            digest.update(np.asarray(leaf).tobytes())
        return {**self._known, "parameters": digest.hexdigest()}

    def save(self, path: str | Path, states: UserStates) -> None:
        """Writes states to an `.npz` file, together with whose they are (see `save_states`)."""
        save_states(path, states, self.identity)

    def load(self, path: str | Path) -> UserStates:
        """Reads states of this very model and checkpoint; refuses others (see `load_states`)."""
        return load_states(path, self.identity, self._shapes)

    def _shapes(self, num_users: int) -> UserStates:
        before = functools.partial(self._before_any_event, num_users=num_users)
        return jax.eval_shape(before, self._params)

    def _before_any_event(self, params: nnx.State, num_users: int) -> UserStates:
        padding = jnp.zeros((num_users, 1), jnp.int32)
        model = nnx.merge(self._graphdef, params, self._rest)
        zeros = jnp.zeros(num_users, jnp.int32)
        if self._request_time:
            state = model(Events(padding, padding, padding, padding, padding)).state
            return UserStates(state, None, zeros, last_timestamp=zeros, pending=zeros)
        state = model(Events(padding, padding, padding, padding)).state
        hidden = jnp.zeros((num_users, self._table.shape[1]), jnp.float32)
        return UserStates(state, hidden, length=zeros, last_timestamp=zeros)

    def _after_events(
        self,
        params: nnx.State,
        states: UserStates,
        items: Int[Array, "B T"],
        timestamps: Int[Array, "B T"],
    ) -> UserStates:
        """The states after the events of right-padded rows; T = 1 is the serving step."""
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
        """`_after_events` of a model that is told request times.

        Slot j reads the event before event j, the pending one at first, as of a request at event
        j's time.
        """
        real = items > 0
        assert states.pending is not None
        timestamps = jnp.where(real, jnp.maximum(timestamps, states.last_timestamp[:, None]), 0)
        read = jnp.concatenate([states.pending[:, None], items[:, :-1]], axis=1)
        times = jnp.concatenate([states.last_timestamp[:, None], timestamps[:, :-1]], axis=1)
        known = real & (read > 0)
        positions = states.length[:, None] - 1 + jnp.arange(items.shape[1])
        fields = (read, times, jnp.ones_like(read), positions, timestamps)
        events = Events(*(jnp.where(known, field, 0) for field in fields))
        encoding = nnx.merge(self._graphdef, params, self._rest)(events, states.model)
        count = jnp.sum(real, axis=1, dtype=jnp.int32)
        rows, last = jnp.arange(len(count)), jnp.maximum(count - 1, 0)
        after = UserStates(
            _where(jnp.any(known, axis=1), encoding.state, states.model),
            None,
            length=states.length + count,
            last_timestamp=timestamps[rows, last],
            pending=items[rows, last],
        )
        return _where(count > 0, after, states)

    def _hidden_at(
        self, params: nnx.State, states: UserStates, now: Int[Array, "B"]
    ) -> Float[Array, "B D"]:
        """The hidden vectors of the pending events, asked for now."""
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
        """The time of each user's request, once it is known to fit; None where it is hidden."""
        if not self._request_time:
            if now is not None:
                raise ServingError(
                    "now is given, but this model was trained with data.request_time='hidden': it "
                    "cannot read the time of a request; leave now out"
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
                f"now must be one time, or one a user, [{states.num_users}], not {times.shape}"
            )
        times = np.broadcast_to(times, states.num_users)
        last = np.asarray(states.last_timestamp)
        bad = np.flatnonzero((times < last) | (times > _LAST_SECOND))
        if bad.size:
            row = bad[0]
            raise ServingError(
                f"row {row}: now is {times[row]}: it must be at least {last[row]}, the time of the "
                f"user's last event, and at most {_LAST_SECOND}, in seconds since the data set's "
                "first event"
            )
        return times.astype(np.int32)

    def _checked(self, items: np.ndarray, timestamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items and timestamps [B, T] in int32, once they are known to fit; 0 at padding."""
        self._check_items(items)
        bad = (items > 0) & ((timestamps < 0) | (timestamps > _LAST_SECOND))
        if bad.any():
            row, slot = np.argwhere(bad)[0]
            raise ServingError(
                f"row {row}: timestamp {timestamps[row, slot]} is not in int32 seconds since the "
                "data set's first event: `seconds` makes them of a log's own times"
            )
        timestamps = np.where(items > 0, timestamps, 0)
        return items.astype(np.int32), timestamps.astype(np.int32)

    def _check_items(self, items: np.ndarray) -> None:
        bad = (items < 0) | (items > self.num_items)
        if bad.any():
            row, slot = np.argwhere(bad)[0]
            raise ServingError(
                f"row {row}: item {items[row, slot]} is none of the catalogue's: ids run from 1 to "
                f"{self.num_items}, 0 is none"
            )


def _where(chosen: Bool[Array, "B"], new: Tree, old: Tree) -> Tree:
    """The leaves of one pytree in the users chosen, and of the other in the rest."""
    return jax.tree.map(
        lambda a, b: jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old
    )


def _rows(history: Events) -> tuple[np.ndarray, np.ndarray]:
    """Items and timestamps [B, T] of histories in the form that `start` takes."""
    fields: dict[str, np.ndarray] = {
        name: _integers(name, getattr(history, name))
        for name in ("items", "timestamps", "segment_ids", "positions")
    }
    items = fields["items"]
    if items.ndim != 2 or items.shape[1] < 1 or {x.shape for x in fields.values()} != {items.shape}:
        raise ServingError(
            "histories are rows of at least one slot, [B, T], not "
            + ", ".join(f"{name} {value.shape}" for name, value in fields.items())
        )
    real, slots = items > 0, np.arange(items.shape[1])
    timestamps = fields["timestamps"]
    earlier = np.diff(timestamps, axis=1, prepend=timestamps[:, :1]) < 0
    wrong = {
        "padding stands before an event": real & (slots >= real.sum(1, keepdims=True)),
        "segment_ids are not 1 at events and 0 at padding": fields["segment_ids"] != real,
        "positions do not count from 0": real & (fields["positions"] != slots),
        "timestamps decrease": real & earlier,
    }
    for what, where in wrong.items():
        if where.any():
            raise ServingError(f"row {np.argwhere(where)[0][0]}: {what}: give whole histories")
    return items, timestamps


def _integers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ServingError(f"{name} must be integers, not {array.dtype}")
    return array.astype(np.int64)
