"""The kernels themselves, as Triton compiles them: everything in here imports Triton."""
