"""Draw which tokens of an image are kept, receive others, are merged or dropped at each reduction.

One row for each image and reduction: what the model saw, what happens after each reducing block, and the tokens at the
end. Of a clip there is a row for each frame; a .gif or .webp shows its frames one after the other. With --page it is a
page in one file that any browser opens, without a server: a slider over the ratios, every token's patches under the
pointer, importance, the answers before and after, and what was measured.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mtrkit.api import trace_reduction
from mtrkit.cli.console import say
from mtrkit.cli.inputs import Seen, add_preprocessing, name_of, read_input
from mtrkit.cli.loading import load_model
from mtrkit.cli.options import add_model, add_reduction, whole
from mtrkit.errors import InputError, OptionError, ScheduleError
from mtrkit.measure import Precision, Timing, describe_machine, forward_pass, interleave, summarise
from mtrkit.measure.candidates import DENSE, Candidate, candidates
from mtrkit.measure.labels import class_labels
from mtrkit.vis import Answer, Cost, Pass, Shown, animate_reduction, draw_reduction, patch_grid, tokens_page

EPILOG = """examples:
  mtrkit draw vim_micro_patch4_stride2_32 bundled:13 bundled:310 --method runs --out tokens.png
  mtrkit draw vim_micro_patch4_stride2_32 bundled:13 --method mtr evit --ratio 0.2 0.4 --map importance
  mtrkit draw vim_micro_patch4_stride2_32 bundled:13 bundled:310 --method runs mtr --page tokens.html
  mtrkit draw vim_tiny_patch16_224 --checkpoint vim_t_midclstok_76p1acc.pth cat.jpg dog.jpg --page tokens.html
  mtrkit draw videomamba_tiny_patch16_224_f8 --checkpoint FILE clip.mp4 --method rmeeto --r 88 --out clip.webp
"""

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_ANIMATIONS = (".gif", ".webp")
_RATIO = 0.3
_SLIDER = (0.1, 0.2, 0.3, 0.4, 0.5)
_TOP = 5
_FULL = Precision("float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images, the reductions, and what to write."""
    add_model(parser, checkpoint="pretrained")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, or bundled:7 for one that comes with mtrkit; video files for a model of clips",
    )
    add_reduction(parser, [_RATIO])
    parser.set_defaults(ratio=None)
    parser.add_argument(
        "--map",
        choices=["tokens", "importance"],
        default="tokens",
        help="what the picture shows: what happens to the tokens, or how important the method finds them",
    )
    add_preprocessing(parser)
    parser.add_argument(
        "--out",
        type=Path,
        help=".png, .jpg or .webp; of a clip .gif and .webp are animations (default: mtrkit_draw.png, or none beside --page)",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help=f"an .html file with all of it; its slider goes over --ratio (default: {' '.join(map(str, _SLIDER))})",
    )
    parser.add_argument("--rounds", type=whole, default=5, help="rounds of timing for --page, 0 for none (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Read the images, run the models on them, and write a picture, a page or both."""
    out = args.out or (None if args.page else Path("mtrkit_draw.png"))
    _check_targets(out, args.page)
    model = load_model(args)
    seen = [read_input(path, args, model) for path in args.images]
    batch = torch.stack([each.tensor for each in seen])
    dense, *reduced = _candidates(args, model)
    labels = class_labels(args.model, args.checkpoint, int(dense.model(batch[:1]).shape[-1]))
    shown = _shown(args.images, seen, _top(dense.model, batch, labels))
    timings = _timings([dense, *reduced], batch, args.rounds if args.page else 0)
    passes = [_traced(each, batch, labels, timings.get(each.name)) for each in reduced]
    if out:
        _save_picture(args, out, shown, passes, model)
        say(*_sentences(shown, passes), f"picture: {out}")
    if args.page:
        cost = _cost(dense, timings.get(DENSE))
        page = tokens_page(shown, passes, patch_grid(model), cost, _title(args), _about(args, model, len(batch)))
        args.page.write_text(page, encoding="utf-8")
        say(f"page: {args.page} ({args.page.stat().st_size / 1e6:.2f} MB); open it in a browser")
    return 0


def _check_targets(out: Path | None, page: Path | None) -> None:
    if out and out.suffix.lower() not in (*_PICTURES, *_ANIMATIONS):
        raise InputError(f"{out}: pictures are written as .png, .jpg, .webp or .gif; give one of these suffixes")
    if page and page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{page}: pages are written as .html; give this suffix")
    for path in filter(None, (out, page)):
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path.parent} is not a folder; make it first, or write elsewhere")


def _candidates(args: argparse.Namespace, model: nn.Module) -> list[Candidate]:
    """The dense model and its reductions; of the slider's own ratios those that every method reaches."""
    ratios = args.ratio
    if ratios is None:
        ratios = [] if args.r else [_RATIO] if args.page is None else _reachable(args, model)
    found = candidates(model, args.method, ratios, args.layers, dict(args.option), args.r)
    if len(found) == 1:
        raise OptionError("--ratio 0 reduces nothing, so there is nothing to draw; give a ratio above 0")
    return found


