"""The sequence operations: the gated delta rule in its forms, and attention at the same size.

On a CPU in float32, also against PyTorch's `scaled_dot_product_attention` where that is installed
(the fastest attention on a CPU); on a GPU in bfloat16, against cuDNN's attention. Then how time and
memory grow with the length, and what one streaming step costs early and late. Where Triton is
installed, with or without a GPU, also what its compiler makes of our kernels.
"""

import functools
import importlib.util
import math
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from linseqrec.benchmarks.measuring import Row, compare, growth_exponent, temporary_bytes
from linseqrec.events import Events
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.ops.gated_delta_rule import gated_delta_rule
from linseqrec.ops.kernels import (
    gated_delta_rule_triton,
    linear_attention_triton,
    softmax_attention_triton,
    triton_choice,
    triton_launch,
)
from linseqrec.ops.linear_attention import linear_attention
from linseqrec.ops.softmax_attention import softmax_attention

# Batch, time, heads, key and value width. The slow forms are left out of the long rows on a CPU.
_CPU_SIZES = ((4, 2_048, 4, 64), (1, 8_192, 4, 64))
_GPU_SIZES = ((1, 8_192, 16, 128), (8, 2_048, 8, 64))
_COMPILED_SIZES = (*_GPU_SIZES, (256, 200, 2, 32))
_SHORT = 4_096
_LENGTHS = tuple(2**power for power in range(11, 17))
_STEPS = (10, 10_000)

Operation = Callable[..., Array]


def rows(repeats: int) -> Iterator[Row]:
    """Times the operations at the sizes above, then growth, then a streaming step."""
    on_gpu = jax.default_backend() == "gpu"
    for size in _GPU_SIZES if on_gpu else _CPU_SIZES:
        yield from _forms(repeats, size, jnp.bfloat16 if on_gpu else jnp.float32)
    for name, operation in (
        ("gated delta rule", _rule("chunked", 64)),
        ("linear attention", linear),
    ):
        yield from _growth(repeats, name, operation)
    yield from _streaming(repeats)
    for size in _COMPILED_SIZES:
        for kernels in KERNELS:
            yield from compiled_kernels(kernels, size, "bfloat16")


def _rule(implementation: Any, chunk_size: int) -> Operation:
    def run(q: Array, k: Array, v: Array, log_decay: Array, beta: Array) -> Array:
        return gated_delta_rule(
            q, k, v, log_decay, beta, implementation=implementation, chunk_size=chunk_size
        )[0]

    return run


def linear(q: Array, k: Array, v: Array, log_decay: Array, beta: Array) -> Array:
    """Linear attention on the same inputs."""
    return linear_attention(jnp.exp(q), jnp.exp(k), v)[0]


def dot_product(q: Array, k: Array, v: Array, *_: Array) -> Array:
    """JAX's causal softmax attention: cuDNN's on a GPU."""
    on_gpu = jax.default_backend() == "gpu"
    implementation: Literal["cudnn", "xla"] = "cudnn" if on_gpu else "xla"
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)


def _attention(implementation: Any) -> Operation:
    def run(q: Array, k: Array, v: Array, log_decay: Array, beta: Array) -> Array:
        return softmax_attention(q, k, v, implementation=implementation)

    return run


def operations(time: int, width: int) -> dict[str, Operation]:
    """The implementations to time at a length and a key width, by name."""
    # The first is what ratios refer to.
    operations: dict[str, Operation] = {
        f"chunked, {size}": _rule("chunked", size) for size in (64, 32)
    }
    operations["associative, 64"] = _rule("associative", 64)
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and triton_choice.unfit({"K and V": width}, jnp.bfloat16) is None:
        operations["triton"] = _rule("triton", 64)
        operations["triton attention"] = _attention("triton")
    if time <= _SHORT:
        operations["recurrent"] = _rule("recurrent", 64)
    if time <= _SHORT or on_gpu:
        operations["jax.nn.dot_product_attention"] = dot_product
    operations["blockwise attention"] = _attention("blockwise")
    return operations


