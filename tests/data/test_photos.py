"""Pictures as people have them become the bytes that a network sees."""

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.data import labels, photos
from alexnet_resnet.errors import UserError

RED = np.zeros((6, 9, 3), np.uint8) + np.array([200, 30, 10], np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return str(path)


def test_rgb_is_taken_as_it_is(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    np.testing.assert_array_equal(photos.read(save(tmp_path / "a.png", Image.fromarray(noise))), noise)


def test_grey_has_three_equal_channels_or_one(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(np.full((6, 9), 77, np.uint8)))
    assert photos.read(path).shape == (6, 9, 3) and (photos.read(path) == 77).all()
    assert photos.read(path, channels=1).shape == (6, 9, 1) and (photos.read(path, channels=1) == 77).all()


def test_cmyk_is_converted(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(RED).convert("CMYK"), quality=100)
    assert np.abs(photos.read(path).astype(int) - RED).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    rgba = np.dstack([RED, np.zeros((6, 9), np.uint8)])
    image = Image.fromarray(rgba)
    if mode == "P":
        image = Image.new("P", (9, 6), 0)
        image.info["transparency"] = 0
        path = save(tmp_path / "a.png", image, transparency=0)
    else:
        path = save(tmp_path / "a.png", image.convert(mode))
    assert (photos.read(path) == 255).all()


def test_half_transparent_is_halfway_to_white(tmp_path):
    rgba = np.dstack([RED, np.full((6, 9), 128, np.uint8)])
    out = photos.read(save(tmp_path / "a.png", Image.fromarray(rgba))).astype(float)
    expected = RED.astype(float) * 128 / 255 + 255 * 127 / 255
    assert np.abs(out - expected).max() <= 1


def test_sixteen_bits_are_scaled(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(np.full((6, 9), 257 * 40, np.uint16)))
    assert (photos.read(path) == 40).all()


def test_dark_sixteen_bits_stay_dark(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(np.full((6, 9), 200, np.uint16)))
    assert (photos.read(path) == 0).all()


def test_a_palette_is_looked_up(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(RED).quantize(4))
    assert np.abs(photos.read(path).astype(int) - RED).max() <= 4


def test_a_turned_camera_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    path = save(tmp_path / "a.jpg", Image.fromarray(RED), exif=exif)
    assert photos.read(path).shape == (9, 6, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut off"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(photos.BrokenImage, match=r"a\.jpg: not an image"):
        photos.read(str(path))


def test_a_truncated_image_is_broken(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(photos.BrokenImage):
        photos.read(str(path))


def test_files_folders_and_patterns_are_found_once(tmp_path):
    (tmp_path / "sub").mkdir()
    names = ["b.jpg", "a.PNG", "sub/c.jpeg"]
    for name in [*names, "notes.txt"]:
        (tmp_path / name).write_bytes(b"")
    wanted = sorted(str(tmp_path / name) for name in names)
    assert photos.find([str(tmp_path)]) == wanted
    assert photos.find([str(tmp_path / "*.jpg"), str(tmp_path / "b.jpg")]) == [str(tmp_path / "b.jpg")]
    assert photos.find([str(tmp_path / "**" / "*.jpeg")]) == [str(tmp_path / "sub" / "c.jpeg")]


@pytest.mark.parametrize("name", ["missing.jpg", "*.gif", "empty"])
def test_a_path_that_names_nothing_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected a file, a folder with images or a pattern"):
        photos.find([str(tmp_path / name)])


@pytest.mark.parametrize(("height", "width"), [(50, 80), (80, 50), (20, 31), (32, 32)])
def test_the_central_square_keeps_the_centre(height, width):
    ramp = np.zeros((height, width, 3))
    ramp[..., 0] = np.linspace(0, 255, height)[:, None]
    ramp[..., 1] = np.linspace(0, 255, width)[None]
    square = photos.centre_square(ramp.astype(np.uint8), 32)
    assert square.shape == (32, 32, 3)
    # The middle of the ramp stays in the middle, and the longer side loses the same at both ends.
    assert abs(square[15:17, :, 0].mean() - 127.5) < 4 and abs(square[:, 15:17, 1].mean() - 127.5) < 4
    longer = 0 if height > width else 1
    lost = 127.5 * (1 - min(height, width) / max(height, width))
    ends = (square[0, 16], square[-1, 16]) if longer == 0 else (square[16, 0], square[16, -1])
    assert abs(ends[0][longer] - lost) < 8 and abs(255 - ends[1][longer] - lost) < 8


@pytest.mark.parametrize(("height", "width"), [(40, 70), (71, 40), (33, 32), (20, 16)])
def test_the_central_square_is_what_the_training_pipeline_makes(tmp_path, height, width):
    """The view that a network is asked with is the one that it was trained and judged with."""
    from alexnet_resnet import config as config_lib
    from alexnet_resnet.data import loaders
    from alexnet_resnet.data.examples import EncodedExamples, InMemory

    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) * 127 / (height + width)], -1)
    path = save(tmp_path / "a.png", Image.fromarray(smooth.astype(np.uint8)))
    data = config_lib.default("resnet_cifar").data
    data.update(canvas_size=32, image_size=32)
    with open(path, "rb") as file:
        examples = EncodedExamples(InMemory([file.read()], [0]), range(1), ("a", "b"), "one")
    (batch,) = loaders.create(data, examples).evaluation_batches(1)
    difference = np.abs(photos.centre_square(photos.read(path), 32).astype(int) - batch["image"][0])
    # The two round differently, and training cuts at whole pixels of the image before it resizes: half a pixel at most.
    assert difference.max() <= 2 + 0.5 * 255 / min(height, width)


def test_imagenet_has_a_thousand_different_names():
    names = labels.imagenet()
    assert len(names) == 1000 == len(set(names))
    assert (names[0], names[207], names[817], names[999]) == (
        "tench",
        "golden retriever",
        "sports car",
        "toilet tissue",
    )


def test_wordnet_numbers_become_words_and_others_stay():
    numbers = ("n02099601", "n01440764", "n00000000", "cat")
    assert labels.readable(numbers) == ("golden retriever", "tench", "n00000000", "cat")


def test_label_files_are_read_and_counted(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog\n")
    assert labels.read(str(path), 2) == ("cat", "dog")
    with pytest.raises(UserError, match="expected 3 names, one for each class, found 2"):
        labels.read(str(path), 3)
    with pytest.raises(UserError, match="expected a text file"):
        labels.read(str(tmp_path / "missing"), 2)
