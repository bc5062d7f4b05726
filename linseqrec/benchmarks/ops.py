"""The sequence operations: the gated delta rule in its forms, and attention at the same size.

On a CPU in float32, also against PyTorch's `scaled_dot_product_attention` where that is installed
(the fastest attention on a CPU); on a GPU in bfloat16, against cuDNN's attention. Then how time and
memory grow with the length, and what one streaming step costs early and late.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
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
from linseqrec.ops.linear_attention import linear_attention
from linseqrec.ops.softmax_attention import softmax_attention

# Batch, time, heads, key and value width. The slow forms are left out of the long rows on a CPU.
_CPU_SIZES = ((4, 2_048, 4, 64), (1, 8_192, 4, 64))
_GPU_SIZES = ((1, 8_192, 16, 128), (8, 2_048, 8, 64))
_SHORT = 4_096
_LENGTHS = tuple(2**power for power in range(11, 17))
_STEPS = (10, 10_000)

Operation = Callable[..., Array]


def rows(repeats: int) -> Iterator[Row]:
    """Times the operations at the sizes above, then growth, then a streaming step."""
    on_gpu = jax.default_backend() == "gpu"
    for size in _GPU_SIZES if on_gpu else _CPU_SIZES:
        yield from _forms(repeats, size, jnp.bfloat16 if on_gpu else jnp.float32)
    for name, operation in (("gated delta rule", _rule("chunked", 64)), ("linear attention", _sum)):
        yield from _growth(repeats, name, operation)
    yield from _streaming(repeats)


def _rule(implementation: Any, chunk_size: int) -> Operation:
    def run(q: Array, k: Array, v: Array, log_decay: Array, beta: Array) -> Array:
        return gated_delta_rule(
            q, k, v, log_decay, beta, implementation=implementation, chunk_size=chunk_size
        )[0]

    return run


def _sum(q: Array, k: Array, v: Array, log_decay: Array, beta: Array) -> Array:
    return linear_attention(jnp.exp(q), jnp.exp(k), v)[0]


def _dot_product(q: Array, k: Array, v: Array, log_decay: Array, beta: Array) -> Array:
    on_gpu = jax.default_backend() == "gpu"
    implementation: Literal["cudnn", "xla"] = "cudnn" if on_gpu else "xla"
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)


def _blockwise(q: Array, k: Array, v: Array, log_decay: Array, beta: Array) -> Array:
    return softmax_attention(q, k, v, implementation="blockwise")


def _operations(time: int) -> dict[str, Operation]:
    # The first is what ratios refer to.
    operations: dict[str, Operation] = {
        f"chunked, {size}": _rule("chunked", size) for size in (64, 32)
    }
    operations["associative, 64"] = _rule("associative", 64)
    if time <= _SHORT:
        operations["recurrent"] = _rule("recurrent", 64)
        operations["jax.nn.dot_product_attention"] = _dot_product
    operations["blockwise attention"] = _blockwise
    return operations


def _inputs(size: tuple[int, int, int, int], dtype: Any) -> tuple[Array, ...]:
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


def _differentiated(operation: Operation) -> Callable[..., Any]:
    def loss(*arguments: Array) -> Array:
        return jnp.sum(jnp.square(operation(*arguments).astype(jnp.float32)))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))


def _forms(repeats: int, size: tuple[int, int, int, int], dtype: Any) -> Iterator[Row]:
    arguments = _inputs(size, dtype)
    operations = _operations(size[1])
    batch, time, heads, width = size
    of_size = f"B {batch}, T {time:,}, H {heads}, K = V = {width}, {jnp.dtype(dtype).name}"
    forward = {name: jax.jit(operation) for name, operation in operations.items()}
    both = {name: _differentiated(operation) for name, operation in operations.items()}
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
    program = _differentiated(operation)
    inputs = {time: _inputs((1, time, 4, 64), jnp.float32) for time in _LENGTHS}
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
