"""Fetch files from the Hugging Face Hub."""

from pathlib import Path

from mtrkit.errors import CheckpointError


def download(repo: str, file: str, instead: str = "its path") -> Path:
    """Fetch one file from the Hugging Face Hub, or find it in the local cache.

    Args:
        repo: ``org/name``.
        file: Its path in there.
        instead: What the caller takes in place of a name, for the message.

    Returns:
        Where it lies.

    Raises:
        CheckpointError: huggingface-hub is not installed, or it does not get the file.
    """
    by_hand = f"or download {file} from https://huggingface.co/{repo} by hand and pass {instead}"
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
