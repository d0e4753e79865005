"""Segment ADE20K with UperNet over a Vim backbone, dense and with its tokens reduced: mIoU and pixel accuracy.

    python benchmarks/ade20k.py --data ADEChallengeData2016 --checkpoint upernet_vim_tiny.pth --method mtr runs rmeeto
    python benchmarks/ade20k.py --data ADEChallengeData2016 --init pretrained --train 60000 --ratio 0
    python benchmarks/ade20k.py --data ADEChallengeData2016 --checkpoint FILE --train 20000 --method mtr --ratio 0.3
    python benchmarks/ade20k.py --data ADEChallengeData2016 --init pretrained --train 80000 \\
        --dyvm 0.9 0.8

The first command reduces without training, at every method and ratio; the second makes a segmentor of a classifier;
the third trains one on with a reduction in place and measures that; the fourth trains DyVM's pruning as its paper does
(Vim-Ti; 0.8 0.8 for Vim-S), whose FLOPs are counted by the share of the scans that run on validation images. Rows go to
OUT/rows.json, and those that are there are not measured again; a training that was interrupted goes on. FLOPs are the
backbone's, for one 512 x 512 window.

Measured as by mmsegmentation for Vim: the short side becomes 512 (bilinear), windows of 512 x 512 lie 341 apart, the
last ones at the edge, their logits are averaged where they overlap and resized to the image. A side shorter than a
window, which a very long image has, is filled up with the mean colour. IoU is of all pixels of all images
together; unlabelled pixels are left out, and so are classes that neither annotations nor predictions have.

Trained as by them in crops of 512, scales of 0.5 to 2, flips, AdamW, linear warm-up and fall, cross-entropy over all
pixels of a crop (0 for unlabelled ones) plus 0.4 times that of the auxiliary head. Unlike there: no distortion of
colours, no dropout before the classifiers, no clipping of gradients, one learning rate for all layers, one process.
DyVM's two terms for how much is kept have weight 20 each.

Papers' figures do not stand beside the rows: none are known here that say what ratio they are for.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from miou import Score, confusion, slide
from scenes import Normalise, Scenes, resized, scaled
from torch import Tensor, nn
from torch.utils.data import DataLoader
from train_upernet import segmentor_of, train
from upernet import Segmentor, resize

from mtrkit.api import reduction_info
from mtrkit.dyvm import DyVMTraining, measure_scan_share
from mtrkit.errors import OptionError
from mtrkit.measure import describe_machine, weights_digest
from mtrkit.measure.candidates import Candidate, MethodChoice, candidates
from mtrkit.measure.progress import progress
from mtrkit.measure.report import as_markdown
from mtrkit.measure.results import KEY, Results, Row, configuration_key
from mtrkit.models import load_checkpoint

COUNTED = 64  # validation images on which the scans that run are counted


def parse() -> argparse.Namespace:
    """What to segment, with what, and whether to train it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds images/ and annotations/")
    parser.add_argument("--model", default="vim_tiny_patch16_224", help="the backbone (default: %(default)s)")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", help="a segmentor in mmsegmentation's layout, or one that was trained here")
    weights.add_argument("--init", metavar="FILE", help="a classifier's weights for the backbone, or 'pretrained'")
    parser.add_argument("--out", type=Path, default=Path("ade20k"), help="folder for results (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="validation images to use (default: all)")
    parser.add_argument("--classes", type=int, default=150, help="default: 150")
    parser.add_argument("--size", type=int, default=512, help="pixels a side of a window (default: 512)")
    parser.add_argument("--blocks", type=int, nargs=4, default=[5, 11, 17, 23], help="of the maps, counted from 0")
    parser.add_argument("--train", type=int, metavar="STEPS", help="train first, with one method and ratio")
    parser.add_argument("--batch-size", type=int, default=16, help="of training (default: 16)")
    parser.add_argument("--lr", type=float, default=6e-5, help="default: 6e-5")
    parser.add_argument("--seed", type=int, default=0, help="of training (default: 0)")
    parser.add_argument("--save-every", type=int, default=500, help="steps (default: 500)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (default: 2)")
    parser.add_argument("--method", nargs="+", default=["mtr"], help="default: mtr")
    parser.add_argument(
        "--ratio", nargs="+", type=float, default=[0.2, 0.3], help="of FLOPs to remove (default: 0.2 0.3)"
    )
    shares = ("PATCHES", "SCANS")
    parser.add_argument("--dyvm", nargs=2, type=float, metavar=shares, help="train DyVM to keep these shares instead")
    parser.add_argument("--layers", nargs="+", type=int, help="blocks to reduce after (default: the method's own)")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    args = parser.parse_args()
    if args.dyvm and not args.train:
        parser.error("--dyvm is trained; add --train STEPS")
    several = not args.dyvm and (len(args.ratio) > 1 or len(args.method) > 1)
    if args.train and (several or args.batch_size < 2):
        parser.error("--train takes one --method, one --ratio (0: dense) and a --batch-size of 2 or more")
    return args


def build(args: argparse.Namespace) -> Segmentor:
    """The dense segmentor with its weights."""
    torch.manual_seed(args.seed)  # of the heads, if the weights are of a classifier
    model = Segmentor(args.model, args.classes, args.size, tuple(args.blocks))
    if args.init:
        if not args.train:
            raise OptionError("--init leaves the heads without weights; add --train STEPS, or give --checkpoint")
        model.start_from(args.model, args.init)
    else:
        load_checkpoint(model, args.checkpoint)
    return model.to(args.device).eval()


def pruned(model: Segmentor, keep: float, block_target: float) -> Candidate:
    """The segmentor as DyVM trains it."""
    training = DyVMTraining(model, keep=keep, block_target=block_target)
    info = reduction_info(training)
    assert info is not None
    ratio = info.ratio_reached
    name = f"dyvm:keep={keep:g},block_target={block_target:g}"
    return Candidate(name, ratio, training, info.flops_reduced.gflops, info.promised_speedup, ratio, info)


def with_scans_counted(args: argparse.Namespace, candidate: Candidate, scenes: Scenes) -> Candidate:
    """The FLOPs of pruning that has been trained, by the share of the scans that run on some windows."""
    normalise, windows = Normalise.of(segmentor_of(candidate.model)), []
    for pixels, labels in islice(scenes, COUNTED):
        window = normalise(resized(pixels, scaled(*labels.shape, args.size)))[..., : args.size, : args.size]
        room = (0, args.size - window.shape[-1], 0, args.size - window.shape[-2])
        windows.append(F.pad(window, room)[None].to(args.device))
    measure_scan_share(candidate.model.eval(), windows)
    info = reduction_info(candidate.model)
    assert info is not None
    return replace(candidate, info=info, gflops=info.flops_reduced.gflops, reached=info.ratio_reached)


@torch.inference_mode()
def count(
    model: nn.Module, scenes: Scenes, normalise: Normalise, args: argparse.Namespace, tick: Callable[[], object]
) -> Tensor:
    """The confusion matrix of all images, (classes, classes)."""
    counts = torch.zeros(args.classes, args.classes, dtype=torch.int64)
    for pixels, labels in DataLoader(scenes, batch_size=None, num_workers=args.workers):
        size = scaled(*labels.shape, args.size)
        image = normalise(resized(pixels, size)).to(args.device)[None]
        predicted = resize(slide(model, image, args.size), labels.shape).argmax(dim=1)[0]
        counts += confusion(predicted.cpu(), labels, args.classes)
        tick()
    return counts


def rows(args: argparse.Namespace, wanted: Iterable[Candidate], scenes: Scenes, results: Results) -> Iterator[Row]:
    """One per candidate, from the results or measured now."""
    with progress() as bar:
        for candidate in wanted:
            model, done = candidate.model.eval(), candidate.info
            reduction = {"options": done.options, "layers": done.layers} if done else {}
            same = {"method": candidate.method, "ratio": candidate.ratio, "data": scenes.digest} | reduction
            same |= {name: getattr(args, name) for name in ("model", "classes", "size", "blocks")}
            key = configuration_key(same | {"weights": weights_digest(model), "device": str(args.device)})
            if results.find(key) is None:
                task = bar.add_task(candidate.name, total=len(scenes))
                counts = count(model, scenes, Normalise.of(segmentor_of(model)), args, partial(bar.advance, task))
                about = describe(args, candidate, len(scenes)) | Score.of(counts)._asdict()
                results.add({KEY: key} | about | describe_machine(args.device))
            yield results.find(key)


def describe(args: argparse.Namespace, candidate: Candidate, images: int) -> Row:
    """What a row is of."""
    return {
        "model": args.model,
        "weights": str(trained_file(args, candidate) if args.train else args.checkpoint),
        "trained_steps": args.train or 0,
        "method": candidate.method,
        "ratio": candidate.ratio,
        "ratio_reached": candidate.reached,
        "tokens": list(candidate.info.tokens) if candidate.info else [],
        "backbone_gflops": candidate.gflops,
        "n": images,
        "command": " ".join(["python benchmarks/ade20k.py", *sys.argv[1:]]),
    }


def trained_file(args: argparse.Namespace, candidate: Candidate) -> Path:
    """Where a training is kept, whole or not."""
    return args.out / (re.sub(r"[^\w.=+-]+", "_", f"{args.model}_{candidate.name}_{args.train}") + ".pth")


def show(found: list[Row]) -> str:
    """The rows as a table."""
    columns = ["weights", "method", "ratio", "backbone GFLOPs", "mIoU", "pixel accuracy", "images"]
    cells = [
        [
            Path(row["weights"]).name,
            row["method"],
            f"{row['ratio']:g}",
            f"{row['backbone_gflops']:.3g}",
            f"{100 * row['miou']:.2f}",
            f"{100 * row['pixel_accuracy']:.2f}",
            str(row["n"]),
        ]
        for row in found
    ]
    return as_markdown(columns, cells)


def main() -> None:
    """Train if asked, and measure."""
    args = parse()
    args.device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "rows.json")
    scenes = Scenes(args.data, "validation", args.classes, args.limit)
    if args.dyvm:
        wanted = [pruned(build(args), *args.dyvm)]
    else:
        methods = [MethodChoice(name, name, {}) for name in args.method]
        wanted = candidates(build(args), methods, args.ratio, args.layers, {})
    if args.train:
        wanted = wanted[-1:]  # the reduced one, or the dense one if the ratio is 0
        train(args, wanted[0], trained_file(args, wanted[0]))
    if args.dyvm:
        wanted = [with_scans_counted(args, wanted[0], scenes)]
    print(show(list(rows(args, wanted, scenes, results))))


if __name__ == "__main__":
    main()
