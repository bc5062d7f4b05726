"""The Triton kernels compiled for a Hopper GPU, and the program that calls them, without a GPU.

In processes of their own: where there is no GPU, Triton interprets kernels in this one.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from jax._src.lib import gpu_triton

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (extra cuda)"
)
needs_jax_triton = pytest.mark.skipif(
    importlib.util.find_spec("jax_triton") is None
    or not hasattr(gpu_triton, "get_compute_capability"),
    reason="jax_triton or JAX's CUDA plugin is not installed (extra cuda)",
)


def printed_by(program):
    """What a Python program prints, as JSON, with kernels that are compiled."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["LINSEQREC_TRITON"] = "1"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize(
    ("operation", "launches", "segments"),
    [
        ("gated delta rule", 4, True),
        ("gated delta rule", 4, False),
        ("linear attention", 6, True),
        ("linear attention", 6, False),
        # One program: segments are in its arguments.
        ("softmax attention", 3, True),
    ],
)
def test_bfloat16_kernels_keep_all_in_registers_and_use_tensor_cores(
    operation, launches, width, segments
):
    figures = printed_by(f"""
import json
from linseqrec.benchmarks.ops import compiled_kernels
size = (1, 512, 2, {width})
rows = compiled_kernels({operation!r}, size, "bfloat16", segments={segments})
print(json.dumps({{row.variant: dict(row.extra) for row in rows}}))
""")
    assert figures.pop("all")["launches"] == len(figures) == launches
    for name, figure in figures.items():
        assert figure["stack_bytes"] == 0, (name, figure)
        assert figure["tensor_core_instructions"] > 0, (name, figure)
        # What a block may have of a Hopper's shared memory.
        assert figure["shared_bytes"] <= 227 * 1024, (name, figure)


# What differs between the two operations in the program below: their gates, and a call.
_GATED_DELTA_RULE = """
from linseqrec.ops.gated_delta_rule import gated_delta_rule

gate = jax.ShapeDtypeStruct((2, 70, 2), jnp.float32)
inputs = (row, row, row, gate, gate)

def operation(*x, **options):
    return gated_delta_rule(*x, **options)
"""
_LINEAR_ATTENTION = """
from linseqrec.ops.linear_attention import linear_attention

inputs = (row,) * 5

def operation(query, key, value, denominator_query, denominator_key, **options):
    output, state = linear_attention(
        query,
        key,
        value,
        denominator_query=denominator_query,
        denominator_key=denominator_key,
        **options,
    )
    return output, state.key_value + state.key_sum[..., None]
"""

# The program below wants five inputs and a state.
_SOFTMAX_ATTENTION = """
from linseqrec.ops.softmax_attention import softmax_attention

inputs = (row,) * 5

def operation(query, key, value, more_key, more_value, implementation=None, **options):
    implementation = "blockwise" if implementation == "chunked" else implementation
    output = softmax_attention(
        query, key + more_key, value + more_value, implementation=implementation, **options
    )
    return output, jnp.sum(output, (1, 3))
"""


# Forward, forward again for jax.checkpoint, and backward.
@needs_jax_triton
@pytest.mark.parametrize(
    ("operation", "launches"),
    [
        (_GATED_DELTA_RULE, 2 + 2 + 2),
        (_LINEAR_ATTENTION, 1 + 1 + 3),
        (_SOFTMAX_ATTENTION, 1 + 1 + 2),
    ],
    ids=["gated delta rule", "linear attention", "softmax attention"],
)
def test_lowers_for_cuda_in_meshes_and_leaves_other_platforms_as_they_are(operation, launches):
    program = """
import functools, json, os
import jax, jax.numpy as jnp

jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh(
    (2, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
)
P = jax.sharding.PartitionSpec
slots = P("data", None, "model")
row = jax.ShapeDtypeStruct((2, 70, 2, 32), jnp.bfloat16)
ids = jax.ShapeDtypeStruct((2, 70), jnp.int32)
OPERATION
def step(implementation, *x):
    *x, ids = x

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(*[slots] * 5, P("data")),
        out_specs=(slots, P("data", "model")),
    )
    def sharded(*x):
        return operation(*x[:5], segment_ids=x[5], implementation=implementation)

    def loss(*x):
        output, state = jax.checkpoint(sharded)(*x, ids)
        return jnp.sum(output.astype(jnp.float32)) + jnp.sum(state)

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))(*x)

text = {}
for name, platform in ((None, "cuda"), ("triton", "cuda"), (None, "cpu"), ("chunked", "cpu")):
    traced = jax.jit(functools.partial(step, name)).trace(*inputs, ids)
    lowered = traced.lower(lowering_platforms=(platform,))
    text[f"{name} {platform}"] = lowered.as_text()
    if platform == "cpu":
        memory = lowered.compile().memory_analysis()
        text[f"{name} {platform} bytes"] = memory.temp_size_in_bytes
def in_mesh(*x):
    *x, ids = x

    def loss(*x):
        output, state = operation(*x, segment_ids=ids)
        return jnp.sum(output.astype(jnp.float32)) + jnp.sum(state)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.value_and_grad(jax.checkpoint(loss), argnums=(0, 1, 2, 3, 4))(*x)

rows = jax.sharding.NamedSharding(mesh, P("data"))
traced = jax.jit(in_mesh, in_shardings=rows).trace(*inputs, ids)
text["None cuda, in a mesh"] = traced.lower(lowering_platforms=("cuda",)).as_text()
lowered = jax.jit(operation).trace(*inputs).lower(lowering_platforms=("cuda",))
text["None cuda, without a mesh"] = lowered.as_text()
del os.environ["LINSEQREC_TRITON"]
traced = jax.jit(functools.partial(step, None)).trace(*inputs, ids)
text["None cuda, not asked for"] = traced.lower(lowering_platforms=("cuda",)).as_text()
print(json.dumps(text))
"""
    text = printed_by(program.replace("OPERATION", operation))
    for name in ("without a mesh", "not asked for"):
        assert "triton" not in text[f"None cuda, {name}"]
    for name in ("None cuda", "triton cuda", "None cuda, in a mesh"):
        assert text[name].count("@triton_kernel_call_ffi") == launches
        assert "stablehlo.while" not in text[name]
    assert "triton" not in text["None cpu"] and "stablehlo.while" in text["None cpu"]
    # What the branch for CUDA would keep for the gradient takes no memory.
    assert text["None cpu bytes"] <= 1.01 * text["chunked cpu bytes"]
