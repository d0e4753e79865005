"""What a file of weights should say of their model, and how it is written into one."""

import json
from pathlib import Path
from typing import Any

from mtrkit.models.origin import family_name


def checkpoint_metadata(model: Any) -> dict[str, str]:
    """What ``safetensors.torch.save_file`` should get as metadata, so that the file says which model it is of.

    Safetensors writes entries in random order; after :func:`write_metadata` equal files are equal in every byte.

    Args:
        model: One of ``mtrkit.models``.

    >>> import mtrkit
    >>> checkpoint_metadata(mtrkit.create_model("vim_micro_patch4_32"))["family"]
    'vim'
    """
    embed = model.patch_embed
    config = {
        "img_size": embed.img_size,
        "patch_size": embed.patch_size,
        "stride": embed.stride,
        "in_chans": embed.in_chans,
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.layers),
        "class_token": model.class_token,
        "halve": model.layers[0].mixer.halve,
        "rms_norm": model.rms_norm,
    }
    return {"family": family_name(model), "config": json.dumps(config, sort_keys=True)}


def write_metadata(file: str | Path, metadata: dict[str, str]) -> None:
    """Add entries to the metadata of a safetensors file; what stands behind its header stays bit for bit."""
    path = Path(file)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    entries = dict(sorted((header.pop("__metadata__", {}) | metadata).items()))
    written = json.dumps({"__metadata__": entries} | header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)  # tensors begin at multiples of eight bytes
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[start:])
