"""Compares HSTU and FuXi-Linear with their released PyTorch code on the same random weights.

    python -m tests.parity.released hstu CHECKOUT          of meta-recsys/generative-recommenders
    python -m tests.parity.released fuxi_linear CHECKOUT   of USTC-StarTeam/fuxi-linear

It needs PyTorch, NumPy and einops beside this library, and fetches nothing. The kernels of
`fbgemm_gpu` that the released code calls are stood for by a few lines here. PyTorch computes in
float64, this library in float32. The released models are told the time of each event's target, and
so is ours. The script prints the largest difference of the hidden states, which have unit length,
and fails above 1e-5.
"""

import argparse
import sys

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from linseqrec.events import Events
from linseqrec.models.fuxi_linear import FuXiLinearConfig
from linseqrec.models.hstu import HSTUConfig
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models.reference import random_model, run

NUM_ITEMS, WIDTH, SLOTS = 40, 32, 48
# Each history leaves a slot for its target's time.
LENGTHS = (47, 20, 1, 33)
TOLERANCE = 1e-5

HSTU = HSTUConfig(width=WIDTH, heads=2, num_layers=3, max_length=SLOTS, temperature=1.0)
FUXI_LINEAR = FuXiLinearConfig(
    width=WIDTH, heads=4, num_layers=3, position_width=12, max_length=SLOTS, temperature=1.0
)


def stand_for_fbgemm():
    """Registers what the released code calls of `torch.ops.fbgemm`, for a CPU."""
    library = torch.library.Library("fbgemm", "DEF")

    def define(schema, function):
        library.define(schema)
        library.impl(schema.split("(")[0], function, "CompositeImplicitAutograd")

    def asynchronous_complete_cumsum(lengths):
        return torch.cat([torch.zeros_like(lengths[:1]), torch.cumsum(lengths, 0)])

    def jagged_to_padded_dense(values, offsets, max_lengths, padding_value=0.0):
        rows = [values[a:b] for a, b in zip(offsets[0][:-1], offsets[0][1:], strict=True)]
        padded = values.new_full((len(rows), max_lengths[0], values.shape[1]), padding_value)
        for row, source in zip(padded, rows, strict=True):
            row[: len(source)] = source
        return padded

    def dense_to_jagged(dense, offsets):
        lengths = torch.diff(offsets[0])
        rows = [row[:length] for row, length in zip(dense, lengths, strict=True)]
        return torch.cat(rows), [offsets[0]]

    define("asynchronous_complete_cumsum(Tensor x) -> Tensor", asynchronous_complete_cumsum)
    define(
        "jagged_to_padded_dense(Tensor values, Tensor[] offsets, int[] max_lengths, "
        "float padding_value=0.0) -> Tensor",
        jagged_to_padded_dense,
    )
    define("dense_to_jagged(Tensor x, Tensor[] offsets) -> (Tensor, Tensor[])", dense_to_jagged)
    return library


def parts(package):
    """The released embedding, input and output modules, and what they are told of."""
    sequential = f"{package}.sequential"
    embedding = __import__(f"{sequential}.embedding_modules", fromlist=["_"])
    inputs = __import__(f"{sequential}.input_features_preprocessors", fromlist=["_"])
    outputs = __import__(f"{sequential}.output_postprocessors", fromlist=["_"])
    return dict(
        max_sequence_len=SLOTS - 1,
        max_output_len=1,
        embedding_dim=WIDTH,
        normalization="rel_bias",
        linear_activation="silu",
        linear_dropout_rate=0.0,
        attn_dropout_rate=0.0,
        embedding_module=embedding.LocalEmbeddingModule(NUM_ITEMS, WIDTH),
        similarity_module=torch.nn.Identity(),
        input_features_preproc_module=(
            inputs.LearnablePositionalEmbeddingInputFeaturesPreprocessor(SLOTS, WIDTH, 0.0)
        ),
        output_postproc_module=outputs.L2NormEmbeddingPostprocessor(WIDTH),
        verbose=False,
    )


def released_hstu():
    from generative_recommenders.research.modeling.sequential.hstu import HSTU as Released

    return Released(
        **parts("generative_recommenders.research.modeling"),
        num_blocks=HSTU.num_layers,
        num_heads=HSTU.heads,
        linear_dim=WIDTH // HSTU.heads,
        attention_dim=WIDTH // HSTU.heads,
        linear_config="uvqk",
    )


def released_fuxi_linear():
    from generative_recommenders.modeling.sequential.fuxi_linear import FuXiLinear as Released

    size = WIDTH // FUXI_LINEAR.heads
    model = Released(
        **parts("generative_recommenders.modeling"),
        num_blocks=FUXI_LINEAR.num_layers,
        num_heads=FUXI_LINEAR.heads,
        linear_dim=size,
        attention_dim=size,
        ffn_multiply=FUXI_LINEAR.feed_forward,
        chunk_size=8,
        channel_p_config={
            "type": "linear",
            "dim": FUXI_LINEAR.position_width,
            "aug_current": True,
        },
        channel_t_config={
            "type": "linear",
            "num_heads": FUXI_LINEAR.periods,
            # 2^10 seconds, and each period 2^3 times the one before.
            "base": 2,
            "start_index": 10,
            "base_stride": 3,
            "aug_current": True,
            "learnable_gamma": True,
        },
    )
    # Its feed-forward halves cast to float32, before and after.
    for name, module in model.named_modules():
        if name.endswith("._mffn"):
            module.dtype = torch.float64
            module.register_forward_hook(lambda module, inputs, output: output.double())
    return model


