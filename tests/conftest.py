"""Set before jax is imported: see the comments."""

import gc
import os
import pathlib
import tempfile
from importlib.metadata import version

# The suite is written for a CPU, and must not take an accelerator that something else is using.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Triton's kernels are interpreted where there is no GPU; Triton reads this when it is imported.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A batched solve in NumPy slows down a thousandfold when OpenBLAS threads fight over busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Compiling is most of the suite's time, and the workers compile much the same programs. Without the
# two thresholds the cache would keep only the slowest.
# Unoptimised code compiles in half the time, and the suite runs little of it for long. Tests marked
# `optimized` run at XLA's default, in a process of their own (`test_optimized.py`).
xla_flags = [os.environ.get("XLA_FLAGS", "")]
if not os.environ.get("LINSEQREC_OPTIMIZED"):
    xla_flags.append("--xla_backend_optimization_level=0")
if version("jax").startswith("0.10."):
    # And without these a large step takes a third of what is left. Later ones have no other.
    xla_flags.append("--xla_cpu_use_fusion_emitters=false")
    # The workers keep the cores busy: parts of a program compiled in parallel take more in all.
    xla_flags.append("--xla_cpu_parallel_codegen_split_count=1")
os.environ["XLA_FLAGS"] = " ".join(xla_flags).strip()
cache = pathlib.Path(tempfile.gettempdir()) / f"linseqrec-tests-jax-{version('jax')}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

from tests import typechecker  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]

# The tests check the shapes and dtypes that functions declare. JAX takes NumPy arrays for its own.
# Triton compiles the source of its kernels, which must stay as it is.
jaxtyping.Array = jax.Array | np.ndarray
checked = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "linseqrec" / "ops").rglob("*.py")
    if not path.stem.endswith(("_kernels", "_tiles"))
]
jaxtyping.install_import_hook(
    ("linseqrec.layers", "linseqrec.models", *checked),
    f"{typechecker.__name__}.check",
)

# Tracing makes millions of short-lived objects. At Python's thresholds, looking for circles among
# them takes a tenth of the suite's time.
gc.freeze()
gc.set_threshold(100_000, 50, 100)

# Grain reads absl's flags.
flags.FLAGS.mark_as_parsed()

# Minutes of other processes, each: begun last, one would keep a worker when the others are done.
_LONG = (
    "test_kill.py",
    "test_optimized.py",
    "test_multidevice.py",
    "test_processes.py",
    "test_full_disk.py",
)


@pytest.fixture
def without_type_checks():
    """Lets wrong arguments through to the function under test, which must name what is wrong."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops a module's compiled programs when it is done.

    Each holds memory mappings. A worker that kept the programs of the whole suite reached Linux's
    limit of 65,530 (vm.max_map_count), and loading one more was a segmentation fault.
    """
    yield
    jax.clear_caches()


def pytest_collection_modifyitems(config, items):
    """Puts the longest tests first, and leaves to `test_optimized.py` what it runs."""
    items.sort(key=lambda item: item.path.name not in _LONG)
    if any(item.path.name == "test_optimized.py" for item in items):
        marked = [item for item in items if item.get_closest_marker("optimized")]
        items[:] = [item for item in items if item not in marked]
        config.hook.pytest_deselected(items=marked)


# Simulated devices want a process of their own (`tests/test_multidevice.py` starts it).
collect_ignore = [] if os.environ.get("LINSEQREC_MULTIDEVICE") else ["multidevice"]
