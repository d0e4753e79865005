"""``mamba_ssm.utils.hf``: configuration and weights of a published model, from a folder or the Hugging Face hub."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from mtrkit.errors import CheckpointError
from mtrkit.hub import download

CONFIG, WEIGHTS = "config.json", "pytorch_model.bin"
Name = str | os.PathLike[str]


def load_config_hf(model_name: Name) -> dict[str, Any]:
    """The configuration of the model in a folder, or of that name on the hub.

    Raises:
        CheckpointError: It is not there.
    """
    with open(_path(model_name, CONFIG), encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def load_state_dict_hf(
    model_name: Name, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Its weights, on a device and in a dtype; nothing in the file is executed.

    Raises:
        CheckpointError: The file is not one of weights, or not there.
    """
    path = _path(model_name, WEIGHTS)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the zip file, of the pickle in it, or of what it asks for
        raise CheckpointError(
            f"{path} does not hold weights ({type(error).__name__}); fetch or save it again"
        ) from error
    return {name: value.to(device=device, dtype=dtype) for name, value in weights.items()}


def _path(model_name: Name, file: str) -> Path:
    """Where the file lies, fetched if need be.

    Raises:
        CheckpointError: The folder has no such file, or it is not a folder and the file cannot be fetched.
    """
    if not Path(model_name).is_dir():
        try:
            return download(str(model_name), file, "its folder")
        except CheckpointError as error:
            raise CheckpointError(f"{model_name} is not a folder, and {error}") from error
    found = Path(model_name) / file
    if not found.is_file():
        raise CheckpointError(f"{model_name} has no {file}")
    return found