def shared(arrays):
    """Parameters that both have, by the released names."""
    return {
        "_embedding_module._item_emb.weight": arrays["embedding/table"],
        "_input_features_preproc._pos_emb.weight": arrays["positions/table"],
    }


def hstu_weights(arrays):
    weights, future = shared(arrays), np.full(SLOTS - 1, 9.0)
    for i in range(HSTU.num_layers):
        block, layer = f"blocks/{i}", f"_hstu._attention_layers.{i}"
        # Entry N - 1 - d is of a key d slots before the query; those behind it are of the future.
        bias = np.concatenate([arrays[f"{block}/position_bias"][::-1], future])
        weights |= {
            f"{layer}._uvqk": arrays[f"{block}/project/kernel"],
            f"{layer}._rel_attn_bias._pos_w": bias,
            f"{layer}._rel_attn_bias._ts_w": arrays[f"{block}/time_bias"],
            f"{layer}._o.weight": arrays[f"{block}/output/kernel"].T,
            f"{layer}._o.bias": arrays[f"{block}/output/bias"],
        }
    return weights


def fuxi_linear_weights(arrays):
    weights = shared(arrays)
    weights["_fuxi._attention_layers.0._channel_t._gamma"] = arrays["phases/fading"]
    for i in range(FUXI_LINEAR.num_layers):
        block, layer = f"blocks/{i}", f"_fuxi._attention_layers.{i}"
        one, two = np.split(arrays[f"{block}/feed_forward/expand/kernel"], 2, axis=1)
        weights |= {
            f"{layer}._uvqk": arrays[f"{block}/project/kernel"],
            f"{layer}._retention._gamma": arrays[f"{block}/retention/rate"],
            f"{layer}._channel_t.proj_v.weight": arrays[f"{block}/temporal/value/kernel"].T,
            f"{layer}._channel_t.alpha": arrays[f"{block}/temporal/past"],
            f"{layer}._channel_t.beta": arrays[f"{block}/temporal/current"],
            f"{layer}._channel_p._proj_p.weight": arrays[f"{block}/positional/value/kernel"].T,
            f"{layer}._channel_p._emb": arrays[f"{block}/positional/table"],
            f"{layer}._channel_p._alpha": arrays[f"{block}/positional/past"],
            f"{layer}._channel_p._beta": arrays[f"{block}/positional/current"],
            f"{layer}._mffn.lin0.weight": arrays[f"{block}/output/kernel"].T,
            f"{layer}._mffn.lin1.weight": one.T,
            f"{layer}._mffn.lin3.weight": two.T,
            f"{layer}._mffn.lin2.weight": arrays[f"{block}/feed_forward/contract/kernel"].T,
        }
    return weights


def load(model, weights):
    """Puts every parameter into the released model, which must have just these."""
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys(), parameters.keys() ^ weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert parameter.shape == weights[name].shape, (name, parameter.shape)
            parameter.copy_(torch.tensor(np.ascontiguousarray(weights[name])))


def histories():
    """Items [B, N] and times [B, N], each history's target time behind it, and lengths."""
    rng = np.random.default_rng(0)
    items = rng.integers(1, NUM_ITEMS + 1, (len(LENGTHS), SLOTS))
    # The same second, seconds, minutes, days, months.
    gaps = rng.choice([0, 3, 400, 90_000, 5_000_000], items.shape)
    times, slots = 10**8 + np.cumsum(gaps, axis=1), np.arange(SLOTS)
    lengths = np.array(LENGTHS)
    items = np.where(slots < lengths[:, None], items, 0)
    return items, np.where(slots <= lengths[:, None], times, 0), lengths


def by_pytorch(model, items, times, lengths):
    ids = torch.tensor(items)
    with torch.no_grad():
        return model(
            past_lengths=torch.tensor(lengths),
            past_ids=ids,
            past_embeddings=model.get_item_embeddings(ids),
            past_payloads={"timestamps": torch.tensor(times)},
        ).numpy()


def by_this_library(model, items, times):
    real = items > 0
    slots = np.broadcast_to(np.arange(SLOTS), items.shape)
    requests = np.where(real, np.roll(times, -1, axis=1), 0)
    fields = (items, np.where(real, times, 0), real, np.where(real, slots, 0), requests)
    events = Events(*(jnp.asarray(field, jnp.int32) for field in fields))
    return np.asarray(run(model, events).hidden, np.float64)


MODELS = {
    "hstu": (HSTU, released_hstu, hstu_weights),
    "fuxi_linear": (FUXI_LINEAR, released_fuxi_linear, fuxi_linear_weights),
}


def main():
    """Prints the largest difference; the exit status is 1 above the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("checkout", help="the folder that holds generative_recommenders/")
    options = parser.parse_args()
    sys.path.insert(0, options.checkout)
    kept = stand_for_fbgemm()
    config, released, weights_of = MODELS[options.model]

    _, arrays = random_model(config, num_items=NUM_ITEMS)
    # The layer of request times starts at 0, and the released models have none.
    model = config.build(NUM_ITEMS, rngs=nnx.Rngs(0), request_time=True)
    load_parameters(model, parameter_arrays(model) | arrays)
    original = released().double().eval()
    load(original, weights_of(arrays))
    items, times, lengths = histories()
    expected = by_pytorch(original, items, times, lengths)
    actual = by_this_library(model, items, times)
    difference = np.abs(actual - expected)[items > 0].max()
    print(f"{options.model}: largest difference {difference:.1e} in {int(lengths.sum())} slots")
    del kept
    sys.exit(int(difference > TOLERANCE))


if __name__ == "__main__":
    main()
