"""Everything that only a GPU can show, in about a quarter of an hour, as raw JSON files in a folder.

    bash benchmarks/on_gpu.sh OUT
    bash benchmarks/on_gpu.sh OUT --part throughput --seconds 3000

The parts run one after the other, each in a process of its own with a limit of time, and each writes its file as it
goes: a part that fails or takes too long leaves what it has and a reason, and the rest goes on. Without a GPU the same
parts run on the CPU in one process with tiny sizes, marked ``"dry_run": true``, so that the script is known to work
before a GPU is there. The exit status is 1 if any part failed.

| part | what |
|---|---|
| environment | device, driver, versions, commit, scan backends with their reasons |
| tests | the tests marked ``gpu``, and those of Triton's kernels compiled for this GPU, if pytest is installed |
| parity | every backend that runs here: scan and its gradients against the float64 reference on the CPU |
| models | logits of dense and reduced models here against the CPU, for every backend that runs |
| kernels | scan, convolution, gradients, norm and reduction alone: mamba_ssm, Triton and torch in turns |
| modes | dense and reduced Vim-Ti, -S and -B, eager, compiled and as a CUDA graph, for every backend that runs |
| throughput | the same models, eager: batch sizes, precisions, methods, ratios, timed in turns |
| training | images per second of a forward and backward pass, dense and reduced, for every backend that runs |
| profile | where the time of a dense and a reduced pass goes, by kernel |
| tiles | Triton's scan with other tiles than it has, to choose them by |
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import gpu_kernels
import torch

import mtrkit
from mtrkit.measure import (
    Precision,
    check_backend,
    describe_machine,
    forward_pass,
    interleave,
    peak_memory,
    summarise,
    twin,
    version_of,
)
from mtrkit.scan import use_scan_backend

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "triton", "mamba_ssm", "causal_conv1d", "timm", "numpy", "pytest")
Rows = Iterator[dict[str, Any]]


class Sizes(NamedTuple):
    """What is measured: on a GPU, or in a dry run."""

    models: tuple[str, ...]
    batches: tuple[int, ...]
    precisions: tuple[str, ...]
    plain_precisions: tuple[str, ...]  # without autocast
    modes: tuple[str, ...]
    widths: tuple[int, ...]  # D of the models
    length: int  # tokens of single kernels
    lengths: tuple[int, ...]
    ratios: tuple[float, ...]
    rounds: int
    seconds: float


GPU = Sizes(
    models=("vim_tiny_patch16_224", "vim_small_patch16_224", "vim_base_patch16_224"),
    batches=(128, 1, 16),
    precisions=("bfloat16", "float32", "float16", "amp-bfloat16"),
    plain_precisions=("bfloat16", "float32", "float16"),
    modes=("eager", "graph", "compiled"),
    widths=(192, 384, 768),
    length=197,
    lengths=(1, 17, 131, 197, 513),
    ratios=(0.05, 0.2, 0.3, 0.4),
    rounds=5,
    seconds=0.1,
)
DRY = Sizes(("vim_micro_patch4_32",), (1,), ("float32",), ("float32",), ("eager",), (16,), 9, (17,), (0.3,), 1, 0.0)


def environment(device: torch.device, sizes: Sizes) -> Rows:
    """What the rest was measured on."""
    driver = (
        subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        if device.type == "cuda"
        else ""
    )
    backends = [status._asdict() for status in mtrkit.scan_backends()]
    yield {"driver": driver, "packages": {name: version_of(name) for name in PACKAGES}, "backends": backends}


def tests(device: torch.device, sizes: Sizes) -> Rows:
    """The tests marked gpu; on a GPU also those of the kernels, which otherwise run in Triton's interpreter."""
    if importlib.util.find_spec("pytest") is None:
        yield {"ran": False, "reason": "pytest is not installed here"}
        return
    chosen = [["-m", "gpu", "tests/ops/test_runtime.py", "tests/methods/test_runtime.py"]]
    if device.type != "cpu":
        chosen += [["tests/triton"], ["-k", "triton", "tests/scan"]]
    statuses = []
    for arguments in chosen:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # the tests ask for deterministic products
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        statuses.append(done.returncode)
        yield {"ran": arguments, "status": done.returncode, "output": done.stdout[-4000:]}
    if not set(statuses) <= {0, 5}:
        raise RuntimeError("tests failed; see the output")


def parity(device: torch.device, sizes: Sizes) -> Rows:
    """Errors relative to the largest value, forward and backward, in both directions and every dtype."""
    for status in mtrkit.scan_backends():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for length in sizes.lengths:
                for reverse in (False, True):
                    row = {"backend": status.name, "dtype": str(dtype), "length": length, "reverse": reverse}
                    found = check_backend(status.name, device, length=length, dtype=dtype, reverse=reverse)
                    yield row | ({"reason": found} if isinstance(found, str) else asdict_of(found))


