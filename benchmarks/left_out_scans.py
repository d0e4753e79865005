"""What DyVM's choice of scans saves on this machine: dense against a model that leaves out a share of its scans.

    python benchmarks/left_out_scans.py                     # to benchmarks/results/left_out_scans_cpu.json

Weights are random and no patch is dropped. Each selector gets random weights and the bias by which the wanted share of
the batch's images runs each scan, so images of one batch differ in what runs, as they do after training.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mtrkit
from mtrkit.dyvm import BlockSelector, DyVM, DyVMCheckpoint, measure_scan_share
from mtrkit.measure import describe_machine, input_size_of, interleave, keep_freed_memory
from mtrkit.models import VisionMamba
from mtrkit.patch import trained_parts

RESULTS = Path(__file__).parent / "results"


def choosing(dense: VisionMamba, share: float, images: Tensor) -> nn.Module:
    """The same weights, with selectors that run this share of the scans of these images."""
    model = mtrkit.create_model(dense.pretrained_cfg["architecture"]).eval()
    model.load_state_dict(dense.state_dict())
    mixer = model.layers[0].mixer
    parts = DyVM(mixer.d_model, mixer.d_inner, len(model.layers), keep=1.0).eval()
    mtrkit.apply_reduction(model, "dyvm", checkpoint=DyVMCheckpoint.of(model, parts))
    in_use = trained_parts(model)
    assert in_use is not None
    hooks = [head.register_forward_pre_hook(Fit(share)) for head in in_use.block_heads]
    with torch.inference_mode():
        model(images)
    for hook in hooks:
        hook.remove()
    measure_scan_share(model, images)
    return model


class Fit:
    """Set a selector so that it answers yes for a share of what it sees."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, selector: BlockSelector, seen: tuple[Tensor, ...]) -> None:
        """Before the selector looks."""
        with torch.no_grad():
            nn.init.normal_(selector.weight)
            found = seen[0] @ selector.weight.T
            alike = found.amax(dim=0) == found.amin(dim=0)  # in the first block no class token has seen its image
            selector.bias.copy_(torch.where(alike, 1 - found[0], -found.quantile(1 - self.share, dim=0)))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each share; the speed-up is the median over rounds in turns."""
    torch.manual_seed(0)
    dense = mtrkit.create_model(args.model).eval()
    images = torch.randn(args.batch_size, *input_size_of(dense))
    models = {"dense": dense} | {str(share): choosing(dense, share, images) for share in args.share}
    passes = {name: torch.inference_mode()(lambda model=model: model(images)) for name, model in models.items()}
    rounds = [*interleave(passes, torch.device("cpu"), rounds=args.rounds, seconds=0.5)]
    flops = mtrkit.count_flops(dense).gflops
    rows = []
    for share in map(str, args.share):
        info = mtrkit.reduction_info(models[share])
        assert info is not None
        speedup = statistics.median(seconds["dense"] / seconds[share] for seconds in rounds)
        promised = flops / info.flops_reduced.gflops
        rows.append({"model": args.model, "batch_size": args.batch_size, "scan_share": round(info.scan_share or 0, 4)})
        rows[-1] |= {"promised": round(promised, 4), "speedup": round(speedup, 4)}
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_tiny_patch16_224")
    parser.add_argument("--share", nargs="+", type=float, default=[0.9, 0.8, 0.65, 0.5])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "left_out_scans_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    rows = measure(args)
    for row in rows:
        print(row)
    about = {"command": shlex.join(["python", *sys.argv])} | describe_machine(torch.device("cpu"))
    args.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
