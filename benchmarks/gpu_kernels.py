"""Parts of on_gpu.py: the time of single kernels, of three ways to launch a model, and of Triton's tiles by size.

bash benchmarks/on_gpu.sh OUT --part kernels
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import mtrkit
from mtrkit.measure import Precision, forward_pass, interleave, summarise, twin
from mtrkit.ops import match_nearest, merge_tokens, pair_similarity, token_map
from mtrkit.scan import causal_conv1d, fused, selective_scan, use_scan_backend
from mtrkit.scan.run_operators import convolve_runs, scan_runs
from mtrkit.types import Runs, Scan

Rows = Iterator[dict[str, Any]]
Calls = dict[str, Callable[[], object]]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TILES = (128, 256, 512, 1024)  # numbers of a state per warp
HELD = ((8, 4), (16, 4), (16, 8), (32, 8))  # tokens between kept states, and states in registers


def kernels(device: torch.device, sizes: Any, backends: list[str]) -> Rows:
    """Microseconds of one call, every backend in turns: scan, convolution, their gradients, and what is around them."""
    for width in sizes.widths:
        for batch in sizes.batches:
            for name, dtype in DTYPES.items():
                row = {"inner": 2 * width, "batch_size": batch, "dtype": name, "length": sizes.length}
                for call, timings in _in_turns(device, sizes, backends, batch, width, dtype).items():
                    yield row | {"call": call, "microseconds": timings}


def _in_turns(
    device: torch.device, sizes: Any, backends: list[str], batch: int, width: int, dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Call → backend → microseconds, the median over the rounds."""
    torch.manual_seed(0)
    calls = _single_calls(device, batch, width, sizes.length, dtype)
    found: dict[str, dict[str, float]] = {}
    for call, run in calls.items():
        passes = {backend: _under(backend, run, "gradients" in call) for backend in backends}
        if call.startswith("runs"):
            passes = {"triton": passes["triton"]} if "triton" in passes else {}
        if passes:
            rounds = list(interleave(passes, device, rounds=sizes.rounds, seconds=sizes.seconds))
            names = list(passes)
            found[call] = {b: 1e6 / summarise(rounds, b, names[0], 1).images_per_second for b in names}
    return found


def _under(backend: str, run: Callable[[], object], trains: bool) -> Callable[[], object]:
    def call() -> object:
        with use_scan_backend(backend), torch.set_grad_enabled(trains):
            return run()

    return call


def _single_calls(device: torch.device, batch: int, width: int, length: int, dtype: torch.dtype) -> Calls:
    """At a Vim's sizes and in its mixers' memory order."""
    E, N = 2 * width, 16
    some = {"device": device, "dtype": dtype}
    x, z = torch.randn(batch, length, 2 * E, **some).transpose(1, 2).chunk(2, dim=1)
    delta = torch.randn(batch, length, E, **some).transpose(1, 2)
    rows = torch.randn(batch, length, width // 16 + 2 * N, **some).transpose(1, 2)
    B, C = rows[:, -2 * N : -N], rows[:, -N:]
    A = -torch.rand(E, N, device=device) * N
    D, bias, taps = (torch.randn(*shape, device=device) for shape in ((E,), (E,), (E, 4)))
    leaves = [t.detach().requires_grad_() for t in (x, delta, A, B, C, D, z, bias)]
    inputs, tail = (x, delta, A, B, C, D, z, bias), taps.detach().requires_grad_()
    runs = Runs(torch.ones(batch, length, dtype=torch.int64, device=device), 2 * length)
    runs.lengths[:, ::2] = 3
    scan = Scan(x, delta, A, B[:, None], C[:, None], D, z, bias, True)
    tokens, residual = (torch.randn(batch, length, width, **some) for _ in range(2))
    return {
        "scan": lambda: selective_scan(*inputs, True),
        "scan, backward": lambda: selective_scan(*inputs, True, reverse=True),
        "scan, gradients": lambda: _gradients(selective_scan(*leaves, True), leaves),
        "convolution": lambda: causal_conv1d(x, taps, D),
        "convolution, gradients": lambda: _gradients(causal_conv1d(leaves[0], tail, D), [leaves[0], tail]),
        "runs, scan": lambda: scan_runs(scan, runs, "triton"),
        "runs, convolution": lambda: convolve_runs(x, taps[:, None], D, runs, False, "triton"),
        "sum and norm": lambda: fused.add_rms_norm(tokens, residual, D[:width], 1e-5),
        **_reduction_calls(tokens),
    }


def _gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, leaves, torch.ones_like(y))


