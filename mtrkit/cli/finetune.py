"""Re-train a model with its reduction in place, as R-MeeTo does, and write its weights.

The same command goes on where an interrupted run stopped. Several processes or machines train together if
`accelerate launch` or `torchrun` starts the command: `accelerate launch -m mtrkit finetune ...`. Of a video, each draw
takes other frames, one of each of as many equal parts as a clip has frames, and augments all of them alike; --segments
and --crops are for the held-out videos.
"""

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mtrkit.api import reduction_info
from mtrkit.cli.console import Output
from mtrkit.cli.inputs import add_views, preprocess_from
from mtrkit.cli.loading import load_model, reduce_if_asked
from mtrkit.cli.options import add_data, add_model, add_reduction, add_threads, options_of
from mtrkit.cli.parsing import positive, whole
from mtrkit.errors import OptionError
from mtrkit.measure import open_data
from mtrkit.methods.dyvm import DYVM

if TYPE_CHECKING:
    from mtrkit.finetune import Recipe

EPILOG = """examples:
  mtrkit finetune vim_tiny_patch16_224 --checkpoint vim_t.pth --data imagenet/train --method rmeeto --ratio 0.14 \\
    --out runs/r14
  mtrkit finetune vim_tiny_patch16_224 --checkpoint vim_t.pth --data imagenet/train --method runs --ratio 0.4 \\
    --out runs/r40 --epochs 1 --batch-size 256 --accumulate 4 --distill 0.5 --ema 0.996 --held-out 2000
  mtrkit finetune vim_tiny_patch16_224 --checkpoint vim_t.pth --data imagenet/train --out runs/dyvm \\
    --method dyvm:keep=0.9,block_target=0.8 --batch-size 512 --lr 3e-5
  mtrkit finetune vim_tiny_patch16_224 --checkpoint runs/dyvm/model.safetensors --data imagenet/train --out runs/on \\
    --method dyvm:checkpoint=runs/dyvm/dyvm.safetensors
  mtrkit finetune videomamba_tiny_patch16_224_f8 --checkpoint FILE --data k400/train.csv --method rmeeto:layers=even \\
    --r 88 --out runs/k400 --epochs 30 --batch-size 64 --warmup-epochs 5 --weight-decay 0.1 --drop-path 0.1
  mtrkit finetune vim_tiny_patch16_224 --checkpoint vim_t.pth --data imagenet/train --out runs/r30 --dry-run --json
"""

