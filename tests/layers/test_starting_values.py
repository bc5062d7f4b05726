"""What a fresh mixer does: it looks up what followed an item before, and says it as an item."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.conditional_memory import NoMemory
from linseqrec.layers.gated_delta import GatedDeltaMixer
from linseqrec.layers.memory_attention import MemoryAttention
from linseqrec.layers.standard import unit_length
from linseqrec.layers.tadn import TADN
from linseqrec.layers.tdgd import TDGD
from linseqrec.layers.time_gaps import Clock, NoGapFeatures
from linseqrec.layers.window_attention import WindowAttention

WIDTH = 256
ITEMS = np.random.default_rng(1).normal(size=(40, WIDTH)).astype(np.float32)
# Item 3 is followed by 7, and long ago; then it comes again.
HISTORY = [1, 3, 7, *range(10, 16), 3]
IDS = jnp.ones((1, len(HISTORY)), jnp.int32)
RNGS = nnx.Rngs(1)


def mixed_by(mixer, history):
    x = jnp.asarray(ITEMS[history])[None]
    ids, gaps = jnp.ones((1, len(history)), jnp.int32), jnp.zeros((1, len(history)))
    state = mixer.initial_state(1)
    if isinstance(mixer, TADN | WindowAttention):
        return mixer(x, Clock(ids, ids - 1, gaps, gaps), state)[0]
    memory, _ = NoMemory()(x, ids, ())
    told = {}
    if isinstance(mixer, TDGD):
        told = dict(gaps=gaps, gap_features=NoGapFeatures()(gaps), memory=memory)
    if isinstance(mixer, MemoryAttention):
        told = dict(slots=memory.slots)
    return mixer(x, ids, state, **told)[0]


MIXERS = {
    "Gated DeltaNet": lambda: GatedDeltaMixer(WIDTH, 2, key_width=128, value_width=64, rngs=RNGS),
    "TADN": lambda: TADN(WIDTH, 2, key_width=128, value_width=128, gate="none", rngs=RNGS),
    "TDGD": lambda: TDGD(
        WIDTH,
        2,
        key_width=128,
        value_width=64,
        gap_features=None,
        temporal_decay=False,
        write_gate="none",
        read_removal=False,
        rngs=RNGS,
    ),
    "HyTRec's attention": lambda: WindowAttention(
        WIDTH, 2, window=64, kernel=4, dtype=jnp.float32, rngs=RNGS
    ),
    "SinkRec's attention": lambda: MemoryAttention(
        WIDTH, 2, window=64, slot_width=None, kernel=4, rngs=RNGS
    ),
}


def test_fresh_keys_are_as_alike_as_their_items():
    mixer = GatedDeltaMixer(WIDTH, 1, key_width=WIDTH, value_width=64, rngs=RNGS)
    past = mixer.convolution.initial_state(1)
    _, keys, _, _ = mixer.project(ITEMS[None], jnp.ones((1, len(ITEMS)), jnp.int32), past)
    # The key of an event is the item before it.
    cosines, wanted = (
        (x @ x.T)[~np.eye(len(x), dtype=bool)]
        for x in (
            np.asarray(unit_length(keys))[0, 1:, 0],
            np.asarray(unit_length(jnp.asarray(ITEMS)))[:-1],
        )
    )
    assert abs(cosines.mean()) < 0.03, "keys of unrelated items point nowhere in common"
    assert np.abs(cosines - wanted).max() < 0.1


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("name", MIXERS)
def test_a_fresh_head_says_what_followed_the_item_before(name, shift):
    """Head h reads from h events back: item 3, then one other event, then what it said of 3."""
    mixer = MIXERS[name]()
    width = mixer.output.kernel.shape[0] // 2
    rows = np.array(mixer.output.kernel[...])
    rows[(1 - shift) * width : (2 - shift) * width] = 0
    mixer.output.kernel[...] = jnp.asarray(rows)
    if hasattr(mixer, "output_gate"):
        # Fresh gates know no item from another: every event is written alike, and all is read.
        mixer.write_strength.kernel[...] = jnp.zeros_like(mixer.write_strength.kernel[...])
        mixer.output_gate = lambda x: jnp.ones((*x.shape[:2], 2 * width))
    history = HISTORY + [8] * shift
    said = np.asarray(jax.jit(lambda: mixed_by(mixer, history))())[0, -1]
    assert (ITEMS @ said).argmax() == [7, 10][shift]