def make_inputs(size: tuple[int, int, int, int], dtype: Any) -> tuple[Array, ...]:
    """Unit queries and keys, values, decays of a few per cent, and write strengths."""
    draw = np.random.default_rng(0)
    q, k, v = draw.normal(size=(3, *size))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    log_decay = -np.exp(draw.normal(-3, 1, size[:3]))
    beta = draw.uniform(0, 1, size[:3])
    return (
        *(jnp.asarray(x, dtype) for x in (unit(q), unit(k), v)),
        jnp.asarray(log_decay, jnp.float32),
        jnp.asarray(beta, jnp.float32),
    )


def differentiated(operation: Operation) -> Callable[..., Any]:
    """Jits the gradient of the sum of the squared outputs with respect to all inputs."""

    def loss(*arguments: Array) -> Array:
        return jnp.sum(jnp.square(operation(*arguments).astype(jnp.float32)))

    return jax.jit(lambda *inputs: jax.grad(loss, argnums=tuple(range(len(inputs))))(*inputs))


def _forms(repeats: int, size: tuple[int, int, int, int], dtype: Any) -> Iterator[Row]:
    arguments = make_inputs(size, dtype)
    forms = operations(size[1], size[3])
    of_size = describe(size, dtype)
    forward = {name: jax.jit(operation) for name, operation in forms.items()}
    both = {name: differentiated(operation) for name, operation in forms.items()}
    for what, programs in (("forward", forward), ("forward + backward", both)):
        variants: dict[str, Callable[[], Any]] = {
            name: functools.partial(program, *arguments) for name, program in programs.items()
        }
        if jax.default_backend() == "cpu" and importlib.util.find_spec("torch"):
            variants["PyTorch scaled_dot_product_attention"] = _torch_attention(
                arguments, backward=programs is both
            )
        memory = {
            name: {"temporary_bytes": temporary_bytes(program, *arguments)}
            for name, program in programs.items()
        }
        yield from compare(f"{what}, {of_size}", variants, repeats=repeats, extra=memory)


def describe(size: tuple[int, int, int, int], dtype: Any) -> str:
    """Names a size and dtype for `Row.case`."""
    batch, time, heads, width = size
    return f"B {batch}, T {time:,}, H {heads}, K = V = {width}, {jnp.dtype(dtype).name}"


def _torch_attention(arguments: tuple[Array, ...], *, backward: bool) -> Callable[[], Any]:
    import torch

    heads_first = [np.asarray(x).swapaxes(1, 2) for x in arguments[:3]]
    q, k, v = (torch.tensor(x, requires_grad=backward) for x in heads_first)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            output = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            if backward:
                torch.autograd.grad(output.square().sum(), (q, k, v))

    return run


def _growth(repeats: int, name: str, operation: Operation) -> Iterator[Row]:
    """Time and memory of forward + backward by length, and the exponents of both."""
    case = f"{name}, forward + backward by length, B 1, H 4, K = V = 64"
    program = differentiated(operation)
    inputs = {time: make_inputs((1, time, 4, 64), jnp.float32) for time in _LENGTHS}
    memory = {time: temporary_bytes(program, *inputs[time]) for time in _LENGTHS}
    seconds = []
    for row in compare(
        case,
        {f"T {time:,}": functools.partial(program, *inputs[time]) for time in _LENGTHS},
        repeats=repeats,
        extra={f"T {time:,}": {"temporary_bytes": memory[time]} for time in _LENGTHS},
    ):
        if row.seconds is not None:
            seconds.append(row.seconds)
        yield row
    exponents = {
        "time": growth_exponent(_LENGTHS, seconds),
        "memory": growth_exponent(_LENGTHS, list(memory.values())),
    }
    yield Row(case, "exponent of T", extra=exponents)


