"""Checks a whole GPU in about eight minutes.

The suite measures, in this order:

1. the error of every implementation of the operations against float64;
2. their times, beside cuDNN's attention, PyTorch's attention and flash-linear-attention (the last
   two where they are installed), and those of linear attention at four lengths;
3. the training step of five models at two sizes: time, kernels, share of the GPU's peak, and
   compile time;
4. Gated DeltaNet trained on MovieLens-1M, if `data/ml-1m-times` is prepared.

An implementation that fails becomes a row with the reason. After eight minutes the suite skips the
remaining parts, so that ten minutes on a GPU are enough. Without a GPU it rehearses at small sizes.
"""

import concurrent.futures
import dataclasses
import functools
import gzip
import importlib.util
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from linseqrec.benchmarks import ops
from linseqrec.benchmarks.measuring import Row, compare
from linseqrec.config import Experiment
from linseqrec.data.rows import Batch
from linseqrec.data.source import DataConfig
from linseqrec.events import Events
from linseqrec.models.base import ModelConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.ops.gated_delta_rule import gated_delta_rule
from linseqrec.ops.linear_attention import linear_attention
from linseqrec.ops.softmax_attention import softmax_attention
from linseqrec.runs.results import write_results
from linseqrec.training import throughput
from linseqrec.training.loop import train
from linseqrec.training.loss import LossConfig, make_loss
from linseqrec.training.model import FunctionalModel
from linseqrec.training.optimizer import OptimizerConfig, make_optimizer
from linseqrec.training.run import Run
from linseqrec.training.step import CompiledStep

