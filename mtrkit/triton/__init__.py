"""Kernels in Triton, for GPUs: scan, convolution, norm, mixer and reduction, in float32, bfloat16 and float16.

``availability`` says whether they can run. Everything else here imports Triton, and is imported by
:mod:`mtrkit.scan.kernels` when the first tensor asks for it.
"""