def _reduction_calls(tokens: Tensor) -> Calls:
    """Every second token looks for the most similar of the others, and half of them leave."""
    batch, length, _ = tokens.shape
    every = torch.arange(length, device=tokens.device).expand(batch, length)
    src, dst = every[:, 0::2].contiguous(), every[:, 1::2].contiguous()
    pairs = dst.shape[1]
    leaving = src[:, : length // 4]
    kept = torch.cat([dst, src[:, length // 4 :]], dim=1)
    target = dst[:, : leaving.shape[1]]
    chosen = token_map(length, kept, leaving, target)
    return {
        "match": lambda: match_nearest(tokens, src, dst),
        "cosines": lambda: pair_similarity(tokens, src[:, :pairs], dst),
        "number": lambda: token_map(length, kept, leaving, target),
        "merge": lambda: merge_tokens(tokens, chosen),
    }


def modes(device: torch.device, sizes: Any, backends: list[str]) -> Rows:
    """Images per second of dense and reduced models: eager, compiled, and replayed as a CUDA graph."""
    for name in sizes.models:
        for batch in sizes.batches:
            for precision in map(Precision, sizes.plain_precisions):
                for backend in backends:
                    metadata = {"model": name, "batch_size": batch, "precision": precision.name, "backend": backend}
                    with use_scan_backend(backend):
                        yield from _modes_of(device, sizes, metadata, precision)


def _modes_of(device: torch.device, sizes: Any, metadata: dict[str, Any], precision: Precision) -> Rows:
    model = precision.cast(mtrkit.create_model(metadata["model"]).eval().to(device))
    x = torch.randn(metadata["batch_size"], *model.patch_embed.input_size, device=device, dtype=precision.weights)
    models = {"dense": model} | {m: mtrkit.apply_reduction(twin(model), m, ratio=0.3) for m in ("mtr", "runs")}
    passes: dict[str, Callable[[], object]] = {}
    failed = {}
    for method, candidate in models.items():
        for mode in sizes.modes:
            try:
                passes[f"{mode}, {method}"] = _launched(candidate, x, precision, mode)
            except Exception as error:  # of a compiler, or of what cannot be captured: a row, and the others go on
                failed[f"{mode}, {method}"] = f"{type(error).__name__}: {error}"[:500]
    rounds = list(interleave(passes, device, rounds=sizes.rounds, seconds=sizes.seconds))
    for key in (*passes, *failed):
        mode, method = key.split(", ")
        row = metadata | {"mode": mode, "method": method, "ratio": 0.0 if method == "dense" else 0.3}
        if key in failed:
            yield row | {"reason": failed[key]}
        else:
            timing = summarise(rounds, key, next(iter(passes)), len(x))
            yield row | {"images_per_second": timing.images_per_second, "speedup_over_eager_dense": timing.speedup}


def _launched(model: Any, x: Tensor, precision: Precision, mode: str) -> Callable[[], object]:
    """A pass that is ready to be timed; compiled and captured here."""
    if mode == "compiled":
        run = forward_pass(torch.compile(model, dynamic=False), x, precision)
        run()
        return run
    run = forward_pass(model, x, precision)
    return _captured(run) if mode == "graph" else run


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph, warmed up on a stream of its own as capturing wants it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    return lambda: (graph.replay(), kept)


def tiles(device: torch.device, sizes: Any, backends: list[str]) -> Rows:
    """Microseconds of Triton's scan for other tiles than those in mtrkit/triton/scan.py, to choose these by."""
    if "triton" not in backends:
        yield {"reason": next(status.reason for status in mtrkit.scan_backends() if status.name == "triton")}
        return
    from mtrkit.triton import scan

    before = scan.FORWARD_TILE, scan.BACKWARD_TILE, scan.SPAN, scan.HELD
    choices = [(tile, *before[1:]) for tile in TILES]
    choices += [(before[0], tile, span, held) for tile in TILES[:3] for span, held in HELD]
    try:
        for width in sizes.widths:
            for batch in sizes.batches:
                calls = _single_calls(device, batch, width, sizes.length, torch.bfloat16)
                for choice in choices:
                    scan.FORWARD_TILE, scan.BACKWARD_TILE, scan.SPAN, scan.HELD = choice
                    passes = {n: _under("triton", calls[n], "grad" in n) for n in ("scan", "scan, gradients")}
                    rounds = list(interleave(passes, device, rounds=sizes.rounds, seconds=sizes.seconds))
                    taken = {n: 1e6 / summarise(rounds, n, "scan", 1).images_per_second for n in passes}
                    named = dict(zip(("forward_tile", "backward_tile", "span", "held"), choice, strict=True))
                    yield {"inner": 2 * width, "batch_size": batch, **named, "microseconds": taken}
    finally:
        scan.FORWARD_TILE, scan.BACKWARD_TILE, scan.SPAN, scan.HELD = before