_SECONDS = 8 * 60
_ITEMS = 3_416  # of MovieLens-1M
_TRACED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the measurements.

    Attributes:
      exact: (B, T, H, K = V) of each measurement of errors.
      timed: (B, T, H, K = V) and dtype of each measurement of times.
      lengths: (B, T, H, K = V) and dtype of each measurement of linear attention beside attention.
      steps: Width, dtype and number of rows of each training step; a row has 200 events.
    """

    exact: tuple[tuple[int, int, int, int], ...]
    timed: tuple[tuple[tuple[int, int, int, int], str], ...]
    lengths: tuple[tuple[tuple[int, int, int, int], str], ...]
    steps: tuple[tuple[int, str, int], ...]


FULL = Sizes(
    exact=((2, 333, 2, 32), (2, 333, 2, 64), (2, 333, 2, 128)),
    timed=(
        ((1, 8_192, 16, 128), "bfloat16"),
        ((8, 2_048, 8, 64), "bfloat16"),
        ((256, 200, 2, 32), "bfloat16"),
        ((16, 200, 2, 32), "float32"),
    ),
    lengths=tuple(
        ((16_384 // length, length, 8, 64), "bfloat16") for length in (1_024, 2_048, 4_096, 8_192)
    ),
    steps=((64, "float32", 16), (256, "bfloat16", 128)),
)
REHEARSAL = Sizes(
    exact=((1, 70, 1, 8),),
    timed=(((1, 128, 1, 8), "float32"),),
    lengths=(((1, 128, 1, 8), "float32"),),
    steps=((16, "float32", 1),),
)


def rows(repeats: int) -> Iterator[Row]:
    """Runs all parts, the most important first."""
    sizes = FULL if jax.default_backend() == "gpu" else REHEARSAL
    end = time.monotonic() + _SECONDS
    parts: dict[str, Callable[[], Iterator[Row]]] = {}
    for size in sizes.exact:
        parts[f"errors at {size}"] = functools.partial(errors, size)
    for timed in sizes.timed:
        parts[f"times at {timed}"] = functools.partial(times, *timed, repeats)
    for timed in sizes.lengths:
        parts[f"linear attention at {timed}"] = functools.partial(lengths, *timed, repeats)
    for step in sizes.steps:
        parts[f"steps at {step}"] = functools.partial(steps, *step, repeats)
    parts["training"] = trained
    for name, part in parts.items():
        if time.monotonic() > end:
            yield Row("left out for want of time", name)
            continue
        try:
            yield from part()
        except Exception as error:  # noqa: BLE001  the other parts still run
            yield Row("failed", name, extra=_reason(error))


# -------------------------------------------------------------------------------------- exactness


def errors(size: tuple[int, int, int, int]) -> Iterator[Row]:
    """Measures each implementation's largest error, relative to the largest reference value.

    The reference is the recurrence in float64 (for attention, the plain formula) on the same
    rounded inputs. Rows hold several segments and padding.
    """
    batch, length, _, _ = size
    segments = np.zeros((batch, length), np.int32)
    for row in range(batch):
        segments[row, : length // 3 + row] = 1
        segments[row, length // 3 + row : -length // 8] = 2
    ids = jnp.asarray(segments)

    def rule(implementation: Any) -> ops.Operation:
        return lambda *x: gated_delta_rule(*x, segment_ids=ids, implementation=implementation)[0]

    def linear(implementation: Any) -> ops.Operation:
        return lambda q, k, v: linear_attention(
            jnp.exp(q), jnp.exp(k), v, segment_ids=ids, implementation=implementation
        )[0]

    def rotated(implementation: Any) -> ops.Operation:
        return lambda q, k, v: linear_attention(
            *(q, k, v),
            denominator_query=jnp.exp(q),
            denominator_key=jnp.exp(k),
            segment_ids=ids,
            implementation=implementation,
        )[0]

    def softmax(implementation: Any) -> ops.Operation:
        return lambda q, k, v: softmax_attention(
            q, k, v, segment_ids=ids, implementation=implementation
        )

    on_gpu = jax.default_backend() == "gpu"
    of_rule = ("chunked", "associative", *(("triton",) if on_gpu else ()))
    for dtype in ("float32", "bfloat16"):
        inputs = ops.make_inputs(size, dtype)
        case = f"errors, {ops.describe(size, dtype)}"
        delta = {name: rule(name) for name in ("recurrent", *of_rule)}
        yield from _errors(f"{case}, gated delta rule", rule("recurrent"), delta, inputs)
        alike = jnp.broadcast_to(inputs[1][:1, :1], inputs[1].shape)
        inputs_alike = (inputs[0], alike, *inputs[2:4], 1.9 * inputs[4])
        hard = {name: rule(name) for name in of_rule}
        name = f"{case}, gated delta rule, keys all alike"
        yield from _errors(name, rule("recurrent"), hard, inputs_alike)
        sums = {name: linear(name) for name in of_rule}
        yield from _errors(f"{case}, linear attention", linear("recurrent"), sums, inputs[:3])
        apart = {name: rotated(name) for name in of_rule}
        name = f"{case}, linear attention, features of the denominator apart"
        yield from _errors(name, rotated("recurrent"), apart, inputs[:3])
        blocks = {name: softmax(name) for name in ("blockwise", *(("triton",) if on_gpu else ()))}
        yield from _errors(f"{case}, softmax attention", softmax("blockwise"), blocks, inputs[:3])


def _errors(
    case: str,
    reference: ops.Operation,
    forms: Mapping[str, ops.Operation],
    inputs: tuple[Array, ...],
) -> Iterator[Row]:
    exact = [np.asarray(x).astype(np.float64) for x in inputs]
    given = jnp.asarray(np.random.default_rng(1).normal(size=exact[2].shape), inputs[2].dtype)
    cotangent = np.asarray(given).astype(np.float64)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        wanted = jax.tree.map(np.asarray, jax.jit(_with_gradients(reference))(cotangent, *exact))
    for name, form in forms.items():
        try:
            found = jax.jit(_with_gradients(form))(given, *inputs)
            output, *slopes = map(_error, jax.tree.leaves(found), jax.tree.leaves(wanted))
            extra: dict[str, Any] = {"output_error": output, "gradient_error": max(slopes)}
        except Exception as error:  # noqa: BLE001  a form that fails is a finding
            extra = _reason(error)
        yield Row(case, name, extra=extra)


def _with_gradients(operation: ops.Operation) -> Callable[..., Any]:
    def run(cotangent: Array, *inputs: Array) -> Any:
        output, pull = jax.vjp(operation, *inputs)
        return output, pull(cotangent.astype(output.dtype))

    return run


def _error(found: Array, wanted: np.ndarray) -> float:
    difference = np.abs(np.asarray(found).astype(np.float64) - wanted).max()
    return float(difference / np.abs(wanted).max())


# ------------------------------------------------------------------------------------------ times


def times(size: tuple[int, int, int, int], dtype: str, repeats: int) -> Iterator[Row]:
    """Times the operations, forward only and with their gradients."""
    inputs = ops.make_inputs(size, jnp.dtype(dtype))
    operations = {**ops.operations(size[1], size[3]), "linear attention": ops.linear}
    if dtype == "float32":
        del operations["jax.nn.dot_product_attention"]  # cuDNN's is for half precision
    others = functools.partial(_others, inputs)
    arguments = dict.fromkeys(operations, inputs)
    yield from _timed(ops.describe(size, dtype), operations, arguments, repeats, others=others)


def lengths(size: tuple[int, int, int, int], dtype: str, repeats: int) -> Iterator[Row]:
    """Times linear attention with RELA's five arrays of features beside attention of three."""
    q, k, v, *_ = ops.make_inputs(size, jnp.dtype(dtype))
    inputs: tuple[Array, ...] = (q, k, v, jnp.exp(q), jnp.exp(k))
    on_gpu = jax.default_backend() == "gpu"

    def linear(implementation: Any) -> ops.Operation:
        return lambda q, k, v, denominator_query, denominator_key: linear_attention(
            *(q, k, v),
            denominator_query=denominator_query,
            denominator_key=denominator_key,
            implementation=implementation,
        )[0]

    forms = ("chunked", *(("triton",) if on_gpu else ()))
    operations = {f"linear attention, {name}": linear(name) for name in forms}
    arguments = dict.fromkeys(operations, inputs)
    operations["jax.nn.dot_product_attention"] = ops.dot_product
    arguments["jax.nn.dot_product_attention"] = inputs[:3]
    case = f"linear attention, {ops.describe(size, dtype)}"
    yield from _timed(case, operations, arguments, repeats)


