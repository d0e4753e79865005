"""Show what apply_reduction would do to a model: tokens per block, FLOPs and the speed-up they promise."""

import argparse

from mtrkit.api import reduction_info
from mtrkit.cli.console import print_table, say
from mtrkit.cli.loading import count_parameters, load_model, reduce_model
from mtrkit.cli.options import add_model, add_reduction
from mtrkit.patch import ReductionInfo

EPILOG = """examples:
  mtrkit info vim_tiny_patch16_224
  mtrkit info vim_small_patch16_224 --ratio 0.4 --layers 4 8 12 16
  mtrkit info vim_tiny_patch16_224 --input-size 384 --option similarity=l2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and one reduction."""
    add_model(parser, checkpoint=None)
    add_reduction(parser, [0.3], many=False, many_methods=False)


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
    return 0


def _block_rows(info: ReductionInfo) -> list[tuple[str, int, str, str]]:
    flops = info.flops_reduced
    rows = []
    for index, (tokens, block, cost) in enumerate(zip(flops.tokens, flops.blocks, flops.reductions, strict=True)):
        left = info.tokens[index]
        then = f"{tokens} → {left} tokens, for {cost / 1e9:.4f} GFLOPs" if left < tokens else ""
        rows.append((str(index + 1), tokens, f"{block / 1e9:.4f}", then))
    return rows