def _streaming(repeats: int) -> Iterator[Row]:
    """One event more for one user, whose past is a state."""
    model = GatedDeltaNetConfig().build(1_000, rngs=nnx.Rngs(0))
    graphdef, variables = nnx.split(model)
    encode = jax.jit(lambda events, state: nnx.merge(graphdef, variables)(events, state).state)
    variants: Mapping[str, Callable[[], Any]] = {
        f"after {events:,} events": functools.partial(
            encode, _history(1), encode(_history(events), None)
        )
        for events in _STEPS
    }
    # A step is short: many make one measurement.
    yield from compare(
        "100 streaming steps, Gated DeltaNet, B 1, 4 blocks, D 64",
        {name: functools.partial(_repeat, step, 100) for name, step in variants.items()},
        repeats=repeats,
    )


def _repeat(function: Callable[[], Any], times: int) -> Any:
    result = None
    for _ in range(times):
        result = jax.block_until_ready(function())
    return result


def _history(events: int) -> Events:
    slots = np.arange(events, dtype=np.int32)[None]
    return Events(1 + slots % 1_000, slots, np.ones_like(slots), slots)


def compiled_kernels(
    operation: str, size: tuple[int, int, int, int], dtype: str, *, segments: bool = False
) -> Iterator[Row]:
    """What Triton makes of an operation's kernels for a Hopper GPU; needs none.

    A launch moves `moved_bytes`: every array once, of which a kernel reads some again from cache.
    `stack_bytes` is what a thread's registers did not hold.

    Args:
      operation: A name of `KERNELS`.
      size: B, T, H and K = V, for linear attention also the width of the denominator's features.
      dtype: Of queries, keys and values: "bfloat16" or "float32".
      segments: Whether there are segments.

    Yields:
      A row a launch of forward and backward, and their sum; none where Triton is not installed or
      set to interpret kernels. The sum includes what XLA moves between the kernels. Its
      `least_bytes` are those of the inputs, read forward and backward, of the output, of its
      gradient, and of the inputs' gradients.
    """
    if importlib.util.find_spec("triton") is None:
        return
    import triton

    if triton.knobs.runtime.interpret:
        return
    case = f"Triton kernels, {operation}, {describe(size, dtype)}"
    figures: list[Row] = []

    def launch(
        kernel: Any,
        arrays: Sequence[jax.ShapeDtypeStruct],
        sizes: Sequence[int],
        outputs: Sequence[triton_launch.Shape],
        *,
        grid: tuple[int],
        warps: int,
        stages: int,
        **constants: Any,
    ) -> list[jax.ShapeDtypeStruct]:
        results = [jax.ShapeDtypeStruct(*x) for x in outputs]
        figure = {
            "programs": grid[0],
            "moved_bytes": _bytes([*arrays, *results]),
            **_compiled(kernel, arrays, len(sizes), results, warps, stages, constants),
        }
        figures.append(Row(case, kernel.fn.__name__, extra=figure))
        return results

    inputs, output, between = KERNELS[operation](launch, size, dtype, segments)
    total = {
        "launches": len(figures),
        "moved_bytes": _bytes(between) + sum(int(row.extra["moved_bytes"]) for row in figures),
        "least_bytes": 3 * _bytes(inputs) + 2 * _bytes([output]),
    }
    yield from figures
    yield Row(case, "all", extra=total)


def _bytes(arrays: Sequence[jax.ShapeDtypeStruct]) -> int:
    return sum(x.dtype.itemsize * math.prod(x.shape) for x in arrays)


# Inputs of an operation, its output, and what XLA reads and writes between its kernels.
_Arrays = tuple[list[jax.ShapeDtypeStruct], jax.ShapeDtypeStruct, Sequence[jax.ShapeDtypeStruct]]


