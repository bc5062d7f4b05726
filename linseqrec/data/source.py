"""The events of an experiment, from a dataset folder or a generated world, and their split."""

import dataclasses
from typing import Literal

import numpy as np

from linseqrec.config_fields import Config, Count, CountOrZero, Positive, Probability, require
from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import Split, from_folds, global_temporal, leave_one_out
from linseqrec.data.worlds import World, generate, resized, world_config

# The gated delta rule works in chunks of 64 slots; a row of whole chunks needs no padding.
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """The events of an experiment, their split, and the rows of its training batches.

    Attributes:
      folder: A dataset folder (`launch.prepare`). Empty: generate `world` in memory.
      world: Preset of the generated world, used if `folder` is empty.
      world_seed: Seed of the world.
      world_users: Number of users of the world. None: the preset's.
      world_length: Mean number of events of a history of the world. None: the preset's.
      world_items: Number of items of the world. None: the preset's. Categories keep their size.
      split: "leave_one_out"; "global_temporal", at the quantiles below; "folds", the log's own.
      validation_quantile: Quantile of all timestamps at which training ends and the validation
        targets begin.
      test_quantile: Quantile of all timestamps at which the test targets begin.
      temporal_targets: The targets of a user in a period of the "global_temporal" split: the last
        event, the first event, or all events.
      plan: How training events become rows: "packed" (several histories a row), "windows" (one
        history per row) or "prefixes" (one target per row, as in the released RecGRELA).
      length: T, slots in a row, and the longest history that evaluation reads. 0: the longest
        history of the data set, rounded up to a multiple of 64. Packed rows then hold many users
        each, so that a batch of the same number of events needs fewer rows.
      stride: Predictions of a window, in 1..`length`. The other `length - stride` events of the
        window are context only. None: `length`, disjoint windows.
      phase: Where to cut a history that is longer than a row: "fixed", at the same events in every
        epoch, or "random", at other events in each epoch.
      renamed: Share of the training rows in which other items stand for the row's own, drawn anew
        for each row and step. A model cannot learn such a row by heart: it learns there to look
        things up in a history (ours).
      batch_size: Rows of a training step, over all devices and accumulation steps.
      request_time: "known" if a prediction may use the time of its request, "hidden" if not. The
        request time in training and evaluation is the time of the target.
    """

    folder: str = ""
    world: str = "quick"
    world_seed: CountOrZero = 0
    world_users: Count | None = None
    world_length: Positive | None = None
    world_items: Count | None = None
    split: Literal["leave_one_out", "global_temporal", "folds"] = "leave_one_out"
    validation_quantile: float = 0.8
    test_quantile: float = 0.9
    temporal_targets: Literal["last", "first", "all"] = "last"
    plan: Literal["packed", "windows", "prefixes"] = "packed"
    length: int = 200
    stride: int | None = None
    phase: Literal["fixed", "random"] = "fixed"
    renamed: Probability = 0.0
    batch_size: Count = 32
    request_time: Literal["hidden", "known"] = "hidden"

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """T, the slots of a row: `length`, or with length 0 enough for every history."""
        if self.length:
            return self.length
        longest = int(np.diff(dataset.offsets).max(initial=1))
        return -(-longest // _CHUNK) * _CHUNK


@dataclasses.dataclass(frozen=True)
class Source:
    """The events of an experiment and their split.

    Attributes:
      dataset: All events.
      split: The training events and the targets.
      world: The generated world of the events, whose oracle gives the best possible scores. None
        for a log.
    """

    dataset: Dataset
    split: Split
    world: World | None


def load_source(config: DataConfig) -> Source:
    """The events of a configuration, opened from a folder or generated, and their split.

    Raises:
      DatasetError: The folder is not a dataset folder, or is damaged.
      WorldError: The preset is unknown.
      ConfigError: The world cannot have this size.
      SplitError: These events cannot be split this way.
    """
    world = None
    if not config.folder:
        config_of_world = resized(
            world_config(config.world),
            config.world_users,
            config.world_length,
            config.world_items,
        )
        world = generate(config_of_world, config.world_seed)
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
