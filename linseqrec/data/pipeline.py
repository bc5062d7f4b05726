"""Training batches on Grain: a step number is all the state there is.

Step → epoch and batch within it → that epoch's shuffle, planned vectorised from (seed, epoch) → one
gather for the whole batch. Any step can be asked for at any time, in any process.
"""

import dataclasses
import sys
from typing import Any, Literal

import grain
import numpy as np

from linseqrec.data.batch import Batch, gather_rows
from linseqrec.data.dataset import Dataset
from linseqrec.data.packing import one_piece_a_row, pack
from linseqrec.data.splits import Split
from linseqrec.data.windows import Pieces, cut_in_line, cut_windows, every_prefix

Plan = Literal["packed", "windows", "prefixes"]
Phase = Literal["fixed", "random"]


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """The rows of one epoch, in the order in which they are visited.

    Attributes:
      pieces: The epoch's pieces, P of them.
      members: int64 [P], the piece in each place; None where place i holds piece i.
      firsts: int64 [R], each row's first place.
      counts: int64 [R], each row's number of places; 0 is a row of padding.
    """

    pieces: Pieces
    members: np.ndarray | None
    firsts: np.ndarray
    counts: np.ndarray


class TrainingBatches(grain.MapDataset[Batch]):
    """Training batches by step number, without end; `training_batches` makes it.

    Within an epoch each target is seen once; the epoch's last batch is filled up with rows of
    padding. Iterators made by `to_iter_dataset` save and restore the step by `get_state` and
    `set_state`.

    Attributes:
      length: T, slots in a row.
      batch_size: Rows in a global batch.
      rows_per_epoch: Rows in every epoch, R.
      steps_per_epoch: Batches in every epoch.
      fill: Share of the slots of those rows that hold an event.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        plan: Plan,
        length: int,
        stride: int | None,
        phase: Phase,
        batch_size: int,
        seed: int,
        process_index: int,
        process_count: int,
        request_times: bool,
    ):
        super().__init__()
        starts, ends = np.asarray(dataset.offsets[:-1]), np.asarray(split.train_end)
        inputs = ends - starts - 1
        if not (inputs > 0).any():
            raise ValueError(
                f"split {split.name!r} leaves nothing to train on: none of the {dataset.num_users} "
                "users has two training events"
            )
        cut_anew = (inputs > length) & (phase == "random")
        self._cut_anew = starts[cut_anew], ends[cut_anew]
        if plan == "prefixes":
            self._pieces = every_prefix(starts, ends, length)
        else:
            self._pieces = cut_windows(starts[~cut_anew], ends[~cut_anew], length, stride)
        lengths = self._pieces.lengths
        self._rows = pack(lengths, length) if plan == "packed" else one_piece_a_row(lengths)
        self._dataset, self._plan, self._stride = dataset, plan, stride
        self._request_times = request_times
        self._seed = seed
        self._process_index = process_index
        self._rows_per_process = batch_size // process_count
        self._epochs: dict[int, _Epoch] = {}
        self.length = length
        self.batch_size = batch_size
        first = self._epoch(0)
        self.rows_per_epoch = len(first.counts)
        self.steps_per_epoch = -(-self.rows_per_epoch // batch_size)
        slots = np.sum(first.pieces.lengths, dtype=np.int64)
        self.fill = float(slots / (self.rows_per_epoch * length))

    def __len__(self) -> int:
        # Grain's own length of a data set repeated without end.
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        """The batch of step `index`; a slice gives a data set of those steps."""
        if isinstance(index, slice):
            return self.slice(index)
        if index < 0:
            raise IndexError(f"steps count from 0, got {index}")
        pieces, members, counts = self._members(int(index))
        return gather_rows(
            self._dataset,
            pieces,
            members,
            counts,
            self.length,
            last_only=self._plan == "prefixes",
            request_times=self._request_times,
        )

    def users(self, index: int) -> np.ndarray:
        """The users, by index, whose events are in the batch of step `index`."""
        pieces, members, _ = self._members(index)
        starts = pieces.starts[members]
        return np.unique(np.searchsorted(self._dataset.offsets, starts, side="right") - 1)

    def _members(self, index: int) -> tuple[Pieces, np.ndarray, np.ndarray]:
        """An epoch's pieces, those of a step's batch row after row, how many each row holds."""
        number, step = divmod(index, self.steps_per_epoch)
        epoch = self._epoch(number)
        first = step * self.batch_size + self._process_index * self._rows_per_process
        rows = slice(first, first + self._rows_per_process)
        held = epoch.counts[rows]
        counts = np.zeros(self._rows_per_process, np.int64)
        counts[: len(held)] = held
        places = np.arange(held.sum()) + np.repeat(
            epoch.firsts[rows] - (np.cumsum(held) - held), held
        )
        return epoch.pieces, places if epoch.members is None else epoch.members[places], counts

    def to_iter_dataset(
        self, read_options: grain.ReadOptions | None = None, *, allow_nones: bool = False
    ) -> grain.IterDataset[Batch]:
        """An iterator's data set; by default without threads.

        Grain would read 500 elements ahead with 16 threads; here an element is a whole batch, made
        in less time than threads take to hand it over. Where the step leaves the host no time,
        `grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)` reads ahead.
        """
        if read_options is None:
            read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return super().to_iter_dataset(read_options, allow_nones=allow_nones)

    def _epoch(self, number: int) -> _Epoch:
        """An epoch's rows; the two last asked for are kept, since prefetching reads ahead."""
        epoch = self._epochs.get(number)
        if epoch is None:
            epoch = self._planned(number)
            # Replaced, never changed in place: prefetching threads may read it meanwhile.
            kept = sorted(self._epochs.items())[-1:]
            self._epochs = dict([*kept, (number, epoch)])
        return epoch

    def _planned(self, number: int) -> _Epoch:
        """An epoch's rows, a function of the seed and the epoch's number alone."""
        rows, order = self._rows, self._rows.shuffled(self._seed, number)
        starts, ends = self._cut_anew
        if not len(starts):
            return _Epoch(
                self._pieces, order.pieces, rows.firsts[order.rows], rows.counts[order.rows]
            )
        generator = np.random.default_rng((self._seed, number, 1))
        pieces, counts = cut_in_line(starts, ends, self.length, self._stride, generator)
        firsts = np.cumsum(counts) - counts
        if self._plan == "windows":
            # Where a cut falls between two users there is a piece less: the row stays empty.
            most = len(starts) + len(counts)
            firsts, counts = np.arange(most), (np.arange(most) < len(pieces)).astype(np.int64)
        before = len(self._pieces)
        firsts = np.concatenate([rows.firsts, before + firsts])
        counts = np.concatenate([rows.counts, counts])
        members = np.arange(before + len(pieces))
        if order.pieces is not None:
            members[:before] = order.pieces
        visited = generator.permutation(len(counts))
        return _Epoch(self._pieces.followed_by(pieces), members, firsts[visited], counts[visited])


