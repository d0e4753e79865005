"""Get published weights: those bundled with mtrkit, or official releases on the Hugging Face Hub."""

import os
from pathlib import Path

from mtrkit.errors import CheckpointError
from mtrkit.hub import download
from mtrkit.models.variants import BUNDLED, OFFICIAL


def is_local(reference: str | Path, name: str) -> bool:
    """Whether :func:`find_checkpoint` finds a file without fetching it."""
    given = str(reference)
    if given == "pretrained":
        return name in BUNDLED
    return not given.startswith("hf:") and not _is_official(given)


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
    return _from_hub(given, name) if _is_official(given) else Path(reference)


def _is_official(given: str) -> bool:
    """Whether this is the name of an official repository, and of nothing here."""
    return given in {release.repo for release in OFFICIAL.values()} and not os.path.exists(given)


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
