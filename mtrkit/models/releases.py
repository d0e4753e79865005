"""Where the published weights are: bundled with mtrkit, or official releases on the Hugging Face Hub."""

from pathlib import Path
from typing import NamedTuple

from mtrkit.errors import CheckpointError

_DATA = Path(__file__).parents[1] / "data"
BUNDLED = {
    name: _DATA / f"{name}.safetensors"
    for name in (
        "vim_micro_patch4_stride2_32",
        "vim_micro_patch4_stride2_avgpool_32",
        "videomamba_micro_patch4_stride2_32",
        "vim_nano_patch4_stride2_32",
        "vim_micro_patch4_32",
    )
}


class Release(NamedTuple):
    """One published file."""

    repo: str
    file: str
    top1: float  # published, ImageNet-1k validation, or Kinetics-400 for clips
    ema: bool = False  # whether that accuracy is of the averaged weights in the file


_TINY, _SMALL, _BASE = (f"hustvl/Vim-{size}-midclstok" for size in ("tiny", "small", "base"))

OFFICIAL = {
    "vim_tiny_patch16_224": Release(_TINY, "vim_t_midclstok_76p1acc.pth", 76.1),
    "vim_tiny_patch16_stride8_224": Release(_TINY, "vim_t_midclstok_ft_78p3acc.pth", 78.3),
    "vim_small_patch16_224": Release(_SMALL, "vim_s_midclstok_80p5acc.pth", 80.5),
    "vim_small_patch16_stride8_224": Release(_SMALL, "vim_s_midclstok_ft_81p6acc.pth", 81.6),
    "vim_base_patch16_224": Release(_BASE, "vim_b_midclstok_81p9acc.pth", 81.9, ema=True),
}
_VIDEOMAMBA = "OpenGVLab/VideoMamba"
OFFICIAL |= {
    "videomamba_tiny_patch16_224": Release(_VIDEOMAMBA, "videomamba_t16_in1k_res224.pth", 76.9),
    "videomamba_small_patch16_224": Release(_VIDEOMAMBA, "videomamba_s16_in1k_res224.pth", 81.2),
    "videomamba_middle_patch16_224": Release(_VIDEOMAMBA, "videomamba_m16_in1k_res224.pth", 82.8),
    "videomamba_base_patch16_224": Release(_VIDEOMAMBA, "videomamba_b16_in1k_res224.pth", 82.7),
}
CLIP_FRAMES = (8, 16, 32, 64)
_CLIPS_TOP1 = {  # by these
    "tiny": (76.9, 78.1, 78.8, 79.6),
    "small": (79.3, 80.8, 81.5, 81.8),
    "middle": (80.6, 81.9, 82.4, 82.8),
}
OFFICIAL |= {
    f"videomamba_{size}_patch16_224_f{frames}": Release(
        _VIDEOMAMBA, f"videomamba_{size[0]}16_k400_f{frames}_res224.pth", top1
    )
    for size, row in _CLIPS_TOP1.items()
    for frames, top1 in zip(CLIP_FRAMES, row, strict=True)
}


def find_checkpoint(reference: str | Path, name: str) -> Path:
    """Turn what a user may give as a checkpoint into a local file, downloading it if it is on the Hub.

    Args:
        reference: A local path; ``"pretrained"`` for the weights published for the model; a repository of
            the official releases such as ``"hustvl/Vim-tiny-midclstok"``; or ``"hf:org/repo/file"``.
        name: The model's name, which chooses among the files of an official repository.

    Raises:
        CheckpointError: There are no such weights, or the Hub cannot be reached.
    """
    given = str(reference)
    if given == "pretrained":
        return _published(name)
    if given.startswith("hf:"):
        return _from_hub(given.removeprefix("hf:"), name)
    if not Path(given).exists() and given in {release.repo for release in OFFICIAL.values()}:
        return _from_hub(given, name)
    return Path(reference)


def _published(name: str) -> Path:
    if name in BUNDLED:
        return BUNDLED[name]
    if name not in OFFICIAL:
        known = ", ".join([*BUNDLED, *OFFICIAL])
        raise CheckpointError(f"no weights are published for {name!r}, only for {known}; give a file instead")
    return download(OFFICIAL[name].repo, OFFICIAL[name].file)


def _from_hub(reference: str, name: str) -> Path:
    """``org/repo`` with official files, or ``org/repo/file``."""
    repo, file = "/".join(reference.split("/")[:2]), "/".join(reference.split("/")[2:])
    if file:
        return download(repo, file)
    holds = {model: release for model, release in OFFICIAL.items() if release.repo == repo}
    if name not in holds:
        known = f"it has files for {', '.join(holds)}" if holds else "it is not a known official release"
        raise CheckpointError(f"which file of hf:{repo} belongs to {name!r}? {known}; write hf:{repo}/<file>")
    return download(repo, holds[name].file)


def download(repo: str, file: str) -> Path:
    """Fetch one file from the Hugging Face Hub, or find it in the local cache; return where it lies."""
    by_hand = f"or download {file} from https://huggingface.co/{repo} by hand and pass its path"
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise CheckpointError(
            f"{repo} is on the Hugging Face Hub, and huggingface-hub is not installed: "
            f"pip install huggingface-hub, {by_hand}"
        ) from error
    try:
        return Path(hf_hub_download(repo, file))
    except Exception as error:  # offline, unknown repository, full disk: the Hub has an exception for each
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{file} cannot be fetched from {repo} ({reason}); try again, {by_hand}") from error