def _timed(
    of_size: str,
    operations: Mapping[str, ops.Operation],
    inputs: Mapping[str, tuple[Array, ...]],
    repeats: int,
    *,
    others: Callable[..., dict[str, Callable[[], None]]] = lambda **_: {},
) -> Iterator[Row]:
    forward = {name: jax.jit(operation) for name, operation in operations.items()}
    both = {name: ops.differentiated(operation) for name, operation in operations.items()}
    for what, programs in (("forward", forward), ("forward + backward", both)):
        case = f"{what}, {of_size}"
        variants: dict[str, Callable[[], Any]] = {}
        compiled_for: dict[str, dict[str, float]] = {}
        for name, (program, seconds) in compiled(programs, inputs).items():
            if isinstance(program, Exception):
                yield Row(case, name, extra=_reason(program))
                continue
            variants[name] = functools.partial(program, *inputs[name])
            compiled_for[name] = {"compile_seconds": seconds}
        for name, variant in others(backward=programs is both).items():
            try:
                variant()
            except Exception as error:  # noqa: BLE001  another library, which we do not pin
                yield Row(case, name, extra=_reason(error))
            else:
                variants[name] = variant
        yield from compare(case, variants, repeats=repeats, extra=compiled_for)


def _others(inputs: tuple[Array, ...], *, backward: bool) -> dict[str, Callable[[], None]]:
    """Other libraries' operations on the same GPU."""
    if jax.default_backend() != "gpu" or importlib.util.find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    dtype = torch.bfloat16 if inputs[0].dtype == jnp.bfloat16 else torch.float32
    given = [np.asarray(x).astype(np.float32) for x in inputs]
    # Decays in float32, as ours.
    dtypes = dtype, dtype, dtype, torch.float32, dtype
    q, k, v, log_decay, beta = (
        torch.tensor(x, device="cuda", dtype=of, requires_grad=backward)
        for x, of in zip(given, dtypes, strict=True)
    )
    q_heads, k_heads, v_heads = (x.transpose(1, 2) for x in (q, k, v))
    attention = torch.nn.functional.scaled_dot_product_attention

    def timed(run: Callable[[], Any], *of: Any) -> Callable[[], None]:
        def call() -> None:
            with torch.set_grad_enabled(backward):
                output = run()
                if backward:
                    torch.autograd.grad(output.float().square().sum(), of)
            torch.cuda.synchronize()

        return call

    found = {
        "PyTorch scaled_dot_product_attention": timed(
            lambda: attention(q_heads, k_heads, v_heads, is_causal=True), q, k, v
        )
    }
    if importlib.util.find_spec("fla") is not None:
        rule = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
        found["flash-linear-attention"] = timed(
            lambda: rule(q, k, v, log_decay, beta, scale=1.0)[0], q, k, v, log_decay, beta
        )
    return found


