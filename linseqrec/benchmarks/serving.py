"""Time of a state update against encoding the history again, and time of recommendations.

The model is Gated DeltaNet with default settings. The cost of encoding grows with the length of the
history; the cost of an update does not. On a CPU the suite leaves out the largest encodings.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from linseqrec.benchmarks.measuring import Row, compare
from linseqrec.events import Events
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.serving.recommender import Recommender
from linseqrec.serving.states import UserStates
from linseqrec.training.model import split_model

_MODEL = GatedDeltaNetConfig()
_BATCHES = (1, 16, 128)
_HISTORIES = (200, 1_000, 10_000)
_NUM_ITEMS = 50_000
_LIST_SIZE = 10
_MAX_SLOTS_ON_CPU = 160_000


def rows(repeats: int) -> Iterator[Row]:
    """The rows of updates and encodings by batch size, then those of recommendations."""
    model = _MODEL.build(_NUM_ITEMS, rngs=nnx.Rngs(0))
    recommender = Recommender(model)
    graphdef, params, rest = split_model(model)
    encode = jax.jit(lambda params, events: nnx.merge(graphdef, params, rest)(events).hidden[:, -1])
    for batch in _BATCHES:
        states = recommender.start(_history(batch, 200))
        case = f"one event more, B {batch}, {_MODEL.num_layers} blocks, D {_MODEL.width}"
        variants: dict[str, Callable[[], Any]] = {"update": _update(recommender, states)}
        for length in _HISTORIES:
            if jax.default_backend() != "cpu" or batch * length <= _MAX_SLOTS_ON_CPU:
                variants[f"encode the last {length:,}"] = functools.partial(
                    encode, params, _history(batch, length)
                )
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) // batch
        for row in compare(case, variants, repeats=repeats):
            extra = {"users_per_second": _users_per_second(batch, row)}
            if row.variant == "update":
                extra["state_bytes_per_user"] = state_bytes
            yield dataclasses.replace(row, extra=extra)
    for batch in _BATCHES:
        states = recommender.start(_history(batch, 200))
        seen = np.asarray(_history(batch, 200).items)
        case = f"the best {_LIST_SIZE} of {_NUM_ITEMS:,} items, B {batch}, D {_MODEL.width}"
        recommend = functools.partial(recommender.recommend, states, _LIST_SIZE)
        lists = {
            "from the states": recommend,
            "without 200 seen items": functools.partial(recommend, seen),
        }
        for row in compare(case, lists, repeats=repeats):
            yield dataclasses.replace(
                row, extra={"users_per_second": _users_per_second(batch, row)}
            )


def _update(recommender: Recommender, states: UserStates) -> Callable[[], UserStates]:
    """A function that updates the states with one event per user."""
    items = np.ones(states.num_users, np.int32)
    times = np.asarray(states.last_timestamp) + 60
    return lambda: recommender.update(states, items, times)


def _users_per_second(batch: int, row: Row) -> float:
    return batch / row.seconds if row.seconds else 0.0


def _history(batch: int, events: int) -> Events:
    """Random histories of a given number of events."""
    items = np.random.default_rng(0).integers(1, _NUM_ITEMS + 1, (batch, events), np.int32)
    slots = np.broadcast_to(np.arange(events, dtype=np.int32), items.shape)
    return Events(items, 60 * slots, np.ones_like(items), slots)
