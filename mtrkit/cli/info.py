"""Show what apply_reduction would do to a model: tokens per block, FLOPs and the speed-up they promise.

With --input also what becomes of the tokens of one image or clip.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from mtrkit.api import reduction_disabled, reduction_info, trace_reduction
from mtrkit.cli.console import print_table, say
from mtrkit.cli.inputs import add_input, read_input
from mtrkit.cli.loading import count_parameters, load_model, reduce_model
from mtrkit.cli.options import add_model, add_reduction
from mtrkit.patch import ReductionInfo, TraceStage

EPILOG = """examples:
  mtrkit info vim_tiny_patch16_224
  mtrkit info vim_small_patch16_224 --ratio 0.4 --layers 4 8 12 16
  mtrkit info vim_tiny_patch16_224 --input-size 384 --option similarity=l2
  mtrkit info videomamba_tiny_patch16_224_f8 --checkpoint FILE --method rmeeto --layers even --r 88 --input clip.mp4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and one reduction."""
    add_model(parser, checkpoint=None)
    add_reduction(parser, [0.3], many=False, many_methods=False)
    add_input(parser, "what becomes of its tokens")


def run(args: argparse.Namespace) -> int:
    """Patch the model, and describe it."""
    model = load_model(args)
    reduce_model(model, args.method, args)
    one, every = reduction_info(model), reduction_info(model, directions="all")
    assert one is not None and every is not None
    say(
        f"{args.model}, {count_parameters(model)}",
        *str(one).split("\n"),
    )
    print_table(("block", "tokens", "GFLOPs", "then"), _block_rows(one), title="blocks", text=(0,))
    counted = [("one scan direction, as papers count", one), ("all that run", every)]
    rows = [
        (
            name,
            f"{info.flops_dense.gflops:.4f}",
            f"{info.flops_reduced.gflops:.4f}",
            f"{info.flops_reduced.ratio_to(info.flops_dense):.3f}",
            f"×{info.promised_speedup:.3f}",
        )
        for name, info in counted
    ]
    print_table(("GFLOPs counted over", "dense", "reduced", "ratio reached", "promised speed-up"), rows)
    if args.input is not None:
        _tell_input(args, model)
    return 0


def _tell_input(args: argparse.Namespace, model: nn.Module) -> None:
    """Run the model on one file, and say where its tokens went and whether that changes the answer."""
    x = read_input(args.input, args, model)[1][None]
    with torch.inference_mode():
        with reduction_disabled(model):
            dense = int(model(x).argmax())
        with trace_reduction(model) as trace:
            reduced = int(model(x).argmax())
    columns = ("after block", "tokens", "single", "merged groups", "largest", "dropped")
    print_table(columns, [_stage_row(stage) for stage in trace.stages], title=Path(args.input).name)
    say(f"predicted class {dense} dense, {reduced} reduced")


def _stage_row(stage: TraceStage) -> list[int]:
    """How many of the first tokens share a token now, and how many have none."""
    slot = stage.slot[0]
    sizes = torch.bincount(slot[slot >= 0])
    single, dropped = int((sizes == 1).sum()), int((slot < 0).sum())
    return [stage.layer, len(sizes), single, len(sizes) - single, int(sizes.max()), dropped]


def _block_rows(info: ReductionInfo) -> list[tuple[str, int, str, str]]:
    flops = info.flops_reduced
    rows = []
    for index, (tokens, block, cost) in enumerate(zip(flops.tokens, flops.blocks, flops.reductions, strict=True)):
        left = info.tokens[index]
        then = f"{tokens} → {left} tokens, for {cost / 1e9:.4f} GFLOPs" if left < tokens else ""
        rows.append((str(index + 1), tokens, f"{block / 1e9:.4f}", then))
    return rows
