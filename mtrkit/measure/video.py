"""Frames of a video file."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mtrkit.errors import InputError, OptionError
from mtrkit.measure.kinds import image_for_clips


def read_clip(path: str | Path, num_frames: int) -> list[Image.Image]:
    """Read ``num_frames`` frames of a video file as RGB: the middle one of each of so many equal parts.

    A video with fewer frames gives some of them more than once.

    Raises:
        OptionError: PyAV is not installed.
        InputError: The file is not there, or is not a video; the message names it.
    """
    return [frame for frame, _ in read_timed_clip(path, num_frames)]


def read_timed_clip(path: str | Path, num_frames: int) -> list[tuple[Image.Image, float | None]]:
    """As :func:`read_clip`, each frame with its time in seconds, if the file says it."""
    middles = [2 * part + 1 for part in range(num_frames)]
    return _read(path, lambda total: [middle * total // (2 * num_frames) for middle in middles])


def read_frames(path: str | Path, choose: Callable[[int], Sequence[int]]) -> list[Image.Image]:
    """Read the frames that ``choose`` names, counted from 0, of as many as it is told; as RGB, in its order.

    The video is decoded twice, as what files say of their length is not always so.

    Raises:
        OptionError, InputError: As :func:`read_clip`.
    """
    return [frame for frame, _ in _read(path, choose)]


def _read(path: str | Path, choose: Callable[[int], Sequence[int]]) -> list[tuple[Image.Image, float | None]]:
    if wrong := image_for_clips(path):
        raise InputError(wrong)
    total = sum(1 for _ in _frames(path))
    if not total:
        raise InputError(f"{path} holds no frames; give a video file")
    wanted = choose(total)
    chosen = set(wanted)
    found = {index: (_upright(frame), frame.time) for index, frame in enumerate(_frames(path)) if index in chosen}
    return [found[index] for index in wanted]


def _upright(frame: Any) -> Image.Image:
    """A frame as RGB, turned as the file says: phones film on their side."""
    image = frame.to_image().convert("RGB")
    angle = getattr(frame, "rotation", 0)  # counterclockwise; PyAV before 14 does not tell it
    return image.rotate(angle, expand=True) if angle else image


def _frames(path: str | Path) -> Iterator:
    try:
        import av
    except ImportError as error:
        raise OptionError("videos need PyAV: pip install 'mtrkit[video]'") from error
    try:
        with av.open(str(path)) as container:
            yield from container.decode(video=0)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give the path of a video file") from error
    except (av.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"{path} cannot be read as a video ({type(error).__name__}: {error}); replace it") from error
