"""The rank of RecGRELA's attention output, with and without its local branch (arXiv 2506.13315).

Linear attention of low-rank features gives a low-rank output; the paper's rank augmentation is the
local branch beside it. For each history the output at its events is a matrix, [events, D], whose
singular values are compared before and after the branch joins.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from linseqrec.analysis.state_sink import effective_rank
from linseqrec.evaluation.metrics import summarise_users


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values of an output, histories of their own.

    Attributes:
      values: float64 [U, min(T, D)], each history's, largest first, as shares of their sum.
    """

    values: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Spectrum"]) -> "Spectrum":
        """Batches of users as one."""
        return cls(np.concatenate([part.values for part in parts]))

    def summary(self) -> dict[str, object]:
        """Effective rank (mean, standard error over users) and the mean spectrum."""
        return {
            "effective_rank": summarise_users(effective_rank(self.values)),
            "spectrum": self.values.mean(0).tolist(),
        }


def spectrum(output: np.ndarray, real: np.ndarray) -> Spectrum:
    """The singular values of each history's outputs.

    Args:
      output: [U, T, D].
      real: bool [U, T], which slots hold events; each history has at least one.
    """
    masked = np.where(real[..., None], np.asarray(output, np.float64), 0)
    values = np.linalg.svd(masked, compute_uv=False)
    return Spectrum(values / values.sum(-1, keepdims=True))
