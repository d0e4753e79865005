"""Draw which tokens of an image are kept, receive others, are merged or dropped at each reduction.

One row for each image and reduction: what the model saw, what happens after each reducing block, and the tokens at the
end. Of a clip there is a row for each frame; a .gif or .webp shows its frames one after the other. With --page it is a
page in one file that any browser opens, without a server: a slider over the ratios, every token's patches under the
pointer, importance, the answers before and after, and what was measured.
"""

import argparse
from pathlib import Path

from torch import nn

from mtrkit.cli.console import print_table, say
from mtrkit.cli.inputs import add_preprocessing, read_input
from mtrkit.cli.loading import load_model
from mtrkit.cli.options import add_model, add_reduction, whole
from mtrkit.cli.pages import PAGES, add_page, check_target, save_page
from mtrkit.cli.tracing import RATIO, SLIDER, Drawn, check_amounts, trace_all
from mtrkit.errors import InputError
from mtrkit.measure import describe_machine, takes_clips
from mtrkit.vis import Shown, animate_reduction, draw_reduction, patch_grid, tokens_page

EPILOG = """examples:
  mtrkit draw vim_micro_patch4_stride2_32 bundled:13 bundled:310 --method runs --out tokens.png
  mtrkit draw vim_micro_patch4_stride2_32 bundled:13 --method mtr evit --ratio 0.2 0.4 --map importance
  mtrkit draw vim_micro_patch4_stride2_32 bundled:13 bundled:310 --method runs mtr --page tokens.html
  mtrkit draw vim_tiny_patch16_224 --checkpoint vim_t_midclstok_76p1acc.pth cat.jpg dog.jpg --page tokens.html
  mtrkit draw videomamba_tiny_patch16_224_f8 --checkpoint FILE clip.mp4 --method rmeeto --r 88 --out clip.webp
"""

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_ANIMATIONS = (".gif", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images, the reductions, and what to write."""
    add_model(parser, checkpoint="pretrained")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, or bundled:7 for one that comes with mtrkit; video files for a model of clips",
    )
    add_reduction(parser, [RATIO])
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
        help=".png, .jpg or .webp; of a clip .gif and .webp are animations (default: mtrkit_draw.png, unless --page is "
        "given)",
    )
    add_page(parser, f"all of it on a page, with a slider over --ratio (default there: {' '.join(map(str, SLIDER))})")
    parser.add_argument("--rounds", type=whole, default=5, help="rounds of timing for --page, 0 for none (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Read the images, run the models on them, and write a picture, a page or both."""
    out = args.out or (None if args.page else Path("mtrkit_draw.png"))
    check_amounts(args)
    model = load_model(args)
    _check_targets(args, out, takes_clips(model))
    seen = [read_input(path, args, model) for path in args.images]
    drawn = trace_all(args, model, seen, rounds=args.rounds if args.page else 0)
    _say_answers(drawn)
    if out:
        _save_picture(args, out, drawn, model)
        say(f"picture: {out}")
    if args.page:
        save_page(args.page, _page(args, drawn, model))
    return 0


def _check_targets(args: argparse.Namespace, out: Path | None, clips: bool) -> None:
    if out:
        check_target(out, (*_PICTURES, *_ANIMATIONS), "pictures")
        if not clips and out.suffix.lower() not in _PICTURES:
            raise InputError(
                f"{out}: such a file shows the frames of a clip, and {args.model} takes images; write a .png"
            )
    if args.page:
        check_target(args.page, PAGES, "pages")


def _save_picture(args: argparse.Namespace, out: Path, drawn: Drawn, model: nn.Module) -> None:
    shown = drawn.inputs, drawn.passes, patch_grid(model), args.map, args.model
    if len(drawn.inputs[0].frames) == 1 or out.suffix.lower() not in _ANIMATIONS:
        draw_reduction(*shown).save(out)
        return
    first, *others = animate_reduction(*shown)
    first.save(out, save_all=True, append_images=others, duration=_duration(drawn.inputs[0]), loop=0)


def _duration(shown: Shown) -> int:
    """Milliseconds for each frame of an animation: twice the time between frames, within what is still seen as one."""
    times = shown.times or (0.0, 0.25)
    gap = (times[-1] - times[0]) / max(1, len(times) - 1)
    return round(1000 * min(1.0, max(0.2, 2 * gap)))


def _say_answers(drawn: Drawn) -> None:
    """A line for each reduction, a column for each input."""
    lines = [("dense", *(str(each.top[0]) for each in drawn.inputs))]
    lines += [(one.name, *(str(top[0]) for top in one.tops or ())) for one in drawn.passes]
    columns = ("reduction", *(each.name for each in drawn.inputs))
    print_table(columns, lines, text=range(len(columns)))


def _page(args: argparse.Namespace, drawn: Drawn, model: nn.Module) -> str:
    title = f"Where the tokens go: {args.model}, {', '.join(dict.fromkeys(one.method for one in drawn.passes))}"
    about = _about(args, model, len(drawn.inputs))
    return tokens_page(drawn.inputs, drawn.passes, patch_grid(model), drawn.dense, title, about)


def _about(args: argparse.Namespace, model: nn.Module, batch: int) -> dict[str, str]:
    """What the numbers of the page are of."""
    machine = describe_machine(next(model.parameters()).device)
    timed = f"medians of {args.rounds} rounds in turns, {batch} at a time, float32" if args.rounds else ""
    return {
        "Model": f"{args.model}, weights: {args.checkpoint or 'random, so the answers mean nothing'}",
        "FLOPs": "of one input, one scan direction counted, as papers do; the cost of reducing is included",
        "Speed": timed,
        "Machine": "{device}, {threads} threads, torch {torch}, scan {scan}".format(**machine),
        "Made by": "mtrkit {mtrkit}, {time}".format(**machine),
        "Command": args.command_line,
    }
