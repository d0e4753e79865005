"""Images as phones and laboratories write them: what a model sees is what a person sees, or it is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import mtrkit
from mtrkit.data import bundled_images
from mtrkit.errors import InputError
from mtrkit.measure import open_data, open_images, read_clip, read_image
from mtrkit.models import VideoMamba, VisionMamba

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_classes": 2}


@pytest.fixture
def photo():
    """A real photograph, wider than high, in colours that its other side does not have."""
    return Image.fromarray(bundled_images().images[777]).crop((0, 0, 32, 24))


def pixels(image):
    return np.asarray(image).astype(int)


TURNS = {  # EXIF → how a camera stores what is upright so that the tag makes it upright again
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["png", "webp", "tiff"])
def test_an_image_stands_upright(photo, tmp_path, orientation, form):
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](np.asarray(photo))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if form == "webp" else {}
    stored.save(tmp_path / f"turned.{form}", exif=exif, **lossless)
    assert np.array_equal(pixels(read_image(tmp_path / f"turned.{form}")), pixels(photo))


def test_a_phones_jpeg_stands_upright(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.rotate(90, expand=True).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    seen = read_image(tmp_path / "phone.jpg")
    assert seen.size == photo.size and np.abs(pixels(seen) - pixels(photo)).mean() < 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_tags_are_passed_over(photo, tmp_path):
    photo.save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff", quality=95)
    assert read_image(tmp_path / "odd.jpg").size == photo.size


@pytest.mark.parametrize("form", ["png", "tif", "pgm"])
def test_sixteen_bits_become_eight_over_the_whole_range(tmp_path, form):
    values = np.array([[0, 128, 257, 32768, 65407, 65535]], dtype=np.uint16).repeat(2, axis=0)
    file = tmp_path / f"deep.{form}"
    if form == "pgm":
        file.write_bytes(b"P5 6 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(file)
    seen = pixels(read_image(file))
    assert seen.shape == (2, 6, 3) and seen[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    assert (seen == seen[..., :1]).all()


def test_sixteen_bits_of_a_photo_are_the_photo(photo, tmp_path):
    grey = np.asarray(photo.convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(tmp_path / "deep.png")
    assert np.array_equal(pixels(read_image(tmp_path / "deep.png"))[..., 0], grey)


@pytest.mark.parametrize(
    ("values", "said"),
    [(np.float32([[0.0, 0.5]]), "floating-point numbers"), (np.int32([[0, 70000]]), "32-bit or signed integers")],
)
def test_numbers_without_a_known_range_are_refused(tmp_path, values, said):
    Image.fromarray(values).save(tmp_path / "raw.tif")
    with pytest.raises(InputError, match=f"raw.tif holds {said}.*save it with 8 or 16 bits"):
        read_image(tmp_path / "raw.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(tmp_path, mode):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))  # black and transparent, as editors leave it
    image.putpixel((2, 0), (0, 0, 0, 128))
    if mode in ("L", "RGB"):  # one value is said to be transparent
        plain = Image.new(mode, (3, 1), 0 if mode == "L" else (0, 0, 0))
        plain.putpixel((1, 0), 7 if mode == "L" else (7, 7, 7))
        plain.save(tmp_path / "holes.png", transparency=7 if mode == "L" else (7, 7, 7))
    elif mode == "P":
        image.quantize().save(tmp_path / "holes.png")
    else:
        image.convert(mode).save(tmp_path / "holes.png")
    seen = pixels(read_image(tmp_path / "holes.png"))[0, :, 0]
    assert (seen[0], seen[1]) == (0, 255) and (mode in ("L", "RGB") or abs(seen[2] - 127) < 3)


def test_what_is_opaque_keeps_its_bits(photo, tmp_path):
    for mode in ("RGB", "RGBA"):
        photo.convert(mode).save(tmp_path / "whole.png")
        assert np.array_equal(pixels(read_image(tmp_path / "whole.png")), pixels(photo))
    photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(tmp_path / "few.png")
    assert np.abs(pixels(read_image(tmp_path / "few.png")) - pixels(photo)).mean() < 10


@pytest.mark.parametrize("form", ["jpg", "tif"])
def test_printed_colours_are_not_inverted(photo, tmp_path, form):
    photo.convert("CMYK").save(tmp_path / f"print.{form}", **({"quality": 95} if form == "jpg" else {}))
    assert np.abs(pixels(read_image(tmp_path / f"print.{form}")) - pixels(photo)).mean() < 8


@pytest.mark.parametrize("form", ["gif", "png", "webp", "tif"])
def test_of_several_images_the_first_is_taken_with_a_word(photo, tmp_path, form):
    black, white = Image.new("RGB", photo.size), Image.new("RGB", photo.size, "white")
    options = {"lossless": True} if form == "webp" else {}
    photo.save(tmp_path / f"several.{form}", save_all=True, append_images=[black, white], **options)
    with pytest.warns(mtrkit.FrameWarning, match=rf"several.{form} holds 3 images; only the first is used"):
        seen = read_image(tmp_path / f"several.{form}")
    assert np.abs(pixels(seen) - pixels(photo)).mean() < (12 if form == "gif" else 1)


def test_a_photo_with_a_preview_behind_it_is_a_photo(photo, tmp_path):
    photo.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert read_image(tmp_path / "phone.jpg").size == photo.size  # and no warning, which would be an error here


def test_every_damaged_file_gets_a_sentence(photo, tmp_path):
    whole = io.BytesIO()
    photo.save(whole, "PNG")
    for name, content in (
        ("half.png", whole.getvalue()[:60]),
        ("page.jpg", b"<html>404</html>"),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0"),
        ("empty.png", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} cannot be read as an image"):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match="save it as JPEG"):
        read_image(tmp_path / "photo.heic")


def test_folders_take_every_kind_of_image(photo, tmp_path):
    for label, name in enumerate(("a/1.gif", "b/2.PGM", "c/3.jfif")):
        (tmp_path / name).parent.mkdir()
        photo.convert("L").save(tmp_path / name, ("GIF", "PPM", "JPEG")[label])
    images = open_images(tmp_path)
    assert images.labels == (0, 1, 2) and all(opener().size == photo.size for opener in images.openers)


def test_names_that_are_not_text(photo, tmp_path):
    """Linux allows any bytes; what else systems refuse is theirs."""
    folder = tmp_path / "images" / "cat"
    folder.mkdir(parents=True)
    name = "caf\udce9.png"
    try:
        photo.save(folder / "plain.png")
        (folder / "plain.png").rename(folder / name)
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    images = open_images(tmp_path / "images")
    assert len(images) == 1 and images.openers[0]().size == photo.size


def test_videos_and_images_are_told_apart(photo, photos, tmp_path):
    still, moving = VisionMamba(**TINY), VideoMamba(num_frames=4, **TINY)
    for name in ("clip.mp4", "CLIP.MOV"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match="is a video, .* take a model such as videomamba_tiny_patch16_224_f8"):
            read_image(tmp_path / name)
    photo.save(tmp_path / "photo.jpg")
    with pytest.raises(InputError, match=r"is an image, .* take a model such as vim_tiny_patch16_224 or"):
        read_clip(tmp_path / "photo.jpg", 4)
    (tmp_path / "videos" / "ride").mkdir(parents=True)
    (tmp_path / "videos" / "ride" / "a.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="holds videos, and the model takes images"):
        open_data(tmp_path / "videos", still)
    with pytest.raises(InputError, match="holds images, and the model takes clips"):
        open_data(photos, moving)
    with pytest.raises(InputError, match="bundled data are images"):
        open_data("bundled", moving)
    (tmp_path / "val.csv").write_text("photo.jpg 0\n")
    with pytest.raises(InputError, match="lists are of videos"):
        open_data(tmp_path / "val.csv", still)
    with pytest.raises(InputError, match="val.csv: photo.jpg is an image"):
        open_data(tmp_path / "val.csv", moving)


def test_tensors_of_the_other_kind_name_a_model():
    still, moving = VisionMamba(**TINY), VideoMamba(num_frames=4, **TINY)
    with pytest.raises(InputError, match="for clips take a VideoMamba"):
        still(torch.zeros(1, 3, 4, 32, 32))
    with pytest.raises(InputError, match="for images take a model such as"):
        moving(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_a_phones_video_stands_upright(tmp_path, angle):
    """The matrix in the header of the file, as phones write it, patched into a plain one."""
    av = pytest.importorskip("av", reason="videos need PyAV")
    if not hasattr(av.VideoFrame, "rotation"):
        pytest.skip("this PyAV does not tell how frames are turned")
    seen = np.zeros((48, 64, 3), dtype=np.uint8)
    seen[:24, :32] = 255  # the upper left quarter is white
    file = tmp_path / "phone.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(seen, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(file.read_bytes())
    turn = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[angle]
    a, b, c, d = (value * 0x10000 for value in turn)
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 0x40000000], dtype=">i4").tobytes()
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = matrix
    file.write_bytes(content)
    frame = pixels(read_clip(file, 1)[0])[..., 0]
    upright = np.rot90(seen[..., 0], -angle // 90)  # the header turns clockwise
    assert frame.shape == upright.shape and np.abs(frame - upright).mean() < 8
