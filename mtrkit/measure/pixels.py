"""From a decoded file to what a person sees of it: upright, in eight bits, without transparency.

- The orientation that cameras write (EXIF) is applied.
- 16-bit grey becomes eight bits over its whole range, 0 to 65535 (4095 for TIFF files of twelve bits).
- 32-bit integers and floating-point numbers are refused, as no file says what is black and what is white.
- Transparent pixels are seen over white.
- Of an animation or a stack of pages the first image is taken, with a :class:`FrameWarning`.
- CMYK, palettes, greyscale and other modes are converted by Pillow; colour profiles are ignored, as in training.
"""

import warnings
from typing import Any

import numpy as np
from PIL import Image

from mtrkit.errors import FrameWarning, InputError

_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and of TIFF
_WHITE_IS_ZERO = 0
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """An opened image as RGB, by the rules above.

    Raises:
        InputError: Its numbers have no known range; the message calls it ``name``.

    Warns:
        FrameWarning: It has several frames.
    """
    _say_if_several(image, name)
    image.load()  # of some formats the tags stand behind the pixels, and TIFF files turn themselves
    seen = _without_alpha(_eight_bits(image, name))
    turn = _UPRIGHT.get(_orientation(image))
    return seen if turn is None else seen.transpose(turn)


def _say_if_several(image: Image.Image, name: str) -> None:
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # a phone's photo, with a depth map or a preview behind it
        warnings.warn(FrameWarning(f"{name} holds {count} images; only the first is used"), stacklevel=4)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged tags, which every viewer passes over
        return 1


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    wide = image.mode == "I" and image.format in ("PNG", "PPM")  # Pillow's mode for their 16 bits, in some versions
    if image.mode.startswith("I;16") or wide:
        return _scaled(image)
    if image.mode in ("I", "F"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit or signed integers"
        raise InputError(
            f"{name} holds {kind}, and nothing says which of them are black and white; save it with 8 or 16 bits"
        )
    return image


def _scaled(image: Image.Image) -> Image.Image:
    """Grey in eight bits, rounded."""
    tags: Any = getattr(image, "tag_v2", {})
    most = 2 ** int(np.atleast_1d(tags.get(_BITS, 16))[0]) - 1
    values = np.asarray(image).astype(np.int64).clip(0, most)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = most - values
    return Image.fromarray(((values * 255 + most // 2) // most).astype(np.uint8))


def _without_alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    white.alpha_composite(seen)
    return white.convert("RGB")
