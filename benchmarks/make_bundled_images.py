"""Make mtrkit/data/cifar10_test_1000.zip: the first 100 test images of each CIFAR-10 class.

    python benchmarks/make_bundled_images.py cifar10.tar.xz

The archive holds ``cifar10/val/<class>/NNNN.jpg``. The JPEG bytes are stored as they are, in an uncompressed
zip with a folder per class and fixed dates, so that the same archive gives the same file, bit for bit.
"""

import argparse
import hashlib
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path

PER_CLASS = 100
TARGET = Path(__file__).parents[1] / "mtrkit" / "data" / "cifar10_test_1000.zip"


def read_images(archive: Path) -> dict[str, dict[str, bytes]]:
    """Class → file name → bytes, for every image below ``val``."""
    images: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 4 and parts[1] == "val":
                file = tar.extractfile(member)
                assert file is not None
                images[parts[2]][parts[3]] = file.read()
    return images


def write_images(images: dict[str, dict[str, bytes]], target: Path) -> int:
    """Write the first images of each class by name; return how many there are."""
    count = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        for folder in sorted(images):
            for name in sorted(images[folder])[:PER_CLASS]:
                out.writestr(zipfile.ZipInfo(f"{folder}/{name}"), images[folder][name])
                count += 1
    return count


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, default=TARGET)
    args = parser.parse_args()
    count = write_images(read_images(args.archive), args.out)
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    print(f"{args.out}: {count} images, {args.out.stat().st_size} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