def training_batches(
    dataset: Dataset,
    split: Split,
    *,
    plan: Plan = "packed",
    length: int,
    batch_size: int,
    seed: int,
    stride: int | None = None,
    phase: Phase = "fixed",
    process_index: int = 0,
    process_count: int = 1,
    request_times: bool = False,
) -> TrainingBatches:
    """Batches of a split's training events, shuffled anew in every epoch.

    Args:
      dataset: The events.
      split: Where each user's training events end.
      plan: How events are laid in rows. "packed": windows of several users share a row; the loss is
        that of "windows": one window a row; "prefixes": RecGRELA's released mode, a row for every
        training event, predicted at its last slot from up to T events before it.
      length: T, slots in a row.
      batch_size: Rows in a global batch.
      seed: Of the shuffles, at least 0.
      stride: Of the windows (see `cut_windows`); None makes them disjoint.
      phase: Where users longer than a row are cut. "fixed": at the same places in every epoch,
        counted from their last event; "random": at other places in each epoch (see `cut_in_line`),
        so that what a prediction sees changes. The number of steps is the same in every epoch.
      process_index: Which slice of each global batch this process reads.
      process_count: Into how many equal slices global batches are divided.
      request_times: Whether events carry the time at which the prediction after each is asked for.

    Returns:
      The batches, for step 0, 1, 2, ... without end.

    Raises:
      ValueError: An argument out of range, a split of another data set, or nothing to train on.
    """
    if plan not in ("packed", "windows", "prefixes"):
        raise ValueError(f'plan must be "packed", "windows" or "prefixes", got {plan!r}')
    if stride is not None and plan == "prefixes":
        raise ValueError("stride has no meaning for prefixes: every prefix is a row")
    if phase not in ("fixed", "random"):
        raise ValueError(f'phase must be "fixed" or "random", got {phase!r}')
    if phase == "random" and plan == "prefixes":
        raise ValueError("a random phase has no meaning for prefixes: no history is cut")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be in 0..process_count - 1, got {process_index} of {process_count}"
        )
    if batch_size % process_count:
        raise ValueError(
            f"a batch of {batch_size} rows does not divide over {process_count} processes"
        )
    if len(split.train_end) != dataset.num_users:
        raise ValueError(
            f"the split is of {len(split.train_end)} users but the data set has "
            f"{dataset.num_users}: make it from this data set"
        )
    return TrainingBatches(
        dataset,
        split,
        plan,
        length,
        stride,
        phase,
        batch_size,
        seed,
        process_index,
        process_count,
        request_times,
    )
