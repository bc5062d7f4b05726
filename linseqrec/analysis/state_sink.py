"""How much of a recurrent state the recurring semantics hold (SinkRec, arXiv 2606.09888; ours).

The paper names the "semantic state sink"; its measure is not public, and this one is ours. Let U
hold the mean keys of a user's m most frequent semantic groups, P_U project on their span of rank
m', and S be the state, [K, V]:

    occupancy lift = (‖P_U S‖² / ‖S‖²) (K / m')

1 means that the groups hold no more of the state than any m' directions. Groups by chance from the
rest of the same history are the control: what any group that was written has, frequent or not.

The effective rank exp(H(σ / Σσ)), σ the state's singular values (Roy & Vetterli, EUSIPCO 2007), is
reported beside it and proves nothing alone: a state may lose rank and recall more.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from linseqrec.evaluation.metrics import summarise_users

_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class StateSink:
    """The readings of one mixer's states.

    Attributes:
      lift: float64 [U, H], occupancy lift of the most frequent groups.
      control: float64 [U, H], of as many other groups; NaN where a user has none.
      rank: float64 [U, H], effective rank.
    """

    lift: np.ndarray
    control: np.ndarray
    rank: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["StateSink"]) -> "StateSink":
        """Batches of users as one."""
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(cls)
            )
        )

    def summary(self) -> dict[str, dict[str, object]]:
        """Mean over users and heads, its standard error over users, and the heads' means."""
        return {
            name: _summary(values)
            for name, values in (
                ("occupancy_lift", self.lift),
                ("control_lift", self.control),
                ("effective_rank", self.rank),
            )
        }


def state_sink(
    memory: np.ndarray, keys: np.ndarray, frequent: np.ndarray, others: np.ndarray
) -> StateSink:
    """Reads the states of a batch of users.

    Args:
      memory: [U, H, K, V], the states.
      keys: [U, T, H, K], the keys that were written.
      frequent: bool [U, m, T], the events of each of the most frequent groups.
      others: bool [U, m, T], of other groups.
    """
    return StateSink(
        occupancy_lift(memory, keys, frequent),
        occupancy_lift(memory, keys, others),
        effective_rank(np.linalg.svd(np.asarray(memory, np.float64), compute_uv=False)),
    )


def occupancy_lift(memory: np.ndarray, keys: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(‖P_U S‖² / ‖S‖²) (K / m'), U the mean keys of groups.

    Args:
      memory: S, [U, H, K, V].
      keys: [U, T, H, K].
      members: bool [U, m, T], the events of each group; a group without events does not count.

    Returns:
      float64 [U, H]; NaN where no group has events, or the state is empty.
    """
    memory = np.asarray(memory, np.float64)
    sizes = np.maximum(members.sum(-1), 1)[:, None, :, None]
    means = np.einsum("umt,uthk->uhmk", members.astype(np.float64), np.asarray(keys, np.float64))
    _, values, directions = np.linalg.svd(means / sizes, full_matrices=False)
    spanned = values > 1e-6 * np.maximum(values[..., :1], _TINY)
    rank = spanned.sum(-1)
    held = np.square(np.einsum("uhmk,uhkv->uhmv", directions, memory)).sum(-1)
    share = np.where(spanned, held, 0).sum(-1) / np.maximum(np.square(memory).sum((-2, -1)), _TINY)
    valid = (rank > 0) & (np.square(memory).sum((-2, -1)) > _TINY)
    return np.where(valid, share * memory.shape[-2] / np.maximum(rank, 1), np.nan)


def effective_rank(singular_values: np.ndarray) -> np.ndarray:
    """Exp of the entropy of σ / Σσ, over the last axis: 1 to its length; NaN where all are 0."""
    total = singular_values.sum(-1, keepdims=True)
    share = singular_values / np.maximum(total, _TINY)
    entropy = -np.sum(share * np.log(np.maximum(share, _TINY)), axis=-1)
    return np.where(total[..., 0] > _TINY, np.exp(entropy), np.nan)


def _summary(values: np.ndarray) -> dict[str, object]:
    return summarise_users(values.mean(axis=1)) | {
        "heads": [summarise_users(head)["mean"] for head in values.T]
    }