def asdict_of(found: Any) -> dict[str, Any]:
    """The two errors, and whether they are those of rounding."""
    return {"forward": found.forward, "backward": found.backward, "good": found.good}


def models(device: torch.device, sizes: Sizes) -> Rows:
    """Relative error of the logits, dense and reduced by methods whose choice seldom turns where numbers round."""
    backends = usable(device)  # found by gradients too, so before those are off
    for name in sizes.models:
        torch.manual_seed(0)
        model = mtrkit.create_model(name).eval()
        images = torch.randn(4, *model.patch_embed.input_size)
        for method, ratio in (("random", 0.0), ("random", 0.3), ("mtr", 0.3), ("runs", 0.3)):
            with torch.inference_mode():
                wanted = mtrkit.apply_reduction(twin(model), method, ratio=ratio)(images)
                for backend in backends:
                    with use_scan_backend(backend):
                        here = mtrkit.apply_reduction(twin(model).to(device), method, ratio=ratio)
                        found = here(images.to(device)).cpu()
                    error = float((found - wanted).norm() / wanted.norm())
                    yield {"model": name, "backend": backend, "method": method, "ratio": ratio, "error": error}
            model.cpu()


def kernels(device: torch.device, sizes: Sizes) -> Rows:
    """Single kernels; see gpu_kernels.py."""
    yield from gpu_kernels.kernels(device, sizes, usable(device))


def modes(device: torch.device, sizes: Sizes) -> Rows:
    """Eager, compiled, CUDA graph; see gpu_kernels.py."""
    yield from gpu_kernels.modes(device, sizes, usable(device))


def tiles(device: torch.device, sizes: Sizes) -> Rows:
    """Tiles of Triton's scan; see gpu_kernels.py."""
    yield from gpu_kernels.tiles(device, sizes, usable(device))


def throughput(device: torch.device, sizes: Sizes) -> Rows:
    """Images per second, speed-up, and the speed-up that the FLOPs promise, for every backend that runs."""
    for name in sizes.models:
        dense = mtrkit.create_model(name).eval().to(device)
        for batch in sizes.batches:
            for precision in map(Precision, sizes.precisions):
                model = precision.cast(twin(dense))
                x = torch.randn(batch, *model.patch_embed.input_size, device=device, dtype=precision.weights)
                for backend in usable(device):
                    with use_scan_backend(backend):
                        yield from timed(model, x, precision, {"model": name, "backend": backend}, sizes)


def usable(device: torch.device) -> list[str]:
    """The backends that run on the device, but for the reference, which is a loop for tests."""
    found = [status.name for status in mtrkit.scan_backends() if status.available and status.name != "reference"]
    return [name for name in found if not isinstance(check_backend(name, device, length=8), str)]


def timed(model: Any, x: torch.Tensor, precision: Precision, metadata: dict[str, Any], sizes: Sizes) -> Rows:
    """One batch and precision: all models in turns."""
    candidates = {("dense", 0.0): model} | {
        (method, ratio): mtrkit.apply_reduction(twin(model), method, ratio=ratio)
        for method in ("mtr", "runs", "rmeeto")
        for ratio in sizes.ratios
    }
    passes = {f"{method}@{ratio}": forward_pass(m, x, precision) for (method, ratio), m in candidates.items()}
    rounds = list(interleave(passes, x.device, rounds=sizes.rounds, seconds=sizes.seconds))
    for (method, ratio), candidate in candidates.items():
        key, info = f"{method}@{ratio}", mtrkit.reduction_info(candidate)
        yield metadata | {
            "batch_size": len(x),
            "precision": precision.name,
            "method": method,
            "ratio": ratio,
            "promised": 1.0 if info is None else info.promised_speedup,
            "peak_memory": peak_memory(passes[key], x.device),
            **asdict(summarise(rounds, key, "dense@0.0", len(x))),
        }


def training(device: torch.device, sizes: Sizes) -> Rows:
    """Forward and backward, in turns; gradients go through merging and through convolution and scan of runs."""
    for name in sizes.models[:2]:
        model = mtrkit.create_model(name).train().to(device)
        x = torch.randn(sizes.batches[0], *model.patch_embed.input_size, device=device)
        models = {"dense": model}
        models |= {method: mtrkit.apply_reduction(twin(model), method, ratio=0.4) for method in ("mtr", "runs")}
        for precision in map(Precision, ("float32", *[p for p in sizes.precisions if p.startswith("amp-")])):
            for backend in usable(device):
                with use_scan_backend(backend):
                    passes = {key: training_pass(found, x, precision) for key, found in models.items()}
                    rounds = list(interleave(passes, device, rounds=sizes.rounds, seconds=sizes.seconds))
                about = {"model": name, "backend": backend, "precision": precision.name, "batch_size": len(x)}
                for key in models:
                    yield about | {"method": key, **asdict(summarise(rounds, key, "dense", len(x)))}


