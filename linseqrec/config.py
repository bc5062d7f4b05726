"""The experiment's typed configuration: frozen dataclasses, flag overrides, and their JSON."""

import dataclasses
import importlib
import json
import types
import typing
from typing import Any

from ml_collections import config_dict

from linseqrec.config_checks import ConfigError, check_fields, nearest, require
from linseqrec.data.source import DataConfig
from linseqrec.evaluation.ranks import FilterSeen, Ties
from linseqrec.models.base import ModelConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.sharding import MeshConfig
from linseqrec.training.loss import LossConfig
from linseqrec.training.optimizer import OptimizerConfig

# Where a dataclass's JSON names its class, so that a run can be restored from its workdir alone.
_CLASS_KEY = "class"


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long to train, and how often to look.

    Attributes:
      num_epochs: The run's length, in passes over the training targets.
      evaluate_every: Epochs (fractions allowed) between validations; each one saves a checkpoint.
      save_minutes: Minutes after which a checkpoint is saved between validations, too.
      patience: Validations without a better NDCG@10 before the run stops; 0 never stops early.
      accumulation_steps: Parts a batch is split into, one gradient each, to save memory.
      log_every: Steps between training metrics.
      seed: Of parameters, dropout and the order of the data.
    """

    num_epochs: float = 10.0
    evaluate_every: float = 1.0
    save_minutes: float = 10.0
    patience: int = 0
    accumulation_steps: int = 1
    log_every: int = 50
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The protocol of validation and test: full ranking over the catalogue.

    Attributes:
      filter_seen: Whether items of the user's history leave the ranking: "none" or "all". Both may
        be asked for; the first one selects the model.
      batch_size: Users a batch at most, fewer where they would take too much memory
        (`evaluation.queries.rows_at_once`); changes no metric.
      ties: How equal scores rank, "mean" or "pessimistic".
    """

    filter_seen: tuple[FilterSeen, ...] = ("none",)
    batch_size: int = 256
    ties: Ties = "mean"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run depends on.

    Attributes:
      name: For tables and figures.
      note: What a reader of the results must know (synthetic data, imputed timestamps, ...).
      model: The config object that builds the model.
      data: See `DataConfig`.
      loss: See `LossConfig`.
      optimizer: See `OptimizerConfig`.
      training: See `TrainingConfig`.
      evaluation: See `EvaluationConfig`.
      mesh: See `MeshConfig`; it changes results by rounding only.
    """

    name: str = "recgrela"
    note: str = ""
    model: ModelConfig = RecGRELAConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        data, training, evaluation = self.data, self.training, self.evaluation
        require(
            isinstance(self.model, ModelConfig),
            "model",
            self.model,
            "a dataclass derived from linseqrec.models.base.ModelConfig",
        )
        check_fields(self.model, "model.")
        check_fields(data, "data.", counts=("batch_size",))
        check_fields(self.loss, "loss.", counts=("negatives",))
        check_fields(self.optimizer, "optimizer.", rates=("b1", "b2"))
        check_fields(training, "training.", counts=("log_every",))
        check_fields(evaluation, "evaluation.", counts=("batch_size",))
        steps = training.accumulation_steps
        require(
            steps > 0 and data.batch_size % steps == 0,
            "training.accumulation_steps",
            steps,
            f"a divisor of data.batch_size, {data.batch_size}",
        )
        require(training.num_epochs > 0, "training.num_epochs", training.num_epochs, "above 0")
        require(
            training.evaluate_every > 0,
            "training.evaluate_every",
            training.evaluate_every,
            "above 0",
        )
        for name in ("save_minutes", "patience"):
            value = getattr(training, name)
            require(value >= 0, f"training.{name}", value, "at least 0")
        for name in ("warmup_steps", "weight_decay", "clip_norm", "final_fraction"):
            value = getattr(self.optimizer, name)
            require(value >= 0, f"optimizer.{name}", value, "at least 0")
        known = set(typing.get_args(FilterSeen))
        require(
            bool(evaluation.filter_seen) and set(evaluation.filter_seen) <= known,
            "evaluation.filter_seen",
            evaluation.filter_seen,
            "'none', 'all', or these two",
        )
        require(data.length >= 0, "data.length", data.length, "at least 1, or 0: whole histories")
        # Positions that are learned have an end.
        longest = self.model.longest_row
        require(
            longest is None or 1 <= data.length <= longest,
            "data.length",
            data.length,
            f"at most {longest}, the longest row that the model reads (its max_length)"
            + ("; 0 stands for whole histories" if not data.length else ""),
        )
        if data.plan == "prefixes":
            cut_by = "for the plan 'prefixes', in which every prediction sees a whole row"
            require(data.stride is None, "data.stride", data.stride, f"unset {cut_by}")
            require(data.phase == "fixed", "data.phase", data.phase, f"'fixed' {cut_by}")
        if data.stride is not None:
            require(
                1 <= data.stride <= data.length,
                "data.stride",
                data.stride,
                f"in 1..{data.length}, data.length"
                if data.length
                else "unset for whole histories (data.length=0)",
            )
        require(
            self.model.causal or data.plan == "prefixes",
            "data.plan",
            data.plan,
            "'prefixes' for a model that is not causal, or it would read its targets",
        )


def to_json(config: Any) -> Any:
    """A configuration as plain JSON values; each dataclass carries its class's name."""
    if dataclasses.is_dataclass(config):
        cls = type(config)
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {_CLASS_KEY: f"{cls.__module__}:{cls.__qualname__}", **fields}
    return [to_json(item) for item in config] if isinstance(config, tuple) else config