HELP = {
    "epochs": "passes over the images; may be a fraction",
    "batch_size": "images per step, all processes together",
    "accumulate": "passes that share a step",
    "opt": "timm's name of an optimiser",
    "lr": "learning rate at the beginning",
    "min_lr": "at the end",
    "warmup_epochs": "over which the rate rises first",
    "decay_epochs": "last ones, over which the rate falls linearly; default: a cosine over all",
    "weight_decay": "of matrices",
    "clip_norm": "longest gradient",
    "ema": "decay per step of averaged weights, which then are the result",
    "ema_warmup": "begin the average with the latest weights only",
    "distill": "weight of the divergence from what the dense model answers",
    "teacher": "that dense model: 'itself', the weights in training; 'before', a copy of the first ones; or a file",
    "fraction": "share of the images that is used",
    "label_smoothing": "share of the target that goes to all classes alike",
    "mixup": "α of Mixup, 0 for none",
    "cutmix": "α of CutMix, 0 for none",
    "auto_augment": "timm's name of a policy, or 'none'",
    "color_jitter": "strength; used without a policy only",
    "erase": "probability of random erasing",
    "crop_scale": "least share of an image in a random crop",
    "repeats": "augmentations of each image that is drawn",
    "precision": "float32 ('no'), or autocast to 'bf16' or 'fp16'",
    "seed": "of everything that is drawn",
}
_TYPES: dict[str, Any] = {"auto_augment": str, "opt": str, "precision": str, "teacher": str}
_SWITCHES = ("ema_warmup",)
_COUNTS = ("batch_size", "accumulate", "repeats", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, its reduction, the images, the recipe, and where to write."""
    add_model(parser, "pretrained")
    add_reduction(parser, [0.3], many=False, many_methods=False, default="rmeeto")
    add_data(parser, "training images: ")
    parser.add_argument("--held-out", type=whole, default=0, help="images of these to measure on instead (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the run's folder")
    parser.add_argument("--drop-path", type=float, default=0.0, help="rate of stochastic depth (default: 0)")
    parser.add_argument("--checkpointing", action="store_true", help="save memory by computing activations twice")
    parser.add_argument("--save-every", type=positive, default=100, help="steps between checkpoints (default: 100)")
    parser.add_argument("--workers", type=whole, default=2, help="processes that read images (default: 2)")
    parser.add_argument("--skip-unreadable", action="store_true", help="pass over images that cannot be read")
    parser.add_argument("--tensorboard", action="store_true", help="write for TensorBoard too")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: what accelerate chooses")
    add_threads(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what the run would be and take, and stop")
    add_views(parser)
    group = parser.add_argument_group("recipe", "the defaults are R-MeeTo's, or DyVM's for dyvm")
    for name, text in HELP.items():
        flag = "--" + name.replace("_", "-")
        if name in _SWITCHES:
            group.add_argument(flag, action="store_true", default=None, help=text)
        else:
            kind = whole if name in _COUNTS else _TYPES.get(name, float)
            group.add_argument(flag, type=kind, help=text, metavar="X")


def run(args: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    out = Output(args.json)
    accelerator, recipe, finetune = _prepare(args)
    model, objective = _to_train(args, recipe)
    images = open_data(args.data, model)
    held_out = images.spread(args.held_out) if args.held_out else None
    used = images if held_out is None else images.without(held_out)
    if args.dry_run:
        plan = finetune.estimate(model, used, recipe, objective=objective, accelerator=accelerator)
        if accelerator.is_main_process:
            out.say(*str(plan).splitlines())
            out.document({"plan": plan})
        return 0
    result = finetune.retrain(
        model,
        used,
        args.out,
        recipe,
        held_out=held_out,
        preprocess=preprocess_from(args, model),
        objective=objective,
        save_every=args.save_every,
        workers=args.workers,
        skip_unreadable=args.skip_unreadable,
        tensorboard=args.tensorboard,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        info = reduction_info(model)
        out.say("dense" if info is None else str(info).splitlines()[0], *str(result).splitlines())
        out.document({"result": result})
    return 0


def _to_train(args: argparse.Namespace, recipe: "Recipe") -> tuple[Any, Any]:
    """The model as it is trained, and by what."""
    from mtrkit.dyvm import DyVMObjective, DyVMTraining
    from mtrkit.finetune import CrossEntropy
    from mtrkit.finetune.chance import seeded

    model = load_model(args)
    if args.checkpointing:
        cast(Any, model).set_grad_checkpointing(True)
    if _trains_choices(args):
        options = options_of(args, args.method)
        if recipe.distill:
            raise OptionError(f"{DYVM.name}'s loss has a teacher of its own; leave out --distill and --teacher")
        if args.ratio is not None or args.r is not None:
            raise OptionError(f"{DYVM.name} says how much by keep and block_target; leave out --ratio and --r")
        teacher = copy.deepcopy(model)
        try:
            with seeded(recipe.seed):  # the same in every process, and when the run goes on
                return DyVMTraining(model, **options), DyVMObjective(teacher)
        except TypeError as error:
            expected = f"{DYVM.name} takes keep, block_target, layers and noise, or checkpoint"
            raise OptionError(f"{expected} ({error})") from error
    reduce_if_asked(model, args.method, args)
    return model, CrossEntropy.for_model(model, recipe)


def _trains_choices(args: argparse.Namespace) -> bool:
    """Whether DyVM's predictors and selectors are trained; with a checkpoint they choose as they did."""
    return args.method.name == DYVM.name and "checkpoint" not in args.method.options


def _prepare(args: argparse.Namespace) -> tuple[Any, "Recipe", Any]:
    """Accelerator, recipe and the part of the package that needs the extra."""
    try:
        from mtrkit import finetune
        from mtrkit.finetune.drive import accelerator_for
    except ImportError as error:
        raise OptionError(
            f"{error.name} is missing; install what training needs: pip install 'mtrkit[train]'"
        ) from error
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device cuda cannot be used here (torch sees no GPU); see `mtrkit doctor`")
    given = {name: getattr(args, name) for name in HELP if getattr(args, name) is not None}
    if given.get("auto_augment") == "none":
        given["auto_augment"] = None
    published = finetune.Recipe.of_dyvm() if _trains_choices(args) else finetune.Recipe()
    recipe = dataclasses.replace(published, **given)
    return accelerator_for(recipe, cpu=args.device == "cpu"), recipe, finetune
