"""Draw which tokens of an image are kept, receive others, are merged or dropped at each reduction.

One row for each image and reduction: what the model saw, what happens after each reducing block, and the tokens at the
end. Of a clip there is a row for each frame; a .gif or .webp shows its frames one after the other. With --page it is a
page in one file that any browser opens, without a server: a slider over the ratios, every token's patches under the
pointer, importance, the answers before and after, and what was measured.
"""

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from mtrkit.cli.console import Output
from mtrkit.cli.files import (
    ANIMATIONS,
    PAGES,
    PICTURES,
    add_page,
    check_target,
    save_animation,
    save_page,
    save_picture,
)
from mtrkit.cli.inputs import add_preprocessing, read_input
from mtrkit.cli.loading import load_model
from mtrkit.cli.options import add_model, add_reduction
from mtrkit.cli.parsing import whole
from mtrkit.cli.predictions import RANDOM_NOTE
from mtrkit.cli.tracing import RATIO, SLIDER, Drawn, check_amounts, trace_all, wanted_candidates
from mtrkit.errors import InputError
from mtrkit.measure import describe_machine, takes_clips
from mtrkit.vis import Shown, animate_reduction, draw_reduction, patch_grid, tokens_page

EPILOG = """examples:
  mtrkit draw vim_micro_patch4_stride2_32 bundled:13 bundled:310 --method runs --out tokens.png
  mtrkit draw vim_micro_patch4_stride2_32 bundled:13 --method mtr evit --ratio 0.2 0.4 --map importance
  mtrkit draw vim_micro_patch4_stride2_32 bundled:13 bundled:310 --method runs mtr --page tokens.html
  mtrkit draw vim_tiny_patch16_224 --checkpoint vim_t_midclstok_76p1acc.pth cat.jpg dog.jpg --page tokens.html
  mtrkit draw videomamba_tiny_patch16_224_f8 --checkpoint FILE clip.mp4 --method rmeeto --layers even --out clip.webp
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images, the reductions, and what to write."""
    add_model(parser, "pretrained")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, or bundled:7 for one that comes with mtrkit; video files for a model of clips",
    )
    add_reduction(parser, [RATIO], thresholds=True)
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
        help=".png, .jpg or .webp; of a clip .gif and .webp are animations (default: mtrkit_draw.png, "
        "or none with --page)",
    )
    add_page(parser, f"all of it on a page, with a slider over --ratio (default there: {' '.join(map(str, SLIDER))})")
    parser.add_argument("--rounds", type=whole, default=5, help="rounds of timing for --page, 0 for none (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Read the images, run the models on them, and write a picture, a page or both."""
    out, picture = Output(args.json), args.out or (None if args.page else Path("mtrkit_draw.png"))
    _check(args, picture)
    model = load_model(args)
    if picture and not takes_clips(model) and picture.suffix.lower() not in PICTURES:
        raise InputError(
            f"{picture}: such a file shows the frames of a clip, and {args.model} takes images; write a .png"
        )
    found = wanted_candidates(args, model, out.say)
    drawn = trace_all(args, model, found, [read_input(path, args, model) for path in args.images])
    if picture:
        _save_picture(args, picture, drawn, model)
    if args.page:
        save_page(_page(args, drawn, model), args.page)
    _tell(args, out, drawn, picture)
    return 0


def _check(args: argparse.Namespace, picture: Path | None) -> None:
    """Find mistakes in what is asked for and written before anything is fetched."""
    if picture:
        check_target(picture, tuple(dict.fromkeys((*PICTURES, *ANIMATIONS))), "pictures")
    if args.page:
        check_target(args.page, PAGES, "pages")
    check_amounts(args)


def _save_picture(args: argparse.Namespace, path: Path, drawn: Drawn, model: nn.Module) -> None:
    shown = drawn.inputs, drawn.passes, patch_grid(model), args.map, args.model
    if len(drawn.inputs[0].frames) > 1 and path.suffix.lower() in ANIMATIONS:
        save_animation(animate_reduction(*shown), path, _duration(drawn.inputs[0]))
    else:
        save_picture(draw_reduction(*shown), path)


def _duration(shown: Shown) -> int:
    """Milliseconds for each frame of an animation: twice the time between frames, within what is still seen as one."""
    times = shown.times or (0.0, 0.25)
    gap = (times[-1] - times[0]) / max(1, len(times) - 1)
    return round(1000 * min(1.0, max(0.2, 2 * gap)))


def _tell(args: argparse.Namespace, out: Output, drawn: Drawn, picture: Path | None) -> None:
    """What was answered, a line for each reduction and a column for each input; and what was written."""
    lines = [("dense", *(str(each.top[0]) for each in drawn.inputs))]
    lines += [(one.name, *(str(top[0]) for top in one.tops or ())) for one in drawn.passes]
    columns = ("reduction", *(each.name for each in drawn.inputs))
    out.table(columns, lines, text=range(len(columns)))
    out.say(*([RANDOM_NOTE] if args.checkpoint is None else []))
    if picture:
        out.say(f"picture: {picture}")
    if args.page:
        out.say(f"page: {args.page} ({args.page.stat().st_size / 1e6:.2f} MB); open it in a browser")
    out.document({"model": args.model, "picture": picture, "page": args.page, "rows": _rows(args, drawn)})


def _rows(args: argparse.Namespace, drawn: Drawn) -> list[dict[str, Any]]:
    names = [("dense", ""), *((one.method, one.amount) for one in drawn.passes)]
    return [
        {"method": method, "amount": amount, "file": file, "prediction": prediction}
        for (method, amount), found in zip(names, drawn.predictions, strict=True)
        for file, prediction in zip(args.images, found, strict=True)
    ]


def _page(args: argparse.Namespace, drawn: Drawn, model: nn.Module) -> str:
    title = f"Where the tokens go: {args.model}, {', '.join(dict.fromkeys(one.method for one in drawn.passes))}"
    about = _about(args, model, len(drawn.inputs))
    note = f"{RANDOM_NOTE.capitalize()}." if args.checkpoint is None else ""
    return tokens_page(drawn.inputs, drawn.passes, patch_grid(model), drawn.dense, title, about, note)


def _about(args: argparse.Namespace, model: nn.Module, batch: int) -> dict[str, str]:
    """What the numbers of the page are of."""
    machine = describe_machine(next(model.parameters()).device)
    timed = f"medians of {args.rounds} rounds in turns, {batch} at a time, float32" if args.rounds else ""
    return {
        "Model": args.model,
        "Weights": args.checkpoint or "random",
        "FLOPs": "of one input, one scan direction counted, as papers do; the cost of reducing is included",
        "Speed": timed,
        "Machine": "{device}, {threads} threads, torch {torch}, scan {scan}".format(**machine),
        "Made by": "mtrkit {mtrkit}, {time}".format(**machine),
        "Command": args.command_line,
    }
