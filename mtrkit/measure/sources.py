"""From what a user gives as data to labelled images."""

from pathlib import Path

from mtrkit.measure.images import BUNDLED, ImageSet, bundled_set, image_folder
from mtrkit.measure.shards import image_shards, is_shards


def open_images(source: str | Path) -> ImageSet:
    """The images of a folder per class or of WebDataset shards, or the bundled ones for ``"bundled"``.

    Args:
        source: A folder with a folder per class; a folder of ``.tar`` files, one such file, or a pattern such as
            ``train-{0000..0063}.tar``; or ``"bundled"``.

    Raises:
        InputError: There are no images, or they are not as they should be.
    """
    if str(source) == BUNDLED:
        return bundled_set()
    return image_shards(source) if is_shards(source) else image_folder(source)
