"""How a benchmark measures: calls interleaved, medians, ratios within one run, bytes and versions.

A suite is a module of this package with `rows(repeats) -> Iterator[Row]`, nothing else to
register. Absolute times belong to one machine on one day: quote ratios. The functions of one case
are therefore called in turn (a b c, a b c, ...), so that a busy neighbour slows all of them alike,
and the ratio is the median of the rounds' own ratios.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

# Versions a figure depends on; those not installed are left out.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "polars", "torch")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured line.

    Attributes:
      case: The question, for instance "forward + backward, 4,096 tokens, N 50,000". Rows of one
        case compare with each other.
      variant: Who answered it.
      seconds: Median wall time of one call; None if the row holds `extra` figures only.
      quartiles: First and third quartile of the wall times, seconds.
      ratio: Median, over rounds, of this variant's time by that of the case's first variant.
      processor_seconds: Median time that this process's threads spent on one call, all together:
        the figure to read where other programs take turns on the same cores.
      extra: More figures by name with their unit: `{"temporary_bytes": 43_000_000}`.
    """

    case: str
    variant: str
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    ratio: float | None = None
    processor_seconds: float | None = None
    extra: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)


def compare(
    case: str,
    variants: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    extra: Mapping[str, Mapping[str, float | int | str]] | None = None,
) -> Iterator[Row]:
    """Times functions against each other, in turn; the first is what ratios refer to.

    Args:
      case: `Row.case`.
      variants: Functions without arguments by name. JAX arrays they return are waited for. Each is
        called once before the clock starts, which compiles it.
      repeats: Number of rounds, at least 1.
      extra: `Row.extra` by variant.

    Yields:
      A row a variant, in order.

    Raises:
      ValueError: No variant, or no round.
    """
    if not variants or repeats < 1:
        raise ValueError(f"compare({case!r}) needs variants and repeats >= 1, not {repeats}")
    for function in variants.values():
        jax.block_until_ready(function())
    times: dict[str, list[float]] = {name: [] for name in variants}
    processor: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, function in variants.items():
            # Untimed once more: what the function before it freed is given back to the system
            # while this one runs, 100 ms for 2 GB.
            jax.block_until_ready(function())
            start, start_processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - start_processor)
    first = next(iter(times.values()))
    for name, measured in times.items():
        yield Row(
            case=case,
            variant=name,
            seconds=statistics.median(measured),
            quartiles=_quartiles(measured),
            ratio=statistics.median(a / b for a, b in zip(measured, first, strict=True)),
            processor_seconds=statistics.median(processor[name]),
            extra=(extra or {}).get(name, {}),
        )


def temporary_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of scratch memory the compiled function asks for; allocates and runs nothing.

    Args:
      function: A function of arrays, jitted or not.
      *arguments: Arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      XLA's size of the temporary buffers: arguments and results are not among them.

    Raises:
      RuntimeError: The backend reports no memory analysis.
    """
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    analysis = jitted.lower(*arguments).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError(f"the {jax.default_backend()} backend reports no memory analysis")
    return int(analysis.temp_size_in_bytes)


def growth_exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """How a time or a memory grows: the p of values ≈ c · lengths^p, by least squares of the logs.

    Args:
      lengths: Positive, two of them different.
      values: Positive, one a length.

    Returns:
      p, without a unit.

    Raises:
      ValueError: Not a value a length, values that have no logarithm, or only one length.
    """
    positive = all(number > 0 for number in (*lengths, *values))
    if len(lengths) != len(values) or len(set(lengths)) < 2 or not positive:
        raise ValueError(
            f"an exponent needs two lengths and a value of each, all positive: got {lengths} and "
            f"{values}"
        )
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def environment() -> dict[str, Any]:
    """The machine and the versions that figures belong to, JSON-able; no host name."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions,
    }


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _processor() -> str:
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