def compiled(
    programs: Mapping[str, Any], arguments: Mapping[str, tuple[Any, ...]]
) -> dict[str, tuple[Any, float]]:
    """Compiles jitted functions in parallel.

    Args:
      programs: The functions by name.
      arguments: The arguments of each.

    Returns:
      By name, the compiled function and the seconds that compiling took. An exception stands in the
      place of a function that did not compile. The first function is compiled alone; the others
      are compiled at the same time, which makes each of them slower to compile.
    """

    def compile(name: str) -> tuple[Any, float]:
        start = time.perf_counter()
        try:
            result: Any = programs[name].lower(*arguments[name]).compile()
        except Exception as error:  # noqa: BLE001  the caller shows it
            result = error
        return result, time.perf_counter() - start

    first, *others = programs
    alone = compile(first)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        beside = pool.map(compile, others)
        return {first: alone, **dict(zip(others, beside, strict=True))}


# ------------------------------------------------------------------------------------------ steps


def models(width: int, dtype: Any) -> dict[str, ModelConfig]:
    """Five models at a width. Heads are 32 wide up to width 64, and 64 wide above."""
    head = 32 if width <= 64 else 64
    heads = max(1, width // head)
    delta: dict[str, Any] = {"heads": heads, "key_width": head, "value_width": head}
    return {
        "Gated DeltaNet": GatedDeltaNetConfig(width, **delta, dtype=dtype),
        "RecGRELA": RecGRELAConfig(width, heads, dtype=dtype),
        "HyTRec": HyTRecConfig(width, heads, dtype=dtype),
        "SinkRec": SinkRecConfig(width, **delta, dtype=dtype),
        "SASRec": SASRecConfig(width, heads, dtype=dtype),
    }


def steps(width: int, dtype: str, rows: int, repeats: int) -> Iterator[Row]:
    """Times each model's training step with a catalogue of MovieLens-1M's size."""
    case = f"training step, width {width}, {dtype}, {rows} rows of 200"
    configs = models(width, dtype)
    made = {name: _step(config) for name, config in configs.items()}
    batch = jax.device_put(_batch(rows, 200))
    peak = throughput.peak_flops(dtype)
    calls: dict[str, Callable[[], Any]] = {}
    extra: dict[str, dict[str, Any]] = {}
    flops: dict[str, float] = {}
    programs = {name: jax.jit(step) for name, (step, _) in made.items()}
    arguments = {name: (state, batch) for name, (_, state) in made.items()}
    for name, (program, seconds) in compiled(programs, arguments).items():
        if isinstance(program, Exception):
            yield Row(case, name, extra=_reason(program))
            continue
        state = made[name][1]
        calls[name] = functools.partial(program, state, batch)
        an_event = throughput.flops_per_event(state.params, configs[name])
        flops[name] = rows * 200 * (an_event + 6.0 * (_ITEMS + 1) * width)
        extra[name] = {"compile_seconds": seconds, **_traced(calls[name])}
    for row in compare(case, calls, repeats=repeats, extra=extra):
        share = flops[row.variant] / row.seconds / peak if row.seconds else 0.0
        yield dataclasses.replace(row, extra={**row.extra, "share_of_peak": share})


def _step(config: ModelConfig) -> tuple[Callable[..., Any], Any]:
    model = FunctionalModel.of(Experiment(model=config), _ITEMS, None)
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    loss = make_loss(LossConfig(), np.ones(_ITEMS + 1, np.int64))
    step = CompiledStep(model, optimizer, None, prediction_loss=loss, seed=0)
    return step.step, step.initial_state()


def _batch(rows: int, length: int) -> Batch:
    draw = np.random.default_rng(0)
    items, targets = draw.integers(1, _ITEMS + 1, (2, rows, length)).astype(np.int32)
    slots = np.broadcast_to(np.arange(length, dtype=np.int32), items.shape)
    gaps = draw.exponential(3_600, items.shape).astype(np.int32)
    targets, weights = jnp.asarray(targets), jnp.ones(items.shape)
    events = Events(items, np.cumsum(gaps, axis=1, dtype=np.int32), np.ones_like(items), slots)
    return Batch(events, targets, weights, None)


def _traced(step: Callable[[], Any]) -> dict[str, float]:
    """The number of kernels in a step and their total time; empty if the trace shows no GPU."""
    jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_TRACED_STEPS):
                jax.block_until_ready(step())
        durations = kernel_seconds(pathlib.Path(folder))
    if not durations:
        return {}
    return {
        "kernels": len(durations) / _TRACED_STEPS,
        "kernel_seconds": sum(durations) / _TRACED_STEPS,
    }


