"""Labelled videos, and how a model of clips looks at one: at several times, and at several places of the frames.

The frames are those of sparse sampling: a video is cut into as many equal parts as a clip has frames, and each part
gives one (Wang et al. 2016, arXiv:1608.00859). Testing by several segments and crops is VideoMamba's
(arXiv:2403.06977): 4 × 3 views of a Kinetics video.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from mtrkit.errors import InputError, OptionError
from mtrkit.measure.images import ImageSet, class_names, digest_of, labelled_folder, read_text
from mtrkit.measure.kinds import VIDEOS, image_for_clips
from mtrkit.measure.preprocess import Preprocess
from mtrkit.measure.video import read_frames

Average = Literal["logits", "probabilities"]

_LINE = re.compile(r"(?P<path>.+?)[,\s]\s*(?P<label>\d+)")


@dataclass(frozen=True)
class ClipPreprocess(Preprocess):
    """From a video file to the views that are classified; see :class:`Preprocess` for the frames.

    Attributes:
        frames: T, of a clip.
        segments: Clips per video, each beginning a little later in the parts that the video is cut into.
        crops: Places along the longer side of the frames; one is the centre.
        average: Over the views of a video, of ``"logits"`` or of ``"probabilities"``.
    """

    frames: int = 8
    segments: int = 1
    crops: int = 1
    average: Average = "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.frames, self.segments, self.crops) < 1:
            raise OptionError(f"frames={self.frames}, segments={self.segments}, crops={self.crops} must be at least 1")
        if self.average not in ("logits", "probabilities"):
            raise OptionError(f"average={self.average!r} is unknown; choose 'logits' or 'probabilities'")

    @property
    def views(self) -> int:
        """Inputs per video."""
        return self.segments * self.crops

    def inputs(self, opened: Path) -> Tensor:
        """(segments · crops, 3, T, H, W) of a video file; crops of one segment follow each other."""
        found = read_frames(opened, lambda total: sampled(total, self.frames, self.segments))
        cuts = [torch.stack([self.tensor(cut) for cut in self._cuts(frame)]) for frame in found]
        by_segment = torch.stack(cuts).unflatten(0, (self.segments, self.frames))  # (S, T, crops, 3, H, W)
        return by_segment.permute(0, 2, 3, 1, 4, 5).flatten(0, 1).contiguous()

    def combine(self, logits: Tensor) -> Tensor:
        """(B, K) in float32 of the logits (B · views, K)."""
        each = logits.float().unflatten(0, (-1, self.views))
        return (each.softmax(-1) if self.average == "probabilities" else each).mean(1)

    def _cuts(self, frame: Image.Image) -> list[Image.Image]:
        """The crops of a frame, from left to right or from top to bottom."""
        if self.crops == 1:
            return [self.cut(frame)]
        height, width = self.size
        frame = self._resize(frame)
        across, down = frame.width - width, frame.height - height
        places = [place / (self.crops - 1) for place in range(self.crops)]
        lefts = [int(across * place) if across >= down else round(across / 2) for place in places]
        tops = [int(down * place) if down > across else round(down / 2) for place in places]
        return [frame.crop((x, y, x + width, y + height)) for x, y in zip(lefts, tops, strict=True)]


def sampled(total: int, frames: int, segments: int) -> list[int]:
    """Which of ``total`` frames the segments see, one segment after the other.

    With parts of s = (total − 1) / frames, frame i of segment k is ``round(s i) + ⌊s (k + 1) / (segments + 1)⌋``.
    """
    part = (total - 1) / frames
    shifts = [math.floor(part * (segment + 1) / (segments + 1)) for segment in range(segments)]
    return [min(round(part * i) + shift, total - 1) for shift in shifts for i in range(frames)]


def open_clips(source: str | Path) -> ImageSet:
    """The videos of a list or of a folder per class; an opener returns the path of one.

    Args:
        source: A text file with a line ``path label`` or ``path,label`` for each video, the path being relative to the
            file's folder unless it is absolute, labels counted from 0, and classes named in ``classes.txt`` beside it
            if that is there; or a folder with a folder of videos per class.

    Raises:
        InputError: A video is missing, or a line of the list is wrong; the message names it.
    """
    if Path(source).is_dir():
        return labelled_folder(source, VIDEOS, partial(partial, Path), "videos")
    return _video_list(Path(source))


def _video_list(file: Path) -> ImageSet:
    if not file.is_file():
        raise InputError(f"{file} is not a list of videos, nor a folder with a folder of videos per class")
    text = read_text(file, "a line `path label` for each video")
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    entries = [_entry(file, number, line) for number, line in lines]
    if not entries:
        raise InputError(f"{file} lists no videos; expected lines such as `abseiling/video.mp4 0`")
    _check_files(file, [path for path, _ in entries])
    labels = tuple(label for _, label in entries)
    classes = class_names(file.parent, labels)
    if max(labels) >= len(classes):
        raise InputError(f"{file}: label {max(labels)} is out of range; there are {len(classes)} classes from 0 on")
    listing = "\n".join(f"{path} {os.path.getsize(file.parent / path)} {label}" for path, label in entries)
    return ImageSet(
        name=str(file),
        classes=classes,
        labels=labels,
        openers=tuple(partial(Path, file.parent, path) for path, _ in entries),
        digest=digest_of(listing),
    )


def _entry(file: Path, number: int, line: str) -> tuple[str, int]:
    found = _LINE.fullmatch(line)
    if found is None:
        raise InputError(f"{file}, line {number}: {line[:80]!r} is not a path and a whole number, the label")
    return found["path"].rstrip(), int(found["label"])


def _check_files(file: Path, paths: Sequence[str]) -> None:
    if wrong := image_for_clips(paths[0]):
        raise InputError(f"{file}: {wrong}")
    missing = [path for path in paths if not (file.parent / path).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(paths)} videos in {file} are not there, the first is "
            f"{file.parent / missing[0]}; take them out of the list, or put the list where its paths start from"
        )
