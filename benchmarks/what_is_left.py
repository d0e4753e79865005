"""What `runs` still loses: how much of it is that a run has one Δ, B and C, and how much is the merging itself.

    python benchmarks/what_is_left.py --data cifar10/train --limit 2000

Beside `runs` as it is stands its definition without that shortcut: every token is written out as often as it lasts in
front of each mixer, the dense mixer runs on all positions, and its output is averaged over the copies. This costs what
the dense mixers cost. What it still loses is lost because neighbours that differ became one. Mean Kullback-Leibler
divergence from the dense answers in nats, and top-1, both on images that nothing else is tuned on.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from laboratory import MODELS
from torch import Tensor, nn

import mtrkit
from mtrkit.measure import ImageSet, open_images, preprocess_for
from mtrkit.measure.accuracy import batches
from mtrkit.scan.runs import Written, write_out
from mtrkit.types import Signals


@contextmanager
def written_out(model: nn.Module) -> Iterator[None]:
    """Run every mixer that is told lengths on the sequence written out, and take means over the copies."""
    times: dict[nn.Module, Written] = {}

    def before(mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, call = args[0], kwargs.get("call", args[1] if len(args) > 1 else None)
        if call is None or call.runs is None:
            return None
        times[mixer], call.signals = write_out(call.runs), Signals()  # `runs` reads none
        return (times[mixer].repeat(hidden.mT).mT,), {}

    def after(mixer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Any:
        return times.pop(mixer).average(out.mT).mT if mixer in times else None

    mixers = [block.mixer for block in model.layers]  # type: ignore[union-attr]
    handles = [mixer.register_forward_pre_hook(before, with_kwargs=True) for mixer in mixers]
    handles += [mixer.register_forward_hook(after) for mixer in mixers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def answers(model: nn.Module, images: ImageSet) -> Tensor:
    """(n, classes) logits."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in batches(images, preprocess_for(model.pretrained_cfg), 50)])


def row(name: str, found: Tensor, dense: Tensor, labels: Tensor) -> str:
    """A line of the table."""
    truth = dense.softmax(dim=1)
    divergence = (truth * (dense.log_softmax(dim=1) - found.log_softmax(dim=1))).sum(dim=1).mean()
    return f"| {name} | {divergence:.4f} | {100 * (found.argmax(dim=1) == labels).double().mean():.1f} % |"


def main() -> int:
    """Print a table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder per class")
    parser.add_argument("--limit", type=int, default=2000, help="images (default: 2000)")
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--model", nargs="+", default=[MODELS[0], "vim_micro_patch4_32"])
    args = parser.parse_args()
    images = open_images(args.data).spread(args.limit)
    labels = torch.tensor(images.labels)
    for name in args.model:
        model = mtrkit.create_model(name, "pretrained").eval()
        dense = answers(model, images)
        print(f"\n| {name} at {args.ratio} | divergence | top-1 |\n|---|---|---|\n{row('dense', dense, dense, labels)}")
        mtrkit.apply_reduction(model, "runs", ratio=args.ratio)
        print(row("`runs`", answers(model, images), dense, labels))
        with written_out(model):
            print(row("Δ, B and C of each copy", answers(model, images), dense, labels))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