def from_json(value: Any) -> Any:
    """The inverse of `to_json`.

    Raises:
      ConfigError: If a class cannot be found or made, or a field is not one of its class's: the
        file is of another version.
    """
    if isinstance(value, list):
        return tuple(map(from_json, value))
    if not isinstance(value, dict):
        return value
    if _CLASS_KEY not in value:
        raise ConfigError(f"no class is named for the fields {', '.join(value)}")
    module, _, name = value[_CLASS_KEY].partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the class {value[_CLASS_KEY]} cannot be found: {error}") from error
    fields = {key: from_json(item) for key, item in value.items() if key != _CLASS_KEY}
    for key in fields:
        if key not in (known := [f.name for f in dataclasses.fields(cls)]):
            raise ConfigError(f"{name} has no field {key!r}{nearest(key, known)}")
    try:
        return cls(**fields)
    # TypeError: a field is missing that has no default.
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error


def check_restorable(experiment: Experiment) -> None:
    """Refuses an experiment that its run's `config.json` would not give back.

    Raises:
      ConfigError: With the reason, and what to do.
    """
    try:
        restored = from_json(json.loads(json.dumps(to_json(experiment), allow_nan=False)))
        if restored == experiment:
            return
        lines = differences(experiment, restored).values()
        reason = "; ".join(lines) or "its classes compare unequal"
    # TypeError, ValueError: a value that JSON does not know, or a number that it has not.
    except (ConfigError, TypeError, ValueError) as error:
        reason = str(error)
    raise ConfigError(
        f"config.json would not give this experiment back, so that no run of it could go on or be "
        f"evaluated: {reason}. Put the model and its config class in a module of their own, import "
        "it from the experiment's file, and keep to fields of plain values and tuples"
    )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as {"optimizer.learning_rate": 0.001, ...}, in the order of its fields."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat[f"{prefix}{field.name}"] = type(value).__name__
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[f"{prefix}{field.name}"] = value
    return flat


def to_config_dict(config: Any) -> config_dict.ConfigDict:
    """The mutable, locked view of a configuration that flags override."""
    hints = typing.get_type_hints(type(config))
    fields = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            fields[field.name] = to_config_dict(value)
        elif value is None:
            fields[field.name] = config_dict.placeholder(_not_none(hints[field.name]))
        else:
            # A float written as 40 must take 0.5 from a flag.
            fields[field.name] = float(value) if hints[field.name] is float else value
    return config_dict.ConfigDict(fields).lock()


def from_config_dict(values: config_dict.ConfigDict, template: Any, prefix: str = "") -> Any:
    """A configuration of `template`'s classes with the overridden `values`.

    Args:
      values: By field.
      template: What they override.
      prefix: What stands before the fields' names in an error: "model.".

    Raises:
      ConfigError: If a value is not one that its field admits.
    """
    fields = {}
    for field in dataclasses.fields(template):
        before, value = getattr(template, field.name), values[field.name]
        if dataclasses.is_dataclass(before):
            value = from_config_dict(value, before, f"{prefix}{field.name}.")
        fields[field.name] = value
    try:
        return type(template)(**fields)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error
    # What a model of the user's own raises, in words of its own.
    except ValueError as error:
        raise ConfigError(f"{prefix.rstrip('.')}: {error}") from error


def differences(old: Any, new: Any) -> dict[str, str]:
    """The fields in which two configurations differ, with a line each: "a.b: old -> new"."""
    before, after = flatten(old), flatten(new)
    return {
        key: f"{key}: {before.get(key, '(absent)')!r} -> {after.get(key, '(absent)')!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def _not_none(hint: Any) -> type:
    """T of `T | None`."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return kinds[0] if kinds else hint
