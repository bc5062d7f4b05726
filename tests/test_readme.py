"""What the README shows works."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linseqrec.events import Events
from linseqrec.layers.embedding import ItemEmbedding
from linseqrec.models.encoding import Encoding
from linseqrec.ops.linear_attention import linear_attention

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_example_model_is_a_running_mean():
    section = README.read_text().split("## A new model\n")[1]
    code = section.split("```python\n")[1].split("```")[0]
    names = {
        "dataclasses": dataclasses,
        "jnp": jnp,
        "nnx": nnx,
        "Encoding": Encoding,
        "ItemEmbedding": ItemEmbedding,
        "linear_attention": linear_attention,
    }
    exec(code, names)
    model = names["MeanConfig"](width=4).build(9, rngs=nnx.Rngs(0))
    items = np.array([[3, 1, 4, 1, 5, 0]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    events = Events(items, np.zeros_like(items), segments, np.zeros_like(items))
    hidden = np.asarray(jax.jit(lambda events: model(events).hidden)(events))[0]
    rows = np.asarray(model.item_table())[items[0]]
    np.testing.assert_allclose(hidden[2], rows[:3].mean(0), atol=1e-6)
    np.testing.assert_allclose(hidden[4], rows[3:5].mean(0), atol=1e-6)
