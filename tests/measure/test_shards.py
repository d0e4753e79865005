"""WebDataset shards: the same images, labels and bits as a folder's, and what is wrong with a shard is said."""

import io
import json
import pickle
import tarfile

import pytest
import torch
from PIL import Image

from mtrkit.data import bundled_images
from mtrkit.errors import InputError
from mtrkit.measure import ImageSet, open_images


def picture(index, form="PNG"):
    """A bundled image as a file's bytes."""
    file = io.BytesIO()
    Image.fromarray(bundled_images().images[index]).save(file, form)
    return file.getvalue()


def write(path, members):
    """A tar file of (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, found in members:
            info = tarfile.TarInfo(name)
            info.size = len(found)
            tar.addfile(info, io.BytesIO(found))
    return path


@pytest.fixture
def shards(tmp_path):
    """Three shards of two images each, with labels of both kinds."""
    for shard in range(3):
        first = (f"{shard}/a.png", picture(50 * shard)), (f"{shard}/a.cls", str(shard).encode())
        second = (f"{shard}/b.json", json.dumps({"label": 9}).encode()), (f"{shard}/b.jpg", picture(999, "JPEG"))
        write(tmp_path / f"train-{shard:04d}.tar", [*first, *second])
    return tmp_path


def test_a_folder_a_pattern_and_a_file_give_the_images_in_order(shards):
    images = open_images(shards)
    assert images.labels == (0, 9, 1, 9, 2, 9) and images.classes == tuple("0123456789")
    for number, opener in enumerate(images.openers[::2]):
        assert opener().tobytes() == bundled_images().images[50 * number].tobytes()
    pattern = open_images(shards / "train-{0000..0002}.tar")
    assert (pattern.labels, pattern.digest) == (images.labels, images.digest)
    assert open_images(shards / "train-0001.tar").labels == (1, 9)
    assert open_images(shards / "train-{0001..0002}.tar").digest != images.digest


def test_classes_have_the_names_beside_the_shards(shards):
    (shards / "classes.txt").write_text("\n".join(bundled_images().classes) + "\n\n")
    assert open_images(shards).classes == tuple(bundled_images().classes)
    (shards / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match=r"train-0000.tar: label 9 of key '0/b' is out of range; there are 2 classes"):
        open_images(shards)


def test_names_of_classes_that_are_no_text(shards):
    (shards / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match=r"classes.txt is not a text file in UTF-8 with the names of the classes"):
        open_images(shards)


def test_tar_files_beside_the_folders_of_classes_are_left_alone(photos):
    write(photos / "all.tar", [])
    assert len(open_images(photos)) == 20


def test_openers_travel_to_other_processes_and_can_be_told_apart(shards):
    images = open_images(shards)
    travelled = pickle.loads(pickle.dumps(images))
    assert [o().tobytes() for o in travelled.openers] == [o().tobytes() for o in images.openers]
    held = images.spread(2)
    assert len(images.without(held)) == 4
    parts = [images.share(process, 4) for process in range(4)]
    assert [counted for _, counted in parts] == [2, 2, 1, 1] and {len(part) for part, _ in parts} == {2}


def test_the_same_answers_as_from_a_folder(photos, tmp_path):
    from mtrkit import create_model
    from mtrkit.measure import predict, preprocess_for

    folder = open_images(photos)
    files = sorted(photos.rglob("*.png"))
    labels = {path.name: sorted(path.name for path in photos.iterdir()).index(path.parent.name) for path in files}
    members = [(path.name, path.read_bytes()) for path in files]
    members += [(path.with_suffix(".cls").name, str(labels[path.name]).encode()) for path in files]
    packed = open_images(write(tmp_path / "all.tar", members))
    assert isinstance(packed, ImageSet) and packed.labels == folder.labels
    model = create_model("vim_micro_patch4_32", "pretrained")
    answers = [predict(model, images, preprocess_for(model.pretrained_cfg)) for images in (folder, packed)]
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.cls", b"1")], r"key 'a' has 0 images"),
        ([("a.jpg", b""), ("a.png", b""), ("a.cls", b"1")], r"key 'a' has 2 images"),
        ([("a.jpg", b"")], r"key 'a' has no label"),
        ([("a.jpg", b""), ("a.cls", b"one")], r"key 'a' has no whole number as its label in .cls"),
        ([("a.jpg", b""), ("a.json", b'{"class": 1}')], r"key 'a' has no whole number as its label in .json"),
        ([("a.jpg", b""), ("a.json", b'{"label": true}')], r"key 'a' has the label True"),
        ([("a.jpg", b""), ("a.cls", b"-1")], r"key 'a' has the label -1"),
        ([("a.jpg", b""), ("a.jpg", b""), ("a.cls", b"1")], r"a.jpg is there twice"),
        ([], r"has no images"),
    ],
)
def test_what_is_wrong_with_a_key_is_said(tmp_path, members, message):
    with pytest.raises(InputError, match=rf"x\.tar.*{message}"):
        open_images(write(tmp_path / "x.tar", members))


def test_damaged_shards_are_refused_wherever_they_end(shards):
    shard = shards / "train-0001.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        end = tar.getmembers()[-1].offset_data
    for cut in (100, 512, 700, end - 512, end - 100, end, end + 10, len(whole.rstrip(b"\0"))):
        shard.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="train-0001.tar"):
            open_images(shards)
    shard.write_bytes(whole + whole)
    with pytest.raises(InputError, match="several archives"):
        open_images(shards)
    shard.write_bytes(whole)
    assert len(open_images(shards)) == 6


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    shard = write(tmp_path / "x.tar", [("dir/a.jpg", b"not an image"), ("dir/a.cls", b"0")])
    opener = open_images(shard).openers[0]
    with pytest.raises(InputError, match=r"'dir/a' in .*x.tar cannot be read as an image"):
        opener()
    shard.unlink()
    with pytest.raises(InputError, match=r"x.tar cannot be read .* image 'dir/a' is in it"):
        opener()


def test_missing_shards_are_counted(shards):
    with pytest.raises(InputError, match=r"train-0003.tar is not a file, and 2 of 5 shards"):
        open_images(shards / "train-{0000..0004}.tar")
    with pytest.raises(InputError, match="not an uncompressed tar"):
        (shards / "train-0000.tar").write_bytes(b"text")
        open_images(shards)
