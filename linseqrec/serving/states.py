"""`UserStates`: where users stand after their events, and the file that keeps it."""

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from linseqrec.errors import UserError
from linseqrec.files import replacing
from linseqrec.models.weights import parameter_path

# What a file says of the model that its states are of: names to digests, numbers or words.
Identity = Mapping[str, str | int]


class ServingError(UserError, ValueError):
    """What cannot be served: a model without a state, a bad event, the states of another model."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UserStates:
    """Where each user of a batch stands, of a size that does not depend on the history's length.

    A pytree whose every leaf has the users in front: the states of some of them are
    `jax.tree.map(lambda leaf: leaf[rows], states)`.

    A model that is told request times can read an event only once the time of the request after it
    is known. So its states stay one event behind: the last event is pending until the next one
    comes, and whoever recommends meanwhile reads it for that once.

    Attributes:
      model: What the model carries (`Encoding.state`); without the pending event, if there is one.
      hidden: float32 [B, D], the last event's hidden vector; 0 before any event. None where events
        are pending.
      length: int32 [B], events so far: the position of the next one.
      last_timestamp: int32 [B], the last event's, in seconds since the data set's first event; 0
        before any.
      pending: int32 [B], the last event's item; 0 before any event. None for a model that is not
        told request times.
    """

    model: Any
    hidden: Float[Array, "B D"] | None
    length: Int[Array, "B"]
    last_timestamp: Int[Array, "B"]
    pending: Int[Array, "B"] | None = None

    @property
    def num_users(self) -> int:
        """B."""
        return self.length.shape[0]


def save_states(path: str | Path, states: UserStates, identity: Identity) -> None:
    """Writes states in one move, so that no reader sees half a file.

    Args:
      path: An `.npz` file.
      states: What to keep.
      identity: Whose they are.

    Raises:
      ServingError: If the path does not end in `.npz`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ServingError(f"user states are kept in an .npz file, not in {path}")
    leaves = jax.tree_util.tree_leaves_with_path(states)
    arrays: dict[str, Any] = {parameter_path(where): np.asarray(leaf) for where, leaf in leaves}
    with replacing(path) as partial:
        np.savez(partial, identity=np.array(json.dumps(dict(identity))), **arrays)


def load_states(
    path: str | Path, identity: Identity, like: Callable[[int], UserStates]
) -> UserStates:
    """Reads what `save_states` wrote.

    Args:
      path: The file.
      identity: Whose states are wanted.
      like: The shapes and types of the states of B users.

    Returns:
      The states, on the device.

    Raises:
      ServingError: If the file is damaged or no such file, or its states are another model's: names
        what differs.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        saved = json.loads(str(arrays.pop("identity")))
        num_users = len(arrays["length"])
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ServingError(f"{path} holds no user states, or is damaged: {error}") from error
    faults = [
        f"{key}: {saved.get(key, 'not known')} there, {identity.get(key, 'not known')} here"
        for key in dict.fromkeys([*identity, *saved])
        if saved.get(key) != identity.get(key)
    ]
    wanted = like(num_users)
    kinds = {
        parameter_path(where): (leaf.shape, leaf.dtype)
        for where, leaf in jax.tree_util.tree_leaves_with_path(wanted)
    }
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if kinds != found:
        names = [name for name in kinds | found if kinds.get(name) != found.get(name)]
        faults.append(f"arrays of another shape or type: {', '.join(names)}")
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise ServingError(
            f"{path} holds states of another model or checkpoint: encode the histories anew, or "
            f"serve what they are of{listed}"
        )
    return jax.tree_util.tree_map_with_path(
        lambda where, _: jnp.asarray(arrays[parameter_path(where)]), wanted
    )