def training_pass(model: Any, x: torch.Tensor, precision: Precision) -> Callable[[], None]:
    """A pass that leaves nothing behind."""
    weights = [*model.parameters()]

    def run() -> None:
        with precision.context(x.device):
            loss = model(x).float().square().mean()
        torch.autograd.grad(loss, weights, allow_unused=True)

    return run


def profile(device: torch.device, sizes: Sizes) -> Rows:
    """The twenty operators that take most of a pass's time."""
    model = mtrkit.create_model(sizes.models[0]).eval().to(device)
    x = torch.randn(sizes.batches[0], *model.patch_embed.input_size, device=device)
    for ratio in (0.0, 0.3):
        run = forward_pass(mtrkit.apply_reduction(twin(model), "mtr", ratio=ratio), x, Precision("float32"))
        run()
        with torch.profiler.profile() as seen:
            run()
        key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        events = sorted(seen.key_averages(), key=lambda event: -getattr(event, key))[:20]
        shares = [{"name": event.key, "microseconds": getattr(event, key), "calls": event.count} for event in events]
        yield {"model": sizes.models[0], "batch_size": len(x), "ratio": ratio, "operators": shares}


PARTS: dict[str, tuple[Callable[[torch.device, Sizes], Rows], int]] = {  # with seconds that each may take
    "environment": (environment, 40),
    "tests": (tests, 200),
    "parity": (parity, 80),
    "models": (models, 60),
    "kernels": (kernels, 100),
    "modes": (modes, 150),
    "throughput": (throughput, 230),
    "training": (training, 60),
    "profile": (profile, 40),
    "tiles": (tiles, 60),
}


def run_part(name: str, out: Path, device: torch.device, seconds: float | None = None) -> int:
    """Run one part here, and write its file after every row; no new row is begun when its time is up.

    Returns the exit status: 1 if it failed.
    """
    call, usual = PARTS[name]
    seconds = usual if seconds is None else seconds
    dry = device.type == "cpu"
    report: dict[str, Any] = {"part": name, "dry_run": dry, "machine": describe_machine(device), "rows": []}
    begin, failed = time.monotonic(), False
    try:
        for row in call(device, DRY if dry else GPU):
            report["rows"].append(row)
            write(out / f"{name}.json", report)
            if time.monotonic() - begin > seconds:
                report["stopped"] = f"after {seconds} s; what is missing was not measured"
                break
    except Exception:
        report["failed"], failed = traceback.format_exc(), True
    write(out / f"{name}.json", report)
    return int(failed)


def write(file: Path, report: dict[str, Any]) -> None:
    """In one step, so that a process that is ended leaves a whole file."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1, default=str))
    part.replace(file)


def status_of(name: str, out: Path, seconds: int) -> int:
    """The exit status of a part in a process of its own; -1 if it was ended."""
    command = [sys.executable, __file__, str(out), "--part", name]
    try:
        return subprocess.run(command, check=False, timeout=1.2 * seconds + 30).returncode
    except subprocess.TimeoutExpired:
        return -1


def dry_status(name: str, out: Path, device: torch.device) -> int:
    """The same of a part in this process."""
    try:
        return run_part(name, out, device)
    except OSError:  # its file cannot be written
        traceback.print_exc()
        return 1


def run_all(out: Path, device: torch.device) -> int:
    """Every part, and a summary for people at the end."""
    out.mkdir(parents=True, exist_ok=True)
    lines, failed = [f"{'dry run on the CPU' if device.type == 'cpu' else describe_machine(device)['device']}"], 0
    for name, (_, seconds) in PARTS.items():
        begin = time.monotonic()
        status = dry_status(name, out, device) if device.type == "cpu" else status_of(name, out, seconds)
        failed += status != 0
        rows = len(json.loads((out / f"{name}.json").read_text())["rows"]) if (out / f"{name}.json").exists() else 0
        ended = {0: "done", -1: "ended: it took too long"}.get(status, "FAILED, see its file")
        lines.append(f"{name}: {rows} rows in {time.monotonic() - begin:.0f} s, {ended}")
        (out / "summary.txt").write_text("\n".join(lines) + "\n")
        print(lines[-1], flush=True)
    return int(failed > 0)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the JSON files")
    parser.add_argument("--part", choices=PARTS, help="only this one, in this process")
    parser.add_argument("--seconds", type=float, help="how long that part may take")
    args = parser.parse_args()
    warnings.simplefilter("ignore", mtrkit.SmallModelWarning)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.part:
        sys.exit(run_part(args.part, args.out, device, args.seconds))
    sys.exit(run_all(args.out, device))


if __name__ == "__main__":
    main()
