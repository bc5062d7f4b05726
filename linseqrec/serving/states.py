"""`UserStates`: the states that a model carries for users, and the file format to save them."""

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from linseqrec.errors import FileError, UserError
from linseqrec.files import check_form, parse_json, read_arrays, replacing
from linseqrec.sharding import named_leaves, parameter_path

# Identifies the model that states belong to: a field's name to a digest, a number or a word.
Identity = Mapping[str, str | int]


class ServingError(UserError, ValueError):
    """The recommender cannot use a model, an event, a request, or a file of states."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UserStates:
    """The states of a batch of users. Their size does not depend on the history's length.

    The object is a pytree, and the first axis of every leaf is the users. To select users, call
    `jax.tree.map(lambda leaf: leaf[rows], states)`.

    A model that reads request times cannot read an event before it knows the time of the next
    request. Its states therefore do not yet include the last event, which is *pending*.
    `Recommender.update` reads the pending event when the next event arrives.
    `Recommender.recommend` reads it for one request only and leaves the states as they are.

    Attributes:
      model: The model's own state (`Encoding.state`), without the pending event.
      hidden: float32 [B, D], hidden vector of the last event; 0 before the first event. None for a
        model that reads request times.
      length: int32 [B], number of events so far, which is the position of the next event.
      last_timestamp: int32 [B], time of the last event, in seconds since the data set's first
        event; 0 before the first event.
      pending: int32 [B], item of the pending event; 0 before the first event. None for a model that
        does not read request times.
    """

    model: Any
    hidden: Float[Array, "B D"] | None
    length: Int[Array, "B"]
    last_timestamp: Int[Array, "B"]
    pending: Int[Array, "B"] | None = None

    @property
    def num_users(self) -> int:
        """The number of users, B."""
        return self.length.shape[0]


def save_states(path: str | Path, states: UserStates, identity: Identity) -> None:
    """Writes states to a file in one step, so that other programs never read half a file.

    Args:
      path: An `.npz` file.
      states: The states.
      identity: The identity of their model.

    Raises:
      ServingError: The path does not end in `.npz`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ServingError(f"cannot save user states in {path}: the file name must end in .npz")
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in named_leaves(states).items()}
    with replacing(path) as partial:
        np.savez(partial, identity=np.array(json.dumps(dict(identity))), **arrays)


def load_states(
    path: str | Path, identity: Identity, like: Callable[[int], UserStates]
) -> UserStates:
    """The states that `save_states` wrote, on the device.

    Args:
      path: The file.
      identity: The identity of the model that will use the states.
      like: A function from B to states of B users with the right shapes and types.

    Raises:
      ServingError: The file is damaged or has no user states, or its states belong to another
        model; names the differences.
      FileNotFoundError: There is no such file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        arrays = read_arrays(Path(path))
        saved = parse_json(str(arrays.pop("identity")).encode())
        check_form(saved, dict)
        num_users = len(arrays["length"])
    except (FileError, KeyError, TypeError, ValueError) as error:
        raise ServingError(f"{path} has no user states, or is damaged: {error}") from error
    differences = [
        f"{key}: {saved.get(key, 'none')} in the file, {identity.get(key, 'none')} in this model"
        for key in dict.fromkeys([*identity, *saved])
        if saved.get(key) != identity.get(key)
    ]
    template = like(num_users)
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in named_leaves(template).items()}
    actual = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if expected != actual:
        names = [name for name in expected | actual if expected.get(name) != actual.get(name)]
        differences.append(f"arrays of another shape or type: {', '.join(names)}")
    if differences:
        listed = "".join(f"\n  {difference}" for difference in differences)
        raise ServingError(
            f"the states in {path} belong to another model or checkpoint: load them with that one, "
            f"or encode the histories again with Recommender.start{listed}"
        )
    return jax.tree_util.tree_map_with_path(
        lambda key, _: jnp.asarray(arrays[parameter_path(key)]), template
    )
