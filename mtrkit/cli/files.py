"""Files that commands write: new ones, or those that mtrkit wrote before; never somebody else's."""

import argparse
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import mtrkit
from mtrkit.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
ANIMATIONS = (".gif", ".webp")
PAGES = (".html", ".htm")
PLOTS = (".png", ".svg")

_SOFTWARE = 0x0131  # a tag of EXIF
TABLE_MARK = "<!-- written by mtrkit -->"
_START = 1 << 16  # bytes, in which a file says who made it


def check_target(path: Path, suffixes: Sequence[str], what: str) -> None:
    """Raise :class:`InputError` unless a file can be written here without losing one that mtrkit has not made.

    Args:
        path: Where.
        suffixes: That it may have, in lower case.
        what: Such files are, in the plural.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: {what} are written as {', '.join(suffixes)}; give one of these suffixes")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} is not a folder; make it first, or write elsewhere")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file")
    if path.exists() and path.stat().st_size and not _is_ours(path):
        raise InputError(f"{path} is there already and was not written by mtrkit; choose another file or remove it")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture that says that mtrkit made it."""
    maker = f"mtrkit {mtrkit.__version__}"
    if path.suffix.lower() == ".png":
        text = PngInfo()
        text.add_text("Software", maker)
        picture.save(path, pnginfo=text)
    else:
        picture.save(path, exif=_exif(maker))


def save_animation(pictures: Sequence[Image.Image], path: Path, milliseconds: int) -> None:
    """Write pictures that follow each other for ever, each shown as long, and say in the file that mtrkit made it."""
    how: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "duration": milliseconds, "loop": 0}
    maker = f"mtrkit {mtrkit.__version__}"
    if path.suffix.lower() == ".gif":
        pictures[0].save(path, comment=maker, **how)
    else:
        pictures[0].save(path, exif=_exif(maker), **how)


def save_page(page: str, path: Path) -> None:
    """Write a page, which says itself who made it."""
    path.write_text(page, encoding="utf-8")


def add_page(parser: argparse.ArgumentParser, what: str) -> None:
    """--page, which shows what ``what`` says."""
    parser.add_argument("--page", type=Path, metavar="FILE", help=f"an .html file: {what}")


def _exif(maker: str) -> Image.Exif:
    exif = Image.Exif()
    exif[_SOFTWARE] = maker
    return exif


def _is_ours(path: Path) -> bool:
    """Whether mtrkit wrote a file."""
    look = _MARKS.get(path.suffix.lower())
    try:
        return look is not None and look(path)
    except Exception:  # another kind of file than its name says
        return False


def _picture_is_ours(path: Path) -> bool:
    with Image.open(path) as image:
        comment = image.info.get("comment", b"")
        maker = image.info.get("Software") or image.getexif().get(_SOFTWARE) or comment.decode(errors="replace")
    return str(maker).startswith("mtrkit")


def _archive_is_ours(path: Path) -> bool:
    """A program of torch; one that is compiled says it in a file of its own, as JSON."""
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("mtrkit.json") for name in archive.namelist()):
            return True
        texts = [name for name in archive.namelist() if name.endswith(".json")]
        return any(b'"mtrkit"' in archive.read(name) for name in texts)


def _holds(*marks: bytes) -> Callable[[Path], bool]:
    """Whether one of these bytes is at the start of a file."""

    def look(path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(_START)
        return any(mark in start for mark in marks)

    return look


def _onnx_is_ours(path: Path) -> bool:
    return b"\n\x06mtrkit\x12" in path.read_bytes()  # a key of its metadata, which stand at its end


_MARKS: dict[str, Callable[[Path], bool]] = {
    **dict.fromkeys((*PICTURES, *ANIMATIONS), _picture_is_ours),
    **dict.fromkeys(PAGES, _holds(b'<meta name="generator" content="mtrkit">')),
    ".svg": _holds(b"<dc:title>mtrkit</dc:title>"),
    ".md": _holds(TABLE_MARK.encode()),
    ".safetensors": _holds(b'"mtrkit_calibration"'),
    ".pt2": _archive_is_ours,
    ".onnx": _onnx_is_ours,
}
