"""The rank of RecGRELA's attention output, with and without its local branch (arXiv 2506.13315).

Linear attention with low-rank features gives a low-rank output. The paper raises the rank by a
local branch beside the attention. For each history, the outputs at its events are a matrix
[events, D]; its singular values are compared without and with the local branch.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from linseqrec.analysis.state_sink import effective_rank
from linseqrec.evaluation.metrics import summarise_users


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values of each history's outputs.

    Attributes:
      values: float64 [U, min(T, D)], the largest first, as shares of their sum.
    """

    values: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Spectrum"]) -> "Spectrum":
        """Joins batches of users."""
        return cls(np.concatenate([part.values for part in parts]))

    def summary(self) -> dict[str, object]:
        """The effective rank (mean and standard error over users) and the mean spectrum."""
        return {
            "effective_rank": summarise_users(effective_rank(self.values)),
            "spectrum": self.values.mean(0).tolist(),
        }


def spectrum(output: np.ndarray, real: np.ndarray) -> Spectrum:
    """The singular values of each history's outputs.

    Args:
      output: [U, T, D].
      real: bool [U, T], the slots that hold events, at least one for each history.
    """
    masked = np.where(real[..., None], np.asarray(output, np.float64), 0)
    values = np.linalg.svd(masked, compute_uv=False)
    return Spectrum(values / values.sum(-1, keepdims=True))
