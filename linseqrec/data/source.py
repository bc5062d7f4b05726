"""Where an experiment's events come from: a prepared folder or a generated world, and its split."""

import dataclasses
from typing import Literal

import numpy as np

from linseqrec.config_checks import check_fields, require
from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import Split, from_folds, global_temporal, leave_one_out
from linseqrec.data.worlds import World, generate, resized, world_config

# A chunk of the gated delta rule: a row of whole chunks pads none.
_ROUND_TO = 64


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which events, split how, and cut into which rows.

    Attributes:
      folder: A prepared dataset folder (`launch.prepare`). Empty: generate `world` in memory.
      world: Preset of the generated world, where `folder` is empty.
      world_seed: Its seed.
      world_users: Its users; None: the preset's.
      world_length: Events of a history in it, on average; None: the preset's.
      world_items: Its items; None: the preset's. Categories keep their size.
      split: "leave_one_out"; "global_temporal" at the quantiles below; "folds", the log's own.
      validation_quantile: Of all events' times: training ends, validation targets begin.
      test_quantile: Of all events' times: test targets begin.
      temporal_targets: Which events of a user after a global cut are targets.
      plan: How training events become rows: "packed" (several histories a row), "windows" (one
        history a row), "prefixes" (one target a row: the released RecGRELA).
      length: T, slots a row; also the longest history that evaluation reads. 0: whole histories,
        the longest of the data set rounded up to a multiple of 64. Packed rows then hold many
        users each, so that a batch of as many events has fewer rows.
      stride: Predictions a window makes, in 1..`length`; the `length - stride` events before them
        are context only. None: `length`, disjoint windows.
      phase: Where a user longer than a row is cut: "fixed", at the same places in every epoch, or
        "random", at other places in each.
      batch_size: Rows a step, over all devices and accumulation steps.
      request_time: Whether a prediction may use the time at which it is asked for, the target's
        own time in training and evaluation: "hidden" or "known".
    """

    folder: str = ""
    world: str = "quick"
    world_seed: int = 0
    world_users: int | None = None
    world_length: float | None = None
    world_items: int | None = None
    split: Literal["leave_one_out", "global_temporal", "folds"] = "leave_one_out"
    validation_quantile: float = 0.8
    test_quantile: float = 0.9
    temporal_targets: Literal["last", "first", "all"] = "last"
    plan: Literal["packed", "windows", "prefixes"] = "packed"
    length: int = 200
    stride: int | None = None
    phase: Literal["fixed", "random"] = "fixed"
    batch_size: int = 32
    request_time: Literal["hidden", "known"] = "hidden"

    def __post_init__(self) -> None:
        check_fields(self, counts=("batch_size",))
        length, stride = self.length, self.stride
        require(length >= 0, "length", length, "at least 1, or 0: whole histories")
        if self.plan == "prefixes":
            cut_by = "for the plan 'prefixes', in which every prediction sees a whole row"
            require(stride is None, "stride", stride, f"none {cut_by}")
            require(self.phase == "fixed", "phase", self.phase, f"'fixed' {cut_by}")
        require(
            stride is None or 1 <= stride <= length,
            "stride",
            stride,
            f"in 1..{length}, the length" if length else "none for whole histories (length=0)",
        )

    def row_length(self, dataset: Dataset) -> int:
        """T, the slots of a row: `length`, or what whole histories of a data set need."""
        if self.length:
            return self.length
        longest = int(np.diff(dataset.offsets).max(initial=1))
        return -(-longest // _ROUND_TO) * _ROUND_TO


@dataclasses.dataclass(frozen=True)
class Source:
    """An experiment's events.

    Attributes:
      dataset: All events.
      split: Which of them train, and which are predicted.
      world: The generated world they are of, which knows the best possible score; None for a log.
    """

    dataset: Dataset
    split: Split
    world: World | None


def load_source(config: DataConfig) -> Source:
    """Opens or generates the events, and splits them.

    Raises:
      DatasetError: If the folder is no dataset folder, or damaged.
      WorldError: If there is no such world, or none of that size.
      SplitError: If the events cannot be split so.
    """
    world = None
    if not config.folder:
        made_of = resized(
            world_config(config.world),
            config.world_users,
            config.world_length,
            config.world_items,
        )
        world = generate(made_of, config.world_seed)
    dataset = Dataset.open(config.folder) if world is None else world.dataset
    if config.split == "leave_one_out":
        split = leave_one_out(dataset)
    elif config.split == "global_temporal":
        split = global_temporal(
            dataset, config.validation_quantile, config.test_quantile, config.temporal_targets
        )
    else:
        split = from_folds(dataset)
    return Source(dataset, split, world)
