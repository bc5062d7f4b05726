"""Set before jax is imported: see the comments."""

import os

# The suite is written for a CPU, and must not take an accelerator that something else is using.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A batched solve in NumPy slows down a thousandfold when OpenBLAS threads fight over busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from absl import flags

# Grain reads absl's flags.
flags.FLAGS.mark_as_parsed()
