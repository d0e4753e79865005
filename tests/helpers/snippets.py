"""The code in README and docs: taken out of the pages, and the Python of it run.

    python -m tests.helpers.snippets docs/export.md         # run one page, or without a name all of them

The Python snippets of a page share their names, in order, in an empty folder. Three rules make most of them run as they
are printed:

- `model` is a bundled pretrained model and `images` are 20 bundled images for it, unless the page makes its own;
- a checkpoint that `create_model("NAME", "FILE")` names is there, with random weights of that model;
- what needs more than that stands under `<!-- not run: REASON -->`.
"""

import ast
import io
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^(?:<!-- not run: (?P<why>.+?) -->\n\n?)?```(?P<kind>\w*)\n(?P<code>.*?)^```", re.M | re.S)
_COMMAND = re.compile(r"(?:(?:torchrun|accelerate launch) .*-m )?(mtrkit \w.*)|(python (?:benchmarks|examples)/.*)")
_SPAN = re.compile(r"`(mtrkit \w[^`]*|python (?:benchmarks|examples)/[^`]*)`")


class Snippet(NamedTuple):
    """A fenced block of Python."""

    page: str
    line: int  # of the first line of code, counted from 1
    code: str
    why_not: str | None  # why it is not run


def pages() -> list[str]:
    """Every page that users read, as paths from the root of the repository."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "mtrkit/data/README.md")]
    found += sorted((ROOT / "docs").rglob("*.md"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def snippets(page: str) -> list[Snippet]:
    """The Python of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Snippet(page, text.count("\n", 0, found.start("code")) + 1, found["code"], found["why"])
        for found in _FENCE.finditer(text)
        if found["kind"] == "python"
    ]


def commands(page: str) -> list[str]:
    """The command lines of a page that begin with `mtrkit`, or run it in several processes, or a script of ours.

    Out of indented and fenced blocks, and out of `inline code`. Comments are cut off, continued lines joined. Lines
    with an ellipsis are abbreviations.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = _FENCE.sub("", text)
    shell = "\n".join(found["code"] for found in _FENCE.finditer(text) if found["kind"] in ("", "bash", "sh"))
    lines = shell.replace("\\\n", " ").splitlines()
    lines += [line[4:] for line in prose.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    spans = [" ".join(span.split()) for span in _SPAN.findall(prose)]
    return [command for line in [*lines, *spans] if (command := _command(line))]


def _command(line: str) -> str | None:
    line = re.sub(r"\s#\s.*", "", line).rpartition("&&")[2].strip()
    found = _COMMAND.match(line)
    return (found[1] or found[2]) if found and not re.search(r"\.\.\.|…|--help", line) else None


def stand_ins() -> dict[str, object]:
    """What a page may use without making it."""
    import torch

    import mtrkit
    from mtrkit.measure import batches, open_images, preprocess_for

    model = mtrkit.create_model("vim_micro_patch4_32", "pretrained").eval()  # the one of fewest tokens
    images = next(batches(open_images("bundled").spread(20), preprocess_for(model.pretrained_cfg), 20))
    return {"__name__": "__main__", "torch": torch, "mtrkit": mtrkit, "model": model, "images": images}


def missing_checkpoints(code: str) -> Iterator[tuple[str, str]]:
    """(name of the model, file) of every `create_model` whose file is not there."""
    for call in ast.walk(ast.parse(code)):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("create_model"):
            given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "checkpoint")]
            names = [value.value for value in given if isinstance(value, ast.Constant)]
            if len(names) > 1 and str(names[1]).endswith((".pth", ".safetensors")) and not Path(names[1]).exists():
                yield names[0], names[1]


def run_page(page: str) -> None:
    """Run what is to be run of a page; what goes wrong is raised with the page's own line numbers."""
    import torch

    import mtrkit

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        names = stand_ins()
        for snippet in snippets(page):
            if snippet.why_not is not None:
                continue
            for model, file in missing_checkpoints(snippet.code):
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                torch.save(mtrkit.create_model(model).state_dict(), file)
            exec(compile("\n" * (snippet.line - 1) + snippet.code, page, "exec"), names)
        os.chdir(ROOT)


def _report(page: str, send: "multiprocessing.connection.Connection") -> None:
    try:
        run_page(page)
        send.send("")
    except BaseException:
        send.send(traceback.format_exc())


def main(names: list[str]) -> int:
    """Run pages, each in a process of its own, forked from this one, which has imported what they need."""
    import torch

    import mtrkit.calibration
    import mtrkit.models  # noqa: F401

    torch.set_num_threads(1)
    forked = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    wrong = 0
    for page in names or [page for page in pages() if any(part.why_not is None for part in snippets(page))]:
        receive, send = forked.Pipe(duplex=False)
        process = forked.Process(target=_report, args=(page, send))
        process.start()
        send.close()
        try:
            error = receive.recv()
        except EOFError:
            error = "the process ended\n"
        process.join()
        wrong += bool(error)
        sys.stdout.write(f"{page}: {error or 'ran'}\n")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
