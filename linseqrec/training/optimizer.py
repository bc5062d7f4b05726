"""The optimizer: AdamW with a schedule, clipping, and a rule for what is decayed."""

import dataclasses
from typing import Any, Literal

import jax
import optax
from flax import nnx

from linseqrec.config_fields import Config, CountOrZero, NotNegative, Positive, Rate
from linseqrec.layers.standard import Decayed


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Config):
    """AdamW's hyperparameters.

    Attributes:
      learning_rate: The peak.
      schedule: After the warm-up "constant"; "cosine", which falls to `final_fraction` of the peak
        until the run's last step; or "late_decay", which stays at the peak and falls linearly in
        the last fifth of the steps after the warm-up (warmup-stable-decay, arXiv 2404.06395).
      warmup_steps: Steps of linear increase from 0; in a run that is shorter, a tenth of the run.
      final_fraction: Share of the peak rate at the end of "cosine" and "late_decay".
      weight_decay: Decoupled, on the weights of dense layers only (see `decayed`).
      b1: Decay of the gradient's average.
      b2: Decay of the squared gradient's average.
      epsilon: Added to the root of the squared average.
      clip_norm: The gradient's largest global norm; 0 does not clip.
    """

    learning_rate: Positive = 1e-3
    schedule: Literal["constant", "cosine", "late_decay"] = "constant"
    warmup_steps: CountOrZero = 0
    final_fraction: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    b1: Rate = 0.9
    b2: Rate = 0.999
    epsilon: Positive = 1e-8
    clip_norm: NotNegative = 0.0


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate by step.

    Args:
      config: The hyperparameters.
      num_steps: Length of the run.
    """
    warmup_steps = config.warmup_steps
    if warmup_steps > num_steps:
        warmup_steps = num_steps // 10
    peak, decaying_steps = config.learning_rate, max(num_steps - warmup_steps, 1)
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, decaying_steps, config.final_fraction)
    else:
        late = max(decaying_steps // 5, 1)
        final = peak * config.final_fraction
        main = optax.linear_schedule(peak, final, late, decaying_steps - late)
    if not warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, config.learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def decayed(params: Any) -> Any:
    """Which parameters weight decay touches: those made as `Decayed` (`layers/standard.py`).

    These are the weights of dense layers that are no gates. Biases, norms, embeddings, gates and
    the recurrences' own parameters keep their scale.

    Args:
      params: A model's parameters.

    Returns:
      A tree of the same form with a bool in the place of each parameter.
    """
    return jax.tree.map(
        lambda parameter: isinstance(parameter, Decayed),
        params,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )


def make_optimizer(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """The Optax chain, clipping first, then AdamW, with a rate by step (`learning_rate`)."""
    adamw = optax.adamw(
        rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
    return adamw
