"""How segments may stand in a row, for tests of segment-aware operations."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def segment_layouts(draw, rows: int, slots: int) -> np.ndarray:
    """Segment ids [rows, slots]: contiguous segments, ids in any order, padding anywhere around."""
    ids = np.zeros((rows, slots), np.int32)
    for row in ids:
        cuts = sorted(draw(st.lists(st.integers(0, slots), max_size=8)))
        names = draw(st.permutations(range(1, 10)))
        for start, stop, name in zip([0, *cuts], [*cuts, slots], names, strict=False):
            row[start:stop] = 0 if draw(st.integers(0, 3)) == 0 else name
    return ids


# Padding on both sides and between, a segment of one slot, ids out of order; a whole row; no event;
# left padding; right padding with two segments.
LAYOUT = np.array(
    [
        [0, 0, 0, 7, 7, 7, 7, 2, 0, 0, 5, 5, 5, 5, 5, 5, 5, 0, 0],
        [1] * 19,
        [0] * 19,
        [0] * 6 + [3] * 13,
        [4] * 9 + [1] * 7 + [0] * 3,
    ],
    np.int32,
)


# Four parts of a row's inputs, to be packed anew.
PARTS = (slice(0, 4), slice(4, 5), slice(5, 12), slice(12, 14))


def packed(inputs, order, gaps):
    """A row of some of the parts, in an order, each after a gap of padding that is NaN.

    Args:
      inputs: [1, T, ...] by name.
      order: Numbers of `PARTS`.
      gaps: Slots of padding before each.

    Returns:
      The row's inputs by name, its segment ids, and the place of each part by number.
    """
    row = {name: np.full_like(array, np.nan) for name, array in inputs.items()}
    time = next(iter(inputs.values())).shape[1]
    segment_ids, at, places = np.zeros((1, time), np.int32), 0, {}
    for part, gap in zip(order, gaps, strict=True):
        source = PARTS[part]
        place = slice(at + gap, at + gap + source.stop - source.start)
        segment_ids[:, place] = part + 1
        for name, array in row.items():
            array[:, place] = inputs[name][:, source]
        at, places[part] = place.stop, place
    return row, segment_ids, places
