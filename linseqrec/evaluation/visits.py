"""Which targets and which seen items stand in which block of the catalogue.

`ranks.py` scores the catalogue a block at a time. These plans are made on the host, with NumPy, so
that the compiled program reads of each block no more than what concerns it.

Axis letters: B batch, S seen items, V visits, P pairs, M pairs at once.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from linseqrec.ops.top_k import ROW_MULTIPLE


def seen_slots(longest: int) -> int:
    """The padded width of a batch of seen items: 256, or 256 times a power of 4.

    JAX compiles once for each width, so few widths mean few compilations.

    Args:
      longest: The largest number of seen items in a row.
    """
    width = 256
    while width < longest:
        width *= 4
    return width


class Layout(NamedTuple):
    """How a mesh divides the queries and the table.

    Attributes:
      slices: Parts of the queries' rows.
      slice_rows: Rows of a slice.
      parts: Parts of the table.
      part_rows: Rows of a part of the table.
      block: Items that are scored at once.
    """

    slices: int
    slice_rows: int
    parts: int
    part_rows: int
    block: int


class TargetVisits(NamedTuple):
    """The blocks in which targets stand, with the rows whose targets they are.

    Attributes:
      blocks: For each slice and part the block of each visit.
      rows: The rows of the slice that a visit reads, at most 8; `slice_rows` where there is none.
      number: The number of visits; the arrays are longer.
    """

    blocks: Int[Any, "slices parts V"]
    rows: Int[Any, "slices parts V 8"]
    number: Any


def plan_targets(targets: Int[np.ndarray, "B"], layout: Layout) -> TargetVisits:
    """Plans the visits that read the targets' scores.

    Args:
      targets: The rows' target items, from 1.
      layout: How the mesh divides rows and items.
    """
    # The shapes do not depend on where the targets are, so JAX compiles only once.
    shape = (layout.slices, layout.parts, layout.slice_rows)
    blocks = np.zeros(shape, np.int32)
    rows = np.full((*shape, ROW_MULTIPLE), layout.slice_rows, np.int32)
    most = 0
    for number, own in enumerate(targets.reshape(layout.slices, -1)):
        for part in range(layout.parts):
            here = np.flatnonzero(own // layout.part_rows == part)
            block = own[here] % layout.part_rows // layout.block
            visits = [
                (each, together[start : start + ROW_MULTIPLE])
                for each in np.unique(block)
                for together in [here[block == each]]
                for start in range(0, len(together), ROW_MULTIPLE)
            ]
            for index, (each, read) in enumerate(visits):
                blocks[number, part, index], rows[number, part, index, : len(read)] = each, read
            most = max(most, len(visits))
    return TargetVisits(blocks, rows, most)


class SeenPairs(NamedTuple):
    """The distinct pairs of a row and an item that it has seen, in the order of the items.

    Attributes:
      rows: For each slice and part the row of each pair in the slice.
      items: The item's row in the part of the table.
      starts: The first pair of each block, and the end of the last block's.
      at_once: An array whose length is at least the largest number of pairs in a block. Only its
        length is read.
    """

    rows: Int[Any, "slices parts P"]
    items: Int[Any, "slices parts P"]
    starts: Int[Any, "slices parts blocks1"]
    at_once: Bool[Any, "M"]


def plan_seen(seen: Int[np.ndarray, "B S"], layout: Layout) -> SeenPairs:
    """Sorts what the rows have seen by the blocks of the catalogue.

    Args:
      seen: Items that each row has seen, in any order, with repeats; 0 is padding.
      layout: How the mesh divides rows and items.
    """
    num_blocks = -(-layout.part_rows // layout.block)
    all_rows, columns = np.nonzero(seen > 0)
    all_items = seen[all_rows, columns].astype(np.int64)
    # Distinct, and sorted by slice, item and row.
    number, row = np.divmod(all_rows, layout.slice_rows)
    table_rows = layout.parts * layout.part_rows
    key = np.unique((number * table_rows + all_items) * layout.slice_rows + row)
    key, row = np.divmod(key, layout.slice_rows)
    number, item = np.divmod(key, table_rows)
    part, item = np.divmod(item, layout.part_rows)
    group = number * layout.parts + part
    ends = np.searchsorted(group, np.arange(layout.slices * layout.parts + 1))
    starts = np.array(
        [
            np.searchsorted(item[begin:end], layout.block * np.arange(num_blocks + 1))
            for begin, end in itertools.pairwise(ends)
        ]
    )
    # Few lengths mean few compilations.
    at_once = seen_slots(int(np.diff(starts).max(initial=0)))
    length = at_once + seen_slots(int(np.diff(ends).max(initial=0)))
    shape = (layout.slices, layout.parts)
    rows = np.full((len(starts), length), layout.slice_rows, np.int32)
    items = np.zeros_like(rows)
    for index, (begin, end) in enumerate(itertools.pairwise(ends)):
        rows[index, : end - begin], items[index, : end - begin] = row[begin:end], item[begin:end]
    return SeenPairs(
        rows.reshape(*shape, -1),
        items.reshape(*shape, -1),
        starts.astype(np.int32).reshape(*shape, -1),
        np.zeros(at_once, bool),
    )