def _reachable(args: argparse.Namespace, model: nn.Module) -> list[float]:
    found = []
    for ratio in _SLIDER:
        try:
            candidates(model, args.method, [ratio], args.layers, dict(args.option))
        except ScheduleError:
            say(f"ratio {ratio:g} is out of reach for {', '.join(each.text for each in args.method)}; left out")
        else:
            found.append(ratio)
    return found


def _top(model: nn.Module, batch: Tensor, labels: Sequence[str] | None) -> list[list[Answer]]:
    """For each input the likeliest classes, by name if that is known."""
    with torch.inference_mode():
        return _answers(model(batch), labels)


def _answers(logits: Tensor, labels: Sequence[str] | None) -> list[list[Answer]]:
    probabilities, numbers = logits.float().softmax(dim=-1).topk(min(_TOP, logits.shape[-1]))
    return [
        [
            Answer(f"class {number}" if labels is None else labels[number], share)
            for number, share in zip(*both, strict=True)
        ]
        for both in zip(numbers.tolist(), probabilities.tolist(), strict=True)
    ]


def _shown(paths: Sequence[str], seen: Sequence[Seen], tops: Sequence[Sequence[Answer]]) -> list[Shown]:
    return [
        Shown(each.frames, name_of(path), top, each.times) for path, each, top in zip(paths, seen, tops, strict=True)
    ]


def _traced(candidate: Candidate, batch: Tensor, labels: Sequence[str] | None, timing: Timing | None) -> Pass:
    with torch.inference_mode(), trace_reduction(candidate.model) as trace:
        tops = _answers(candidate.model(batch), labels)
    amount = candidate.amount if candidate.r is not None else f"ratio {candidate.amount}"
    return Pass(candidate.method, amount, trace, tops, _cost(candidate, timing))


def _cost(candidate: Candidate, timing: Timing | None) -> Cost:
    return (
        Cost(candidate.gflops) if timing is None else Cost(candidate.gflops, timing.images_per_second, timing.speedup)
    )


def _timings(found: Sequence[Candidate], batch: Tensor, rounds: int) -> dict[str, Timing]:
    """Candidate → its speed on these inputs, all timed in turns; nothing without rounds."""
    if not rounds:
        return {}
    passes = {each.name: forward_pass(each.model, batch, _FULL) for each in found}
    taken = list(interleave(passes, batch.device, rounds=rounds, seconds=0.1))
    return {each.name: summarise(taken, each.name, DENSE, len(batch)) for each in found}


def _save_picture(
    args: argparse.Namespace, out: Path, shown: Sequence[Shown], passes: Sequence[Pass], model: nn.Module
) -> None:
    drawn = shown, passes, patch_grid(model), args.map, args.model
    clips = len(shown[0].frames) > 1
    if clips and out.suffix.lower() in _ANIMATIONS:
        first, *others = animate_reduction(*drawn)
        first.save(out, save_all=True, append_images=others, duration=_durations(shown), loop=0)
    elif out.suffix.lower() in _PICTURES:
        draw_reduction(*drawn).save(out)
    else:
        raise InputError(f"{out}: a .gif shows the frames of a clip, and {args.model} takes images; write a .png")


def _durations(shown: Sequence[Shown]) -> int:
    """Milliseconds for each frame of an animation: half of its own speed, but fast enough to be seen as one."""
    times = shown[0].times
    gap = 0.25 if not times or len(times) < 2 else (times[-1] - times[0]) / (len(times) - 1)
    return round(1000 * min(1.0, max(0.2, 2 * gap)))


def _sentences(shown: Sequence[Shown], passes: Sequence[Pass]) -> list[str]:
    return [
        f"{each.name}, dense: {each.top[0]}; "
        + "; ".join(f"{one.name}: {one.tops[i][0]}" for one in passes if one.tops)
        for i, each in enumerate(shown)
    ]


def _title(args: argparse.Namespace) -> str:
    methods = ", ".join(dict.fromkeys(choice.text for choice in args.method))
    return f"Where the tokens go: {args.model}, {methods}"


def _about(args: argparse.Namespace, model: nn.Module, batch: int) -> dict[str, str]:
    """What the numbers of the page are of."""
    machine = describe_machine(next(model.parameters()).device)
    timed = f"medians of {args.rounds} rounds in turns, {batch} at a time, float32" if args.rounds else ""
    return {
        "Model": f"{args.model}, weights: {args.checkpoint or 'random, so the answers mean nothing'}",
        "Speed": timed,
        "Machine": f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, scan {machine['scan']}",
        "FLOPs": "of one input, one scan direction counted, as papers do; the cost of reducing is included",
        "Made by": f"mtrkit {machine['mtrkit']}, {machine['time']}",
        "Command": args.command_line,
    }