def _launch_gated_delta_rule(
    launch: triton_launch.Launch, size: tuple[int, int, int, int], dtype: str, segments: bool
) -> _Arrays:
    """Launches the kernels forward and backward."""
    batch, time, heads, width = size
    array = jax.ShapeDtypeStruct
    rows, gates = array((batch, time, heads, width), dtype), array((batch, time, heads), "float32")
    runs, state = array((batch, time), "int32"), array((batch, heads, width, width), "float32")
    inputs = [rows, rows, rows, gates, gates]
    of_rule = gated_delta_rule_triton
    initial: tuple[Any, ...] = (*inputs, runs, state)
    _, _, *kept = of_rule.forward(launch, *initial, segments=segments, save=True)
    saved: tuple[Any, ...] = (*inputs, runs, *kept, rows, state)
    of_rule.backward(launch, *saved, segments=segments)
    return inputs, rows, ()


def _launch_linear_attention(
    launch: triton_launch.Launch, size: tuple[int, int, int, int], dtype: str, segments: bool
) -> _Arrays:
    """Launches the kernels forward and backward."""
    batch, time, heads, width = size
    array = jax.ShapeDtypeStruct
    rows, slots = array((batch, time, heads, width), dtype), array((batch, time, heads), "float32")
    runs, state = array((batch, time), "int32"), array((batch, heads, width, width), "float32")
    total = array((batch, heads, width), "float32")
    features = [rows] * 5
    attention = linear_attention_triton
    initial: tuple[Any, ...] = (*features, slots, runs, state, total)
    *_, states, sums = attention.forward(launch, *initial, segments=segments, save=True)
    saved: tuple[Any, ...] = (*features, runs, states, sums, rows, slots, state, total)
    attention.backward(launch, *saved, segments=segments)
    # The output, its gradient and the denominators, and two gradients.
    return [*features, slots], rows, (rows, rows, slots, rows, slots)


def _launch_softmax_attention(
    launch: triton_launch.Launch, size: tuple[int, int, int, int], dtype: str, segments: bool
) -> _Arrays:
    """Launches the kernels forward and backward; segments and windows are in the bounds."""
    del segments
    batch, time, heads, width = size
    array = jax.ShapeDtypeStruct
    rows, slots = array((batch, time, heads, width), dtype), array((batch, time, heads), "float32")
    bounds = array((batch, time), "int32")
    attention = softmax_attention_triton
    reading = attention.Reading(behind=0, scale=width**-0.5)
    inputs: tuple[Any, ...] = (rows, rows, rows, bounds, bounds)
    attention.forward(launch, *inputs, reading=reading, save=True)
    saved: tuple[Any, ...] = (*inputs, slots, rows, slots)
    attention.backward(launch, *saved, reading=reading)
    # The output, its gradient and their products.
    return [rows] * 3, rows, (rows, rows, slots)


# By the name of an operation, what launches its kernels forward and backward.
KERNELS = {
    "gated delta rule": _launch_gated_delta_rule,
    "linear attention": _launch_linear_attention,
    "softmax attention": _launch_softmax_attention,
}


def _compiled(
    kernel: Any,
    arrays: Sequence[jax.ShapeDtypeStruct],
    sizes: int,
    outputs: Sequence[jax.ShapeDtypeStruct],
    warps: int,
    stages: int,
    constants: Mapping[str, Any],
) -> dict[str, int]:
    """Registers and stack of a thread, shared memory of a block, and tensor-core instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"bfloat16": "*bf16", "float32": "*fp32", "int32": "*i32"}
    types = [
        *(pointers[x.dtype.name] for x in arrays),
        *["i32"] * sizes,
        *(pointers[x.dtype.name] for x in outputs),
        *["constexpr"] * len(constants),
    ]
    # As JAX's arrays are.
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, x in enumerate(types) if x.startswith("*")
    }
    signature = dict(zip(kernel.arg_names, types, strict=True))
    source = ASTSource(kernel, signature, constexprs=dict(constants), attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tools = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        pathlib.Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [str(tools / "cuobjdump"), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no registers: {usage!r}")
    ptx = compiled.asm["ptx"]
    return {
        "registers": int(found[1]),
        "stack_bytes": int(found[2]),
        "shared_bytes": int(compiled.metadata.shared),
        "tensor_core_instructions": ptx.count("wgmma.mma_async") + ptx.count("mma.sync"),
    }
