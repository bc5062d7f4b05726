"""Serving from carried states: one event more, against encoding the last events again; the lists.

Gated DeltaNet at its defaults. What encoding again costs depends on how much of the history is
read; what an update costs does not. The largest of these are left out on a CPU.
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
_LIST = 10
_MOST_SLOTS_ON_CPU = 160_000


def rows(repeats: int) -> Iterator[Row]:
    """Times updates against encoding again, then lists from states, by batch size."""
    model = _MODEL.build(_NUM_ITEMS, rngs=nnx.Rngs(0))
    recommender = Recommender(model)
    graphdef, params, rest = split_model(model)
    encode = jax.jit(lambda params, events: nnx.merge(graphdef, params, rest)(events).hidden[:, -1])
    for batch in _BATCHES:
        states = recommender.start(_history(batch, 200))
        case = f"one event more, B {batch}, {_MODEL.num_layers} blocks, D {_MODEL.width}"
        variants: dict[str, Callable[[], Any]] = {"update": _update(recommender, states)}
        for length in _HISTORIES:
            if jax.default_backend() != "cpu" or batch * length <= _MOST_SLOTS_ON_CPU:
                variants[f"encode the last {length:,}"] = functools.partial(
                    encode, params, _history(batch, length)
                )
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) // batch
        for row in compare(case, variants, repeats=repeats):
            extra = {"users_per_second": _rate(batch, row)}
            if row.variant == "update":
                extra["state_bytes_per_user"] = state_bytes
            yield dataclasses.replace(row, extra=extra)
    for batch in _BATCHES:
        states = recommender.start(_history(batch, 200))
        seen = np.asarray(_history(batch, 200).items)
        case = f"the best {_LIST} of {_NUM_ITEMS:,} items, B {batch}, D {_MODEL.width}"
        lists = {
            "from the states": functools.partial(recommender.recommend, states, _LIST),
            "without 200 seen items": functools.partial(recommender.recommend, states, _LIST, seen),
        }
        for row in compare(case, lists, repeats=repeats):
            yield dataclasses.replace(row, extra={"users_per_second": _rate(batch, row)})


def _update(recommender: Recommender, states: UserStates) -> Callable[[], UserStates]:
    items = np.ones(states.num_users, np.int32)
    times = np.asarray(states.last_timestamp) + 60
    return lambda: recommender.update(states, items, times)


def _rate(batch: int, row: Row) -> float:
    return batch / row.seconds if row.seconds else 0.0


def _history(batch: int, events: int) -> Events:
    items = np.random.default_rng(0).integers(1, _NUM_ITEMS + 1, (batch, events), np.int32)
    slots = np.broadcast_to(np.arange(events, dtype=np.int32), items.shape)
    return Events(items, 60 * slots, np.ones_like(items), slots)
