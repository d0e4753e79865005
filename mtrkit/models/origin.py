"""What a checkpoint says of the model that its weights are of.

Files of Vim and of VideoMamba for images have the same names and shapes, and those of one model at two strides differ
in their position table alone. So the difference is looked for in all that a file may say: its metadata, the arguments
of the run that wrote it, its name if that is a published one, and how its position table looks.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch.nn.functional as F
from torch import Tensor

from mtrkit.models.positions import ClassToken, Grid, grid_of

_VIM: dict[str, Any] = {"family": "vim", "class_token": "middle", "halve": True}
_FRONT: dict[str, Any] = {"family": "videomamba", "class_token": "front", "halve": False}
_REGISTERS: dict[str, Any] = {"family": "mambar", "class_token": "none", "halve": True}
_FAMILIES = {"vim": _VIM, "videomamba": _FRONT, "mambar": _REGISTERS}
_NAMES = {"vim": "Vim", "videomamba": "VideoMamba", "mambar": "Mamba-Reg"}
_MODEL_NAME = re.compile(r"(vim|videomamba|mambar)_[a-z0-9]+(?:_[a-z0-9]+)*")
_VIM_FILE = re.compile(r"vim_[tsb]_midclstok_(ft_)?\d+p\d+acc")  # those of hustvl
_VIDEOMAMBA_FILE = re.compile(r"videomamba_[tsmb]16_\w*res(?:\d+to)*(\d+)")  # those of OpenGVLab


@dataclass(frozen=True)
class Origin:
    """The model that weights are of, as far as it is known; ``None`` for what is not.

    Attributes:
        source: Where that is said, for messages; empty if nothing is.
        family: ``"vim"``, ``"videomamba"`` or ``"mambar"``.
        class_token: Its place.
        halve: Whether the sum of the two directions is halved.
        img_size: Height and width of the images.
        patch_size: Height and width of a patch.
        stride: Step between patches.
    """

    source: str = ""
    family: str | None = None
    class_token: ClassToken | None = None
    halve: bool | None = None
    img_size: tuple[int, int] | None = None
    patch_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    @property
    def grid(self) -> Grid | None:
        """Rows and columns of the patches."""
        if self.img_size is None or self.patch_size is None or self.stride is None:
            return None
        return grid_of(self.img_size, self.patch_size, self.stride)

    def __str__(self) -> str:
        """The family and how its models differ from others with the same names."""
        places = {"middle": "class token in the middle", "front": "class token in front", "none": "no class token"}
        sums = {True: "directions averaged", False: "directions summed"}
        said = [places.get(self.class_token or ""), sums.get(self.halve) if self.halve is not None else None]
        return f"{_NAMES.get(self.family or '', 'a model')} ({', '.join(filter(None, said))})"


def origin_of(metadata: Mapping[str, str], content: Any, file: Path) -> Origin:
    """What a file says: by the metadata of safetensors, what ``torch.save`` wrote beside the weights, or its name."""
    return _of_metadata(metadata) or _of_run(content) or _of_file(file) or Origin()


def origin_named(name: str, source: str) -> Origin | None:
    """What the name of a model says, one of ours or of the official code; ``None`` if it is none of a known family.

    >>> origin_named("vim_tiny_patch16_stride8_224", "").grid
    (27, 27)
    """
    if _MODEL_NAME.fullmatch(name) is None:
        return None
    facts = dict(_FAMILIES[name.partition("_")[0]])
    patch, stride, size = (re.search(rf"_{what}(\d+)(?:_|$)", name) for what in ("patch", "stride", ""))
    if patch is not None:
        facts["patch_size"] = _pair(int(patch[1]))
        facts["stride"] = _pair(int(stride[1])) if stride else facts["patch_size"]
    if size is not None:
        facts["img_size"] = _pair(int(size[1]))
    if re.search("_avgpool|noclstok", name):
        facts["class_token"] = "none"
    elif facts["family"] == "vim" and re.search("with_cls(?:tok|_token)", name):
        facts |= {"class_token": "front", "halve": "div2" in name}  # the first releases
    return Origin(source, **facts)


def family_name(model: Any) -> str:
    """One of the families, by how the model is built."""
    if model.num_registers:
        return "mambar"
    return "vim" if model.layers[0].mixer.halve else "videomamba"


def class_place(table: Tensor) -> ClassToken | None:
    """Where the class token's row stands in a trained position table (1, M + 1, D): in front or in the middle.

    Rows of neighbouring patches resemble each other, and the class token's is unlike those beside it. It is only told
    if one of the two places is clearly so and the other clearly not, otherwise ``None``: never for a random table.
    """
    if table.dim() != 3 or table.shape[1] < 10:
        return None
    rows = table[0].float()
    alike = F.cosine_similarity(rows[1:], rows[:-1], dim=-1)  # of each row and the next
    middle = (rows.shape[0] - 1) // 2
    at: dict[ClassToken, Tensor] = {"front": alike[:1], "middle": alike[middle - 1 : middle + 1]}
    usual, low = alike.median(), alike.quantile(0.25)
    odd = [place for place, values in at.items() if usual > 0.4 and values.max() < usual / 2]
    plain = [place for place, values in at.items() if values.min() >= low]
    return odd[0] if len(odd) == 1 and len(plain) == 1 else None


def _of_metadata(metadata: Mapping[str, str]) -> Origin | None:
    family = metadata.get("family", "")
    if family not in _FAMILIES:
        return None
    return replace(Origin("its metadata", **_FAMILIES[family]), **_facts(_parsed(metadata.get("config"))))


def _parsed(text: str | None) -> dict[str, Any]:
    """A JSON object, or nothing if it is none: metadata are not ours alone."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config that an origin has, if they are of the right kind."""
    facts: dict[str, Any] = {}
    for name in (field.name for field in fields(Origin)):
        value = config.get(name)
        if name in ("img_size", "patch_size", "stride") and (pair := _pair(value)) is not None:
            facts[name] = pair
        elif (name == "halve" and isinstance(value, bool)) or (name == "class_token" and value in get_args(ClassToken)):
            facts[name] = value
    return facts


def _pair(value: Any) -> tuple[int, int] | None:
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair):
        return (pair[0], pair[1])
    return None


def _of_run(content: Any) -> Origin | None:
    """By the model's name among a training run's arguments."""
    if not isinstance(content, Mapping):
        return None
    args = content.get("args")
    given = args if isinstance(args, Mapping) else getattr(args, "__dict__", {})
    for key, name in (("args.model", given.get("model")), ("arch", content.get("arch"))):
        found = origin_named(name, f"its {key}={name!r}") if isinstance(name, str) else None
        if found is not None:
            size = _pair(given.get("input_size"))
            return found if size is None else replace(found, img_size=size)
    return None


def _of_file(file: Path) -> Origin | None:
    """By a published name, or one in that form; nothing else, as anybody may call a file anything."""
    source = f"its name {file.name}"
    if vim := _VIM_FILE.fullmatch(file.stem):
        return origin_named(f"vim_official_patch16_stride{8 if vim[1] else 16}_224", source)
    if video := _VIDEOMAMBA_FILE.fullmatch(file.stem):
        return origin_named(f"videomamba_official_patch16_{video[1]}", source)
    return origin_named(file.stem, source) if re.search(r"_patch\d+_.*\d$", file.stem) else None
