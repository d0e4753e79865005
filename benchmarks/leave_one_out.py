"""How well each indicator ranks tokens by what the model loses without them.

    python benchmarks/leave_one_out.py --data cifar10/train --out leave_one_out.json --table leave_one_out.md

After one block, every patch token of an image is dropped alone, and the Kullback-Leibler divergence between the model's
answers with and without it is what the token is worth. An indicator is as good as its rank correlation (Spearman) with
that, over the tokens of an image: 1 if it orders them by their worth, 0 if it knows nothing, below 0 if
a method that trusts it keeps the wrong ones. Means over the images with their 95 % intervals.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mtrkit
from mtrkit.measure import describe_machine, open_images, preprocess_for
from mtrkit.measure.candidates import ModelChoice
from mtrkit.measure.report import as_markdown
from mtrkit.measure.weights import twin
from mtrkit.methods import MethodConfig, register_method
from mtrkit.ops import in_sequence, token_map, without
from mtrkit.types import BlockState, Decision

LAYERS = (3, 6, 9)  # where the methods reduce by default
INDICATORS = {
    "Δ (MTR)": {"indicator": "delta"},
    "B": {"indicator": "B"},
    "C": {"indicator": "C"},
    "mixer output X": {"indicator": "X"},
    "similarity to [CLS]": {"indicator": "cls"},
    "y, clipped (HSA)": {"indicator": "y", "channels": "clipped"},
}
UNLIKE = "unlike any other token"


@register_method("leave_one_out", max_share=1.0)
def leave_one_out(state: BlockState, num_kept: int, config: MethodConfig) -> Decision:
    """Drop another token from each of B = L - S copies of one image; score tokens by how unlike the others they are."""
    sequence = in_sequence(state.hidden)
    gone = without(sequence, state.special).diagonal()[:, None]
    units = F.normalize(state.hidden[0], dim=-1)
    nearest = (units @ units.T).fill_diagonal_(-1).amax(dim=-1)
    return Decision(token_map(state.num_tokens, without(sequence, gone)), -nearest.expand_as(sequence))


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, of two (n,) tensors without ties."""
    return torch.corrcoef(torch.stack([x.argsort().argsort().double() for x in (first, second)]))[0, 1].item()


def traced(model: nn.Module, images: Tensor) -> tuple[Tensor, mtrkit.Trace]:
    """Logarithms of the answers (B, classes), and what the one reduction did."""
    with mtrkit.trace_reduction(model) as trace:
        return model(images).log_softmax(dim=-1), trace


def copy_before(block: nn.Module, count: int) -> None:
    """Let a block see what it is given (1, L, D) so many times: up to there the copies of an image are the same."""
    block.register_forward_pre_hook(lambda _, given: tuple(x.expand(count, -1, -1).contiguous() for x in given))


@torch.inference_mode()
def correlations(model: nn.Module, layer: int, images: list[Tensor]) -> dict[str, list[float]]:
    """Per indicator one rank correlation per image (C, H, W)."""

    def reduced(method: str, **options: str) -> nn.Module:
        return mtrkit.apply_reduction(twin(model), method, layers=[layer], r=1, **options)

    scorers = {name: reduced("mtr", **options) for name, options in INDICATORS.items()}
    dropper, found = reduced("leave_one_out"), {name: [] for name in (*INDICATORS, UNLIKE)}
    copy_before(dropper.layers[layer - 1], model.patch_embed.num_patches)
    for image in images:
        before = model(image[None]).log_softmax(dim=-1)
        after, trace = traced(dropper, image[None])
        gone = (trace.slot < 0).nonzero()[:, 1]
        worth = F.kl_div(after, before.expand_as(after), reduction="none", log_target=True).sum(dim=1)
        scores = {name: traced(scorer, image[None])[1].stages[0].score[0] for name, scorer in scorers.items()}
        for name, score in (scores | {UNLIKE: trace.stages[0].score[0]}).items():
            found[name].append(rank_correlation(score[gone], worth))
    return found


def main(arguments: list[str]) -> int:
    """Measure, print, and write rows and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=ModelChoice.parse, default="vim_micro_patch4_stride2_32", help="NAME[=CHECKPOINT], a Vim"
    )
    parser.add_argument("--data", required=True, help="a folder per class, or 'bundled'")
    parser.add_argument("--limit", type=int, default=25, help="images (default: 25)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the rows")
    parser.add_argument("--table", type=Path, required=True, help="Markdown file")
    args = parser.parse_args(arguments)
    name, checkpoint = args.model
    model = mtrkit.create_model(name, checkpoint).eval()
    chosen, preprocess = open_images(args.data).spread(args.limit), preprocess_for(model.pretrained_cfg)
    images = [preprocess(opener()) for opener in chosen.openers]
    rows, cells = [], {indicator: [indicator] for indicator in (*INDICATORS, UNLIKE)}
    command = shlex.join(["python", "benchmarks/leave_one_out.py", *arguments])
    for layer in LAYERS:
        for indicator, values in correlations(model, layer, images).items():
            mean, half = statistics.mean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5
            summary = {"model": name, "layer": layer, "indicator": indicator, "mean": mean, "half_interval": half}
            rows.append(summary | {"values": values, "data": chosen.name, "n": len(values), "command": command})
            cells[indicator].append(f"{mean:+.2f} ± {half:.2f}")
    args.out.write_text(json.dumps([row | describe_machine(torch.device("cpu")) for row in rows], indent=1) + "\n")
    table = as_markdown(["indicator", *(f"after block {layer}" for layer in LAYERS)], list(cells.values()))
    title = "## Rank correlation of each indicator with what the model loses when a token is dropped"
    args.table.write_text(f"{title}\n\n{table}\nMeans over {len(images)} images of {name}.\n\n    {command}\n")
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
