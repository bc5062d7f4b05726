"""Training batches on Grain, whose only state is the step number.

A step number gives the epoch and the batch in it. The seed and the epoch give the epoch's shuffle.
One gather then reads the whole batch. Every process can thus read any step at any time.
"""

import dataclasses
import sys
from typing import Any

import grain
import numpy as np

from linseqrec.data.dataset import Dataset
from linseqrec.data.rows import (
    Batch,
    Pieces,
    cut_at_random,
    cut_windows,
    enumerate_parts,
    every_prefix,
    gather_rows,
    one_piece_a_row,
    pack,
)
from linseqrec.data.source import DataConfig
from linseqrec.data.splits import Split, SplitError

# What the training loop reads ahead, so that the host makes a batch while the devices step.
READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """The rows of one epoch, in their order in the epoch.

    Attributes:
      pieces: The P pieces of the epoch.
      members: int64 [P], the piece in each place. None: place i holds piece i.
      firsts: int64 [R], the first place of each row.
      counts: int64 [R], the number of places in each row; a row with 0 places is padding.
    """

    pieces: Pieces
    members: np.ndarray | None
    firsts: np.ndarray
    counts: np.ndarray


class TrainingBatches(grain.MapDataset[Batch]):
    """Batches of the training events of a split by step number, without end.

    Each epoch has its own shuffle, and each target occurs once in it. Rows of padding fill the last
    batch of an epoch. Iterators of `to_iter_dataset` save the step in `get_state` and restore it in
    `set_state`.

    Attributes:
      length: T, slots in a row.
      batch_size: Rows in a global batch.
      rows_per_epoch: R, the number of rows in every epoch.
      steps_per_epoch: Batches in every epoch.
      fill: Share of the slots that hold an event, without the padding of the last batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        config: DataConfig,
        *,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Cuts the training events of a split into rows.

        Args:
          dataset: The events.
          split: A split of `dataset`; it says where each user's training events end.
          config: How the events become rows, and rows batches.
          seed: Seed of the shuffles, at least 0.
          process_index: The slice of each global batch that this process reads, from 0.
          process_count: Number of equal slices of a global batch, one per process.

        Raises:
          ValueError: The split is not of `dataset`.
          SplitError: No user has two training events.
        """
        super().__init__()
        if len(split.train_end) != dataset.num_users:
            raise ValueError(
                f"the split has {len(split.train_end)} users, but the data set has "
                f"{dataset.num_users}: make the split from this data set"
            )
        plan, length = config.plan, config.row_length(dataset)
        starts, ends = np.asarray(dataset.offsets[:-1]), np.asarray(split.train_end)
        inputs = ends - starts - 1
        if not (inputs > 0).any():
            raise SplitError(
                f"split {split.name!r} leaves nothing to train on: none of the {dataset.num_users} "
                "users has two training events. Take another split, or a larger data set"
            )
        # With a random phase, every epoch cuts these users again; `_pieces` are all other pieces.
        cut_per_epoch = (inputs > length) & (config.phase == "random")
        self._cut_per_epoch = starts[cut_per_epoch], ends[cut_per_epoch]
        if plan == "prefixes":
            self._pieces = every_prefix(starts, ends, length)
        else:
            self._pieces = cut_windows(
                starts[~cut_per_epoch], ends[~cut_per_epoch], length, config.stride
            )
        lengths = self._pieces.lengths
        self._rows = pack(lengths, length) if plan == "packed" else one_piece_a_row(lengths)
        self._dataset, self._config, self._seed = dataset, config, seed
        self._process_index = process_index
        self._rows_per_process = config.batch_size // process_count
        self._epochs: dict[int, _Epoch] = {}
        self.length = length
        self.batch_size = config.batch_size
        first_epoch = self._epoch(0)
        self.rows_per_epoch = len(first_epoch.counts)
        self.steps_per_epoch = -(-self.rows_per_epoch // self.batch_size)
        filled_slots = np.sum(first_epoch.pieces.lengths, dtype=np.int64)
        self.fill = float(filled_slots / (self.rows_per_epoch * length))

    def __len__(self) -> int:
        # The length that Grain gives to a data set without end.
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        """The batch of step `index`; a slice gives a data set of those steps."""
        if isinstance(index, slice):
            return self.slice(index)
        if index < 0:
            raise IndexError(f"step is {index}: it must be at least 0")
        first_row = self._process_index * self._rows_per_process
        pieces, members, counts = self._members(int(index), first_row, self._rows_per_process)
        batch = gather_rows(
            self._dataset,
            pieces,
            members,
            counts,
            self.length,
            last_only=self._config.plan == "prefixes",
            request_times=self._config.request_time == "known",
        )
        return self._rename(batch, int(index)) if self._config.renamed else batch

    def users(self, index: int) -> np.ndarray:
        """The users, by index, whose events are in the global batch of step `index`."""
        pieces, members, _ = self._members(index, 0, self.batch_size)
        starts = pieces.starts[members]
        return np.unique(np.searchsorted(self._dataset.offsets, starts, side="right") - 1)

    def _members(
        self, index: int, first_row: int, num_rows: int
    ) -> tuple[Pieces, np.ndarray, np.ndarray]:
        """The pieces in some consecutive rows of a global batch.

        Returns:
          The pieces of the epoch; int64 [K], the pieces in the rows, row after row; int64
          [num_rows], the number of pieces in each row.
        """
        epoch_number, step = divmod(index, self.steps_per_epoch)
        epoch = self._epoch(epoch_number)
        first_row += step * self.batch_size
        rows = slice(first_row, first_row + num_rows)
        places_in_row = epoch.counts[rows]
        # The last batch of an epoch may have fewer rows.
        counts = np.zeros(num_rows, np.int64)
        counts[: len(places_in_row)] = places_in_row
        row, within = enumerate_parts(places_in_row)
        places = epoch.firsts[rows][row] + within
        return epoch.pieces, places if epoch.members is None else epoch.members[places], counts

    def _rename(self, batch: Batch, index: int) -> Batch:
        """A batch in which some of the rows have other items instead of their own."""
        items: Any = np.array(batch.events.items)
        targets: Any = np.array(batch.targets)
        first_row = self._process_index * self._rows_per_process
        for row, (inputs, outputs) in enumerate(zip(items, targets, strict=True)):
            generator = np.random.default_rng((self._seed, index, first_row + row, 2))
            if generator.random() >= self._config.renamed:
                continue
            own = np.setdiff1d(np.concatenate([inputs, outputs]), 0)
            others = 1 + generator.choice(self._dataset.num_items, len(own), replace=False)
            for ids in (inputs, outputs):
                ids[ids > 0] = others[np.searchsorted(own, ids[ids > 0])]
        events = dataclasses.replace(batch.events, items=items)
        return dataclasses.replace(batch, events=events, targets=targets)

    def to_iter_dataset(
        self, read_options: grain.ReadOptions | None = None, *, allow_nones: bool = False
    ) -> grain.IterDataset[Batch]:
        """The batches as a data set to iterate over, without threads by default.

        Grain's default reads 500 elements ahead with 16 threads. Here an element is a whole batch:
        making one takes less time than passing it between threads. Training reads `READ_AHEAD`.
        """
        if read_options is None:
            read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return super().to_iter_dataset(read_options, allow_nones=allow_nones)

    def _epoch(self, number: int) -> _Epoch:
        """The rows of an epoch, from a cache of two epochs: threads that read ahead need both."""
        epoch = self._epochs.get(number)
        if epoch is None:
            epoch = self._make_epoch(number)
            # A new dict instead of a change in place: a prefetching thread may be reading the old.
            latest = sorted(self._epochs.items())[-1:]
            self._epochs = dict([*latest, (number, epoch)])
        return epoch

    def _make_epoch(self, number: int) -> _Epoch:
        """The rows of an epoch; they depend on the seed and the epoch number alone."""
        rows = self._rows
        row_order, members = rows.shuffled(self._seed, number)
        starts, ends = self._cut_per_epoch
        if not len(starts):
            return _Epoch(self._pieces, members, rows.firsts[row_order], rows.counts[row_order])
        generator = np.random.default_rng((self._seed, number, 1))
        pieces, counts = cut_at_random(starts, ends, self.length, self._config.stride, generator)
        firsts = np.cumsum(counts) - counts
        if self._config.plan == "windows":
            # One row per piece. There is one piece less for each cut that falls between two users.
            # Rows of padding keep the number of rows the same in every epoch.
            max_pieces = len(starts) + len(counts)
            firsts = np.arange(max_pieces)
            counts = (np.arange(max_pieces) < len(pieces)).astype(np.int64)
        num_fixed = len(self._pieces)
        firsts = np.concatenate([rows.firsts, num_fixed + firsts])
        counts = np.concatenate([rows.counts, counts])
        if members is None:
            members = np.arange(num_fixed)
        members = np.append(members, num_fixed + np.arange(len(pieces)))
        row_order = generator.permutation(len(counts))
        return _Epoch(
            self._pieces.followed_by(pieces), members, firsts[row_order], counts[row_order]
        )
