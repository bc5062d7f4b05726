"""Triton kernels for NVIDIA GPUs: `*_kernels.py` are the kernels, `*_triton.py` call them."""
