"""Images and videos by the names of their files, and which model takes which."""

import os
from collections.abc import Sequence
from pathlib import Path

IMAGES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"),
)
VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")

_STILL = tuple(suffix for suffix in IMAGES if suffix not in (".gif", ".webp", ".avif"))  # those may move

FOR_IMAGES = "for images take a model such as vim_tiny_patch16_224 or videomamba_tiny_patch16_224"
FOR_CLIPS = "for clips take a model such as videomamba_tiny_patch16_224_f8"


def suffix_of(path: str | Path) -> str:
    """The suffix of a file's name in lower case."""
    return os.path.splitext(path)[1].lower()


def video_for_images(path: str | Path) -> str:
    """What is wrong if a model of images is given this file; empty if it may be an image."""
    return f"{path} is a video, and the model takes images; {FOR_CLIPS}" if suffix_of(path) in VIDEOS else ""


def image_for_clips(path: str | Path) -> str:
    """What is wrong if a model of clips is given this file; empty if it may be a video."""
    return f"{path} is an image, and the model takes clips; {FOR_IMAGES}" if suffix_of(path) in _STILL else ""


def has_files(folder: str | Path, suffixes: Sequence[str]) -> bool:
    """Whether there is a file with one of the suffixes anywhere below a folder."""
    return any(suffix_of(name) in suffixes for _, _, names in os.walk(folder) for name in names)
