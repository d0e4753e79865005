"""Show what apply_reduction would do to a model: tokens per block, FLOPs and the speed-up they promise.

With --input also what becomes of the tokens of one image or clip. With --threshold the numbers of tokens depend on the
input: without one they are the fewest that may be left.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtrkit.api import reduction_disabled, reduction_info, trace_reduction
from mtrkit.cli.console import Output
from mtrkit.cli.inputs import add_input, read_input
from mtrkit.cli.loading import count_parameters, load_model, reduce_model
from mtrkit.cli.options import add_model, add_reduction
from mtrkit.cli.predictions import RANDOM_NOTE, predict_one
from mtrkit.patch import ReductionInfo, TraceStage
from mtrkit.scan import slow_scan

EPILOG = """examples:
  mtrkit info vim_tiny_patch16_224
  mtrkit info vim_small_patch16_224 --ratio 0.4 --layers 4 8 12 16
  mtrkit info vim_tiny_patch16_224 --input-size 384 --option similarity=l2
  mtrkit info vim_micro_patch4_stride2_32 --checkpoint pretrained --method runs --threshold 0.9 --input photo.jpg
  mtrkit info videomamba_tiny_patch16_224_f8 --checkpoint FILE --method rmeeto --layers even --r 88 --input clip.mp4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and one reduction."""
    add_model(parser, None)
    add_reduction(parser, [0.3], many=False, many_methods=False, thresholds=True)
    add_input(parser, "what becomes of its tokens")


def run(args: argparse.Namespace) -> int:
    """Patch the model, and describe it."""
    out, model = Output(args.json), load_model(args)
    reduce_model(model, args.method, args)
    told = None if args.input is None else _run_input(args, model)
    one, every = reduction_info(model), reduction_info(model, directions="all")
    assert one is not None and every is not None
    slow = slow_scan("cpu")
    out.say(f"{args.model}, {count_parameters(model)}", *str(one).split("\n"), *([slow] if slow else []))
    out.table(("block", "tokens", "GFLOPs", "then"), _block_rows(one), title="blocks", text=(0, 3))
    counted = {"one scan direction, as papers count": one, "all that run": every}
    rows = [
        (
            name,
            f"{info.flops_dense.gflops:.4f}",
            f"{info.flops_reduced.gflops:.4f}",
            f"{info.flops_reduced.ratio_to(info.flops_dense):.3f}",
            f"×{info.promised_speedup:.3f}",
        )
        for name, info in counted.items()
    ]
    out.table(("GFLOPs counted over", "dense", "reduced", "ratio reached", "promised speed-up"), rows)
    if told is not None:
        _tell_input(out, args, told)
    out.document(_document(args, model, one, every, slow, told))
    return 0


def _document(
    args: argparse.Namespace, model: nn.Module, one: ReductionInfo, every: ReductionInfo, slow: str, told: Any
) -> dict[str, Any]:
    return {
        "model": args.model,
        "checkpoint": args.checkpoint or "random",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "method": one.method,
        "options": one.options,
        "adapter": one.adapter,
        "input_size": one.input_size,
        "ratio": one.ratio,
        "ratio_reached": one.ratio_reached,
        "thresholds": one.thresholds,
        "layers": one.layers,
        "num_tokens": one.num_tokens,
        "blocks": _blocks(one),
        "gflops_dense": one.flops_dense.gflops,
        "gflops_reduced": one.flops_reduced.gflops,
        "promised_speedup": one.promised_speedup,
        "gflops_dense_all_directions": every.flops_dense.gflops,
        "gflops_reduced_all_directions": every.flops_reduced.gflops,
        "scan": one.scan_backend,
        "advice": slow,
        "input": None if told is None else {"file": args.input} | told,
    }


def _blocks(info: ReductionInfo) -> list[dict[str, int]]:
    flops = info.flops_reduced
    columns = zip(flops.tokens, flops.blocks, flops.reductions, info.tokens, strict=True)
    return [
        {"block": number, "tokens": tokens, "flops": own, "reduction_flops": cost, "tokens_left": left}
        for number, (tokens, own, cost, left) in enumerate(columns, start=1)
    ]


def _run_input(args: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    """Run the model on one file: where its tokens went, and what it answers dense and reduced."""
    x = read_input(args.input, args, model)[1][None]
    with reduction_disabled(model):
        dense = predict_one(model, x, args)
    with torch.inference_mode(), trace_reduction(model) as trace:
        reduced = predict_one(model, x, args)
    return {"stages": [_stage(stage) for stage in trace.stages], "dense": dense, "reduced": reduced}


def _tell_input(out: Output, args: argparse.Namespace, told: dict[str, Any]) -> None:
    columns = ("after block", "tokens", "single", "merged groups", "largest", "dropped")
    out.table(columns, [[*stage.values()] for stage in told["stages"]], title=Path(args.input).name)
    out.say(f"predicted {told['dense']} dense, {told['reduced']} reduced")
    if args.checkpoint is None:
        out.say(f"{RANDOM_NOTE}; give --checkpoint")


def _stage(stage: TraceStage) -> dict[str, int]:
    """How many of the first tokens share a token now, and how many have none."""
    slot = stage.slot[0]
    sizes = torch.bincount(slot[slot >= 0])
    single, dropped = int((sizes == 1).sum()), int((slot < 0).sum())
    return {
        "block": stage.layer,
        "tokens": len(sizes),
        "single": single,
        "groups": len(sizes) - single,
        "largest": int(sizes.max()),
        "dropped": dropped,
    }


def _block_rows(info: ReductionInfo) -> list[tuple[str, int, str, str]]:
    rows = []
    for block in _blocks(info):
        tokens, left, cost = block["tokens"], block["tokens_left"], block["reduction_flops"]
        then = f"{tokens} → {left} tokens, for {cost / 1e9:.4f} GFLOPs" if left < tokens else ""
        rows.append((str(block["block"]), tokens, f"{block['flops'] / 1e9:.4f}", then))
    return rows