def kernel_seconds(folder: pathlib.Path) -> list[float]:
    """Reads the duration of each GPU kernel, in seconds, from a trace.

    Args:
      folder: The folder that `jax.profiler.trace` wrote.
    """
    durations = []
    for path in folder.rglob("*.trace.json.gz"):
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
        names = {
            (event["name"], event["pid"], event.get("tid")): event["args"]["name"]
            for event in events
            if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
        }
        devices = {
            process
            for (kind, process, _), name in names.items()
            if kind == "process_name" and "/device:GPU" in name
        }
        for event in events:
            thread = names.get(("thread_name", event.get("pid"), event.get("tid")), "")
            if event.get("ph") == "X" and event["pid"] in devices and "Stream" in thread:
                durations.append(event["dur"] * 1e-6)
    return durations


# --------------------------------------------------------------------------------------- training


def trained() -> Iterator[Row]:
    """Trains Gated DeltaNet to the end and reads its test metrics."""
    from experiments import ml1m

    experiment = ml1m.get_config("gated_deltanet")
    folder = pathlib.Path(experiment.data.folder)
    case = f"trained on {folder}"
    if jax.default_backend() != "gpu":
        case = "trained on the generated world 'repetition' (synthetic data)"
        experiment = dataclasses.replace(
            experiment,
            model=models(16, "float32")["Gated DeltaNet"],
            data=DataConfig(world="repetition", world_users=40, length=64, batch_size=4),
            optimizer=dataclasses.replace(experiment.optimizer, warmup_steps=1),
            training=dataclasses.replace(experiment.training, num_epochs=1),
        )
    elif not folder.exists():
        yield Row(case, experiment.name, extra={"failed": f"no {folder}: see docs/data.md"})
        return
    start = time.perf_counter()
    run = Run.of(experiment)
    with tempfile.TemporaryDirectory() as workdir:
        state = train(run, pathlib.Path(workdir))
        seconds = time.perf_counter() - start
        results = write_results(run, state, pathlib.Path(workdir))
    metrics = results["test"][experiment.name]["metrics"]
    found = {
        f"{filter}/{name}": metrics[filter][name]
        for filter in metrics
        for name in ("HR@10", "NDCG@10")
    }
    yield Row(case, experiment.name, extra={"seconds": seconds, "steps": run.num_steps, **found})


def _reason(error: Exception) -> dict[str, str]:
    lines = str(error).splitlines() or [""]
    return {"failed": f"{type(error).__name__}: {lines[0][:200]}"}
