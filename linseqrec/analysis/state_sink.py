"""How much of a recurrent state the most frequent groups occupy (SinkRec, arXiv 2606.09888; ours).

The paper names the "semantic state sink" but does not publish its measure; this measure is ours.
Let U hold the mean keys of a user's m most frequent semantic groups, P_U project on their span,
which has rank m', and S be the state, [K, V]:

    occupancy lift = (‖P_U S‖² / ‖S‖²) (K / m')

A lift of 1 means that the groups occupy no more of the state than any m' directions. The control is
the lift of other groups of the same history, chosen at random: every group that was written has
some lift.

The effective rank exp(H(σ / Σσ)), σ the state's singular values (Roy & Vetterli, EUSIPCO 2007), is
reported too. Alone it proves nothing, because a state may lose rank and recall more.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from linseqrec.evaluation.metrics import summarise_users

_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class StateSink:
    """Measures of one mixer's states, by user and head.

    Attributes:
      lift: float64 [U, H], occupancy lift of the most frequent groups.
      control: float64 [U, H], the lift of as many other groups; NaN where a user has none.
      rank: float64 [U, H], effective rank.
    """

    lift: np.ndarray
    control: np.ndarray
    rank: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["StateSink"]) -> "StateSink":
        """Joins batches of users."""
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(cls)
            )
        )

    def summary(self) -> dict[str, dict[str, object]]:
        """For each measure: the mean, its standard error over users, and the mean of each head."""
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
    """Measures the states of a batch of users.

    Args:
      memory: [U, H, K, V], the states.
      keys: [U, T, H, K], the keys by which events were written.
      frequent: bool [U, m, T], the events of each of the most frequent groups.
      others: bool [U, m, T], the events of each of the other groups.
    """
    return StateSink(
        occupancy_lift(memory, keys, frequent),
        occupancy_lift(memory, keys, others),
        effective_rank(np.linalg.svd(np.asarray(memory, np.float64), compute_uv=False)),
    )


def occupancy_lift(memory: np.ndarray, keys: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The occupancy lift (‖P_U S‖² / ‖S‖²) (K / m') of groups, U their mean keys.

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
    total = np.square(memory).sum((-2, -1))
    occupied = np.square(np.einsum("uhmk,uhkv->uhmv", directions, memory)).sum(-1)
    share = np.where(spanned, occupied, 0).sum(-1) / np.maximum(total, _TINY)
    valid = (rank > 0) & (total > _TINY)
    return np.where(valid, share * memory.shape[-2] / np.maximum(rank, 1), np.nan)


def effective_rank(singular_values: np.ndarray) -> np.ndarray:
    """The exponential of the entropy of σ / Σσ over the last axis; NaN where all values are 0."""
    total = singular_values.sum(-1, keepdims=True)
    share = singular_values / np.maximum(total, _TINY)
    entropy = -np.sum(share * np.log(np.maximum(share, _TINY)), axis=-1)
    return np.where(total[..., 0] > _TINY, np.exp(entropy), np.nan)


def _summary(values: np.ndarray) -> dict[str, object]:
    return summarise_users(values.mean(axis=1)) | {
        "heads": [summarise_users(head)["mean"] for head in values.T]
    }
