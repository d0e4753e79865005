"""Labelled images in WebDataset shards: tar files in which each image lies beside its label, under the same key.

A shard is indexed once and never unpacked; an image is read from its place in the tar file, in any order.
"""

import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mtrkit.errors import InputError
from mtrkit.measure.images import ImageSet, class_names, decode, digest_of

_IMAGE_PARTS = (".jpg", ".jpeg", ".png", ".webp")
LABELS = (".cls", ".json")

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Member(NamedTuple):
    """An image in a shard."""

    shard: str  # path
    key: str
    offset: int  # of its bytes in the shard
    size: int  # bytes
    label: int


def image_shards(source: str | Path) -> ImageSet:
    """Index the images of shards; the label of ``KEY.jpg`` is the number in ``KEY.cls``, or ``label`` in ``KEY.json``.

    Classes have the names in ``classes.txt`` beside the shards, one per line; without this file they are numbers.

    Args:
        source: A ``.tar`` file, a folder of them, or a pattern such as ``train-{0000..0063}.tar``.

    Raises:
        InputError: A shard is missing or damaged, or a key has no image, no label, or one that is out of range; the
            message names shard and key.
    """
    shards = find_shards(source)
    members = [member for shard in shards for member in _members(shard)]
    if not members:
        raise InputError(f"{source} has no images; expected keys with one of {', '.join(_IMAGE_PARTS)}")
    classes = class_names(shards[0].parent, [member.label for member in members])
    for member in members:
        if not 0 <= member.label < len(classes):
            raise InputError(
                f"{member.shard}: label {member.label} of key {member.key!r} is out of range; there are {len(classes)} "
                "classes, counted from 0"
            )
    listing = "\n".join(f"{os.path.basename(shard)} {key} {size} {label}" for shard, key, _, size, label in members)
    return ImageSet(
        name=str(source),
        classes=classes,
        labels=tuple(member.label for member in members),
        openers=tuple(partial(read_member, *member[:4]) for member in members),
        digest=digest_of(listing),
    )


def is_shards(source: str | Path) -> bool:
    """Whether a source is shards: a ``.tar`` file or pattern, or a folder that has such files and no folders."""
    path = Path(source)
    if not path.is_dir():
        return path.suffix == ".tar"
    entries = [*path.iterdir()]
    return any(entry.suffix == ".tar" for entry in entries) and not any(entry.is_dir() for entry in entries)


def find_shards(source: str | Path) -> list[Path]:
    """The shards of a folder in the order of their names, or those that a pattern or path stands for.

    Raises:
        InputError: One of them is not there.
    """
    if Path(source).is_dir():
        return sorted(Path(source).glob("*.tar"))
    shards = [Path(path) for path in _expand(str(source))]
    missing = [path for path in shards if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]} is not a file, and {len(missing)} of {len(shards)} shards of {source} are not")
    return shards


def read_member(shard: str, key: str, offset: int, size: int) -> Image.Image:
    """Read one image of a shard completely, as RGB.

    Raises:
        InputError: The shard is not there, or this is not a complete image; the message names both.
    """
    try:
        with open(shard, "rb") as file:
            file.seek(offset)
            found = file.read(size)
    except OSError as error:
        raise InputError(f"{shard} cannot be read ({error}); image {key!r} is in it") from error
    return decode(io.BytesIO(found), f"{key!r} in {shard}")


def _expand(pattern: str) -> Iterator[str]:
    """A pattern's names: each ``{first..last}`` stands for numbers, as wide as the first is written."""
    texts = _RANGE.split(pattern)[::3]
    ranges = [
        [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        for first, last in _RANGE.findall(pattern)
    ]
    for numbers in itertools.product(*ranges):
        yield "".join(part for pair in itertools.zip_longest(texts, numbers, fillvalue="") for part in pair)


def _members(shard: Path) -> Iterator[Member]:
    """The images of one shard, in the order of their keys' first files."""
    keys: dict[str, dict[str, tarfile.TarInfo]] = {}
    with _opened(shard) as tar:
        for found in _files(tar, shard):
            folder, name = os.path.split(found.name)
            stem, dot, suffix = name.partition(".")
            parts = keys.setdefault(f"{folder}/{stem}" if folder else stem, {})
            if parts.setdefault(f"{dot}{suffix}".lower(), found) is not found:
                raise InputError(f"{shard}: {found.name} is there twice; keys of a shard are unique")
        for key, parts in keys.items():
            image = _image(parts, f"{shard}: key {key!r}")
            yield Member(str(shard), key, image.offset_data, image.size, _label(tar, parts, f"{shard}: key {key!r}"))


def _opened(shard: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(shard, "r:")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard} is not an uncompressed tar file ({error}); replace it") from error


def _files(tar: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    """Regular files, to an end that must be that of the archive; tarfile itself passes over some that are cut off."""
    last = "nothing"
    try:
        for found in tar:
            last = found.name
            if found.isfile():
                yield found
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard} is damaged after {last} ({error}); replace it") from error
    with shard.open("rb") as file:
        file.seek(tar.offset)
        rest = file.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE or any(rest):
        raise InputError(
            f"{shard} is cut off, or several archives in one file: no end of the archive after {last}; replace it"
        )


def _image(parts: dict[str, tarfile.TarInfo], where: str) -> tarfile.TarInfo:
    images = [parts[suffix] for suffix in _IMAGE_PARTS if suffix in parts]
    if len(images) != 1:
        raise InputError(
            f"{where} has {len(images)} images, not one, among {', '.join(part.name for part in parts.values())}; "
            f"expected one of {', '.join(_IMAGE_PARTS)}"
        )
    return images[0]


def _label(tar: tarfile.TarFile, parts: dict[str, tarfile.TarInfo], where: str) -> int:
    suffix = next((suffix for suffix in LABELS if suffix in parts), None)
    if suffix is None:
        raise InputError(f"{where} has no label; expected one of {', '.join(LABELS)}")
    file = tar.extractfile(parts[suffix])
    text = b"" if file is None else file.read()
    try:
        label: Any = int(text) if suffix == ".cls" else json.loads(text)["label"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} has no whole number as its label in {suffix} ({text[:60]!r})") from error
    if type(label) is not int or label < 0:
        raise InputError(f"{where} has the label {label!r}; expected a whole number of at least 0")
    return label
