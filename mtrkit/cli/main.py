"""Find the subcommand, run it, and turn what goes wrong into a message and an exit code."""

import argparse
import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

import mtrkit
from mtrkit.errors import (
    CheckpointWarning,
    FrameWarning,
    MtrkitError,
    PluginWarning,
    SizeWarning,
    SmallModelWarning,
)
from mtrkit.plugins import import_plugin

DONE, WRONG_USE, INTERRUPTED = 0, 2, 130

_OWN_WARNINGS = (CheckpointWarning, FrameWarning, PluginWarning, SizeWarning, SmallModelWarning)
_HINTS = (FrameWarning, SizeWarning, SmallModelWarning)  # one of each kind is enough

_said: set[str] = set()  # warnings of this process

COMMANDS = {  # name → (module, what it does)
    "demo": ("demo", "classify the bundled real images with the bundled model, dense and reduced"),
    "list": ("listing", "methods, model families, models and scan backends"),
    "info": ("info", "what apply_reduction would do to a model: tokens per block, FLOPs"),
    "eval": ("evaluate", "accuracy, FLOPs and speed of a model on images or videos"),
    "calibrate": ("calibrate", "fit a reduction to a model by its own answers on some hundred images"),
    "finetune": ("finetune", "re-train a model with its reduction in place, to get accuracy back"),
    "compare": ("compare", "methods side by side on the same images, with paired differences and plots"),
    "bench": ("bench", "measured speed-up beside the one the FLOPs promise"),
    "export": ("export", "write a model as a file that runs without mtrkit: ONNX, .pt2"),
    "draw": ("draw", "pictures of which tokens an image keeps, and what is merged"),
    "doctor": ("doctor", "check every scan backend on this machine, and say what to install"),
}

_EPILOG = """examples:
  mtrkit demo
  mtrkit info vim_tiny_patch16_224 --ratio 0.3
  mtrkit bench vim_tiny_patch16_224 --batch-size 16 --ratio 0.2 0.3 0.4
  mtrkit info --help

exit codes: 0 done, 1 doctor found a wrong result, 2 wrong use, 130 interrupted (what was measured is saved)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Arguments after the program's name. Default: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without × shows ? and goes on
    name = next((argument for argument in arguments if argument in COMMANDS), None)
    command = importlib.import_module(f"mtrkit.cli.{COMMANDS[name][0]}") if name else None
    args = _parser(name, command).parse_args(arguments)
    args.command_line = shlex.join(["mtrkit", *arguments])
    return _run(command, args) if command else DONE


def _parser(chosen: str | None, command: ModuleType | None) -> argparse.ArgumentParser:
    """Every command is listed, but only the chosen one says what it takes: it alone was imported."""
    parser = argparse.ArgumentParser(
        prog="mtrkit",
        description="Make pretrained Vision Mamba models faster by reducing their tokens, without training.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mtrkit {mtrkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    for name, (_, summary) in COMMANDS.items():
        described = command if name == chosen else None
        sub = commands.add_parser(
            name,
            help=summary,
            description=described.__doc__ if described else None,
            epilog=described.EPILOG if described else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if described:
            described.add_arguments(sub)
            _add_common(sub)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    """What every command takes."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead, with the fields of docs/command_line.md"
    )
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="import this module or .py file first, which registers methods, adapters or models",
    )


def _run(command: ModuleType, args: argparse.Namespace) -> int:
    try:
        with warnings.catch_warnings():
            for kind in _OWN_WARNINGS:
                warnings.simplefilter("always", kind)
            warnings.showwarning = lambda message, kind, *_: _say_warning(message, kind)
            for module in args.imports:
                import_plugin(module)
            code: int = command.run(args)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `mtrkit list | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (MtrkitError, OSError) as error:
        return _complain(f"error: {error}", WRONG_USE)


def _say_warning(message: Warning | str, kind: type[Warning]) -> None:
    """In one line and once per process, without the line of code that Python shows, which is not the user's."""
    text = " ".join(str(message).split())
    if issubclass(kind, SmallModelWarning):
        text = text.partition(";")[0]  # what it is, without why
    once = kind.__name__ if issubclass(kind, _HINTS) else text
    main_process = os.environ.get("RANK", "0") == "0"  # of those that run one command together
    if once not in _said and (main_process or not issubclass(kind, _OWN_WARNINGS)):
        _said.add(once)
        sys.stderr.write(f"mtrkit: warning: {text}\n")


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"mtrkit: {message}\n")
    return code
