"""Functions that measure time and memory, for the benchmark suites of this package.

A suite is a module of this package with a function `rows(repeats) -> Iterator[Row]`; it needs no
registration. Times depend on the machine and on the programs that run beside the benchmark, so
report ratios. `compare` therefore calls the functions of a case in turn (a b c, a b c, ...). A busy
machine then slows all of them alike, and the ratio is the median of the ratios of all rounds.
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

# The packages whose versions `environment` reports, if they are installed.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "polars", "torch")


@dataclasses.dataclass(frozen=True)
class Row:
    """The measurements of one variant of a case.

    Attributes:
      case: The task that the variants perform, such as "forward + backward, 4,096 tokens,
        N 50,000". Only rows of the same case can be compared.
      variant: The implementation or setting.
      seconds: Median wall time of one call; None if the row has only `extra` measurements.
      quartiles: First and third quartile of the wall times, in seconds.
      ratio: This variant's time divided by the time of the case's first variant, as the median
        over rounds.
      processor_seconds: Median processor time of one call, summed over the threads of this process.
        Unlike wall time it does not count the time that other programs take on the same cores.
      extra: Other measurements by name; the name has the unit: `{"temporary_bytes": 43_000_000}`.
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
    """Measures the times of several functions, called in turn.

    Args:
      case: `Row.case`.
      variants: Functions without arguments, by name. Ratios refer to the first one. A call ends
        when the returned JAX arrays are ready. The first call of each function compiles it and is
        not timed.
      repeats: Number of rounds, at least 1.
      extra: `Row.extra` of each variant.

    Yields:
      One row per variant, in order.

    Raises:
      ValueError: There is no variant, or `repeats` is below 1.
    """
    if not variants or repeats < 1:
        raise ValueError(
            f"compare({case!r}) needs at least one variant and repeats >= 1, got "
            f"{len(variants)} variants and repeats={repeats}"
        )
    for function in variants.values():
        jax.block_until_ready(function())
    times: dict[str, list[float]] = {name: [] for name in variants}
    processor_times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, function in variants.items():
            # One more call without timing. During it the system takes back the memory that the
            # previous function has freed: 100 ms for 2 GB.
            jax.block_until_ready(function())
            start, start_processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
            processor_times[name].append(time.process_time() - start_processor)
    first_variant = next(iter(times.values()))
    for name, own in times.items():
        yield Row(
            case=case,
            variant=name,
            seconds=statistics.median(own),
            quartiles=_quartiles(own),
            ratio=statistics.median(a / b for a, b in zip(own, first_variant, strict=True)),
            processor_seconds=statistics.median(processor_times[name]),
            extra=(extra or {}).get(name, {}),
        )


def temporary_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Size of XLA's temporary buffers for a call in bytes, without arguments and results.

    Compiles the function, but does not run it and does not allocate the buffers.

    Args:
      function: A function of arrays, jitted or not.
      *arguments: Arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      RuntimeError: The backend has no memory analysis.
    """
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    analysis = jitted.lower(*arguments).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError(f"the {jax.default_backend()} backend has no memory analysis")
    return int(analysis.temp_size_in_bytes)


def growth_exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of values ≈ c · lengths^p, by least squares of the logarithms.

    Args:
      lengths: Positive lengths, at least two of them different.
      values: The positive time or memory of each length.

    Raises:
      ValueError: The numbers of lengths and values differ, one of them is not positive, or all
        lengths are equal.
    """
    positive = all(number > 0 for number in (*lengths, *values))
    if len(lengths) != len(values) or len(set(lengths)) < 2 or not positive:
        raise ValueError(
            "an exponent needs at least two different lengths and one value for each, all "
            f"positive; got lengths {lengths} and values {values}"
        )
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def environment() -> dict[str, Any]:
    """The machine and the versions of a measurement, for JSON. Leaves out the host's name."""
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
