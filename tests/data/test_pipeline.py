"""The tf.data pipeline against numpy, pixel for pixel, and what it does with images that cannot be read."""

import io
import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet import config as config_lib
from alexnet_resnet.data import faults, loaders, normalisation, plan, reading, views
from alexnet_resnet.data.examples import EncodedExamples, Examples, InMemory
from alexnet_resnet.errors import UserError


def make_data(canvas, image, **fields):
    data = config_lib.default("resnet_cifar").data
    data.update(canvas_size=canvas, image_size=image, **fields)
    return data


def array_examples(count=13, height=6, width=7, channels=3):
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, channels)).astype(np.uint8)
    return Examples(images, (np.arange(count) % 5).astype(np.int32), tuple("abcde"), "random")


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} | options if kind == "JPEG" else options
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encoded_examples(images, labels=None):
    labels = np.arange(len(images)) % 5 if labels is None else labels
    return EncodedExamples(InMemory(images, labels), range(len(images)), tuple("abcde"), "some")


def smooth(height, width):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [rows * 255 / height, columns * 255 / width, 127 * (1 + np.sin(rows / 9 + columns / 7))]
    return np.stack(waves, -1).astype(np.uint8)


def photographs(count=10):
    random = np.random.default_rng(1)
    return [encode(smooth(*random.integers(40, 90, 2))) for _ in range(count)]


def bilinear(window, size):
    """Half-pixel bilinear interpolation without any widening of its filter, in float64."""

    def along(array, axis):
        extent = array.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * extent / size - 0.5, 0, extent - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape([-1 if i == axis else 1 for i in range(3)])
        return np.take(array, low, axis) * (1 - share) + np.take(array, np.minimum(low + 1, extent - 1), axis) * share

    return along(along(window.astype(np.float64), 0), 1)


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("channels", [1, 3])
def test_training_crops_of_arrays_are_numpys(channels):
    data, examples = make_data(12, 8, random_crop=True, random_flip=True), array_examples(channels=channels)
    wanted = plan.training_batches(data, len(examples), 4, seed=1)
    batches = loaders.create(data, examples).training_batches(4, seed=1)
    for batch, expected in itertools.islice(zip(batches, wanted, strict=False), 8):
        np.testing.assert_array_equal(batch["label"], examples.labels[expected.rows])
        for name, field in (("row", "rows"), ("epoch", "epochs"), ("offset", "offsets"), ("flip", "flips")):
            np.testing.assert_array_equal(batch[name], getattr(expected, field))
        assert batch["image"].dtype == np.uint8 and batch["valid"].all()
        for image, row, (top, left) in zip(batch["image"], expected.rows, expected.offsets, strict=True):
            canvas = np.pad(examples.images[row], ((3, 3), (2, 3), (0, 0)))
            np.testing.assert_array_equal(image, canvas[top : top + 8, left : left + 8])


@pytest.mark.parametrize("view", ["canvas", "scale", "area"])
def test_training_views_of_photographs_are_numpys(view):
    """Each view is its window, decoded by PIL as a whole, cut, and resized bilinearly in float64."""
    fields = dict(view=view, random_crop=True, mean="per_channel", scale_range=(32, 60))
    data, images = make_data(32, 24, **fields), photographs()
    pixels = [np.asarray(Image.open(io.BytesIO(image))) for image in images]
    sizes = np.array([picture.shape[:2] for picture in pixels])
    for batch in itertools.islice(loaders.create(data, encoded_examples(images)).training_batches(5, seed=3), 6):
        rows, epochs = batch["row"], batch["epoch"]
        heights, widths = sizes[rows].T
        windows = {
            "canvas": lambda: views.canvas_windows(heights, widths, batch["offset"], 24, 32),  # noqa: B023
            "scale": lambda: views.scale_windows(heights, widths, 3, epochs, rows, 24, (32, 60)),  # noqa: B023
            "area": lambda: views.area_windows(heights, widths, 3, epochs, rows, (0.08, 1), (3 / 4, 4 / 3)),  # noqa: B023
        }[view]()
        for image, row, (top, left, height, width), factor in zip(
            batch["image"], rows, windows, views.reduction(windows, 24), strict=True
        ):
            part = pixels[row][top : top + height, left : left + width]
            if factor == 1:
                # Rounding, and the decoder's colour smoothing across the window's edge.
                difference = np.abs(image - bilinear(part, 24))
                assert difference[1:-1, 1:-1].max() <= 1.01 and difference.max() < 12
            else:
                halved = np.asarray(Image.fromarray(part).resize((24, 24), Image.Resampling.BOX), np.float64)
                assert np.abs(image - halved).mean() < 6
        np.testing.assert_array_equal(batch["label"], rows % 5)


def test_a_prepared_image_is_cut_and_nothing_else():
    data, image = make_data(64, 48, random_crop=True), encode(smooth(64, 80))
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    batch = next(loaders.create(data, encoded_examples([image] * 8)).training_batches(8, seed=0))
    for view, (top, left) in zip(batch["image"], batch["offset"], strict=True):
        np.testing.assert_array_equal(view, pixels[top : top + 48, 8 + left : 8 + left + 48])


def test_a_large_jpeg_is_halved_by_its_decoder_before_it_is_resized():
    """Stripes of one pixel would leave a pattern if pixels were skipped."""
    stripes = np.repeat(np.tile(np.array([0, 255], np.uint8), 300)[None, :, None], 600, 0).repeat(3, 2)
    for antialias in (False, True):
        data = make_data(64, 64, antialias=antialias)
        (batch,) = loaders.create(data, encoded_examples([encode(stripes)])).evaluation_batches(1)
        assert np.abs(batch["image"][0].astype(int) - 127).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width"), [(40, 70), (70, 40), (33, 32), (16, 16)])
def test_an_evaluation_sees_the_centre_of_the_image_brought_to_its_canvas(kind, antialias, height, width):
    image = smooth(height, width)
    data = make_data(32, 32, antialias=antialias)
    (batch,) = loaders.create(data, encoded_examples([encode(image, kind)])).evaluation_batches(1)
    shorter = min(height, width)
    top, left = (height - shorter) // 2, (width - shorter) // 2
    square = Image.fromarray(image[top : top + shorter, left : left + shorter])
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    # JPEG is lossy and the filters differ; a shift by one pixel would be 5 levels or more.
    assert np.abs(batch["image"][0] - expected).mean() < 2.5


def test_a_resumed_pipeline_gives_the_same_batches_and_reads_nothing_before_them():
    class Counted(InMemory):
        rows = []

        def read(self, row):
            self.rows.append(row)
            return super().read(row)

    data, images = make_data(32, 24, random_crop=True, random_flip=True), photographs(30)
    whole = list(loaders.create(data, encoded_examples(images)).training_batches(4, 0, stop_step=9))
    store = Counted(images, np.arange(30) % 5)
    examples = EncodedExamples(store, range(30), tuple("abcde"), "some")
    resumed = list(loaders.create(data, examples).training_batches(4, 0, start_step=6, stop_step=9))
    assert len(whole) == 9 and len(resumed) == 3
    for one, other in zip(whole[6:], resumed, strict=True):
        same(one, other)
    assert set(store.rows) == set(np.concatenate([batch["row"] for batch in resumed]).tolist())


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_their_shares_and_together_every_example_once(hosts):
    data, examples = make_data(32, 24, random_crop=True, random_flip=True), encoded_examples(photographs(19))
    whole = list(loaders.create(data, examples).training_batches(8, 0, stop_step=19))
    shares = [slice(8 // hosts * host, 8 // hosts * (host + 1)) for host in range(hosts)]
    parts = [list(loaders.create(data, examples).training_batches(8, 0, 0, 19, share)) for share in shares]
    for batch, *pieces in zip(whole, *parts, strict=True):
        same(batch, {name: np.concatenate([piece[name] for piece in pieces]) for name in batch})
    rows = np.concatenate([batch["row"] for batch in whole])
    for epoch in range(8):
        assert sorted(rows[19 * epoch : 19 * epoch + 19]) == list(range(19))
    judged = [list(loaders.create(data, examples).evaluation_batches(8, share)) for share in shares]
    seen = [batch["row"][batch["valid"]] for batches in judged for batch in batches]
    assert sorted(np.concatenate(seen).tolist()) == list(range(19))


@pytest.mark.parametrize("batch_size", [1, 4, 13, 32])
def test_an_evaluation_yields_every_example_once_with_its_label(batch_size):
    data, examples = make_data(8, 8), array_examples()
    batches = list(loaders.create(data, examples).evaluation_batches(batch_size))
    images = np.concatenate([b["image"][b["valid"]] for b in batches])
    labels = np.concatenate([b["label"][b["valid"]] for b in batches])
    np.testing.assert_array_equal(labels, examples.labels)
    np.testing.assert_array_equal(images, np.pad(examples.images, ((0, 0), (1, 1), (0, 1), (0, 0))))


def test_images_of_every_kind_become_rgb():
    grey, colours = Image.fromarray(np.full((32, 32), 77, np.uint8)), np.full((32, 32, 4), 50, np.uint8)
    colours[..., 3] = 255
    cmyk = Image.merge("CMYK", [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (200, 100, 50, 0)])
    kinds = {
        "grey PNG": (encode(grey, "PNG"), (77, 77, 77)),
        "grey JPEG": (encode(grey, subsampling=-1), (77, 77, 77)),
        "PNG named .JPEG": (encode(colours[..., :3], "PNG"), (50, 50, 50)),
        "with transparency": (encode(colours, "PNG"), (50, 50, 50)),
        "CMYK JPEG": (encode(cmyk, subsampling=-1), (55, 155, 205)),
        "GIF": (encode(grey, "GIF"), (77, 77, 77)),
        "1x1": (encode(np.full((1, 1, 3), 90, np.uint8)), (90, 90, 90)),
        "1 pixel high": (encode(np.full((1, 500, 3), 90, np.uint8)), (90, 90, 90)),
    }
    data = make_data(32, 24, random_crop=True)
    for view in ("canvas", "scale", "area"):
        data.update(view=view, mean="none")
        loader = loaders.create(data, encoded_examples([image for image, _ in kinds.values()]))
        batch = next(loader.training_batches(len(kinds), 0))
        assert batch["valid"].all() and not len(loader.faults)
        for image, row in zip(batch["image"], batch["row"], strict=True):
            name, (_, colour) = list(kinds.items())[row]
            assert np.abs(image.astype(int) - colour).max() <= 3, (view, name)


GOOD = encode(smooth(40, 40))
BROKEN = {
    "truncated": GOOD[: len(GOOD) // 2],
    "no image": b"this is no image",
    "empty": b"",
    "header only": GOOD[:30],
    "truncated PNG": encode(smooth(40, 40), "PNG")[:200],
    "damaged": GOOD[:200] + bytes(300) + GOOD[500:],
}


@pytest.mark.parametrize("broken", [name for name in BROKEN if name != "damaged"])
def test_one_bad_file_is_counted_and_the_run_goes_on(broken):
    images = photographs(20)
    images[7] = BROKEN[broken]
    data = make_data(32, 24, random_crop=True, random_flip=True, max_unreadable=0.05)
    loader = loaders.create(data, encoded_examples(images))
    clean = loaders.create(data, encoded_examples(photographs(20)))
    assert loader.faults.new() == []
    for batch, expected in zip(
        loader.training_batches(6, 0, stop_step=12), clean.training_batches(6, 0, stop_step=12), strict=True
    ):
        bad = batch["row"] == 7
        np.testing.assert_array_equal(batch["valid"], ~bad)
        np.testing.assert_array_equal(batch["image"][~bad], expected["image"][~bad])
        np.testing.assert_array_equal(batch["row"], expected["row"])
    assert len(loader.faults) == 1 and 7 in loader.faults
    (reason,) = loader.faults.new()
    assert reason.startswith("image 7: ")
    assert loader.faults.summary([reason]) == f"some: 1 of 20 images cannot be read; new: {reason}"
    assert loader.faults.new() == [], "told once"
    judged = list(loader.evaluation_batches(6))
    assert sum(batch["valid"].sum() for batch in judged) == 19


def test_a_jpeg_damaged_inside_is_decoded_or_counted_but_ends_nothing():
    images = [*photographs(19), BROKEN["damaged"]]
    loader = loaders.create(make_data(32, 24, max_unreadable=0.05), encoded_examples(images))
    assert len(list(loader.training_batches(5, 0, stop_step=8))) == 8


@pytest.mark.parametrize("view", ["canvas", "area"])
def test_a_truncated_jpeg_is_left_out_of_every_use_wherever_a_run_begins(view):
    """A crop above the cut could be decoded: what a run leaves out must not depend on what it has seen before."""
    images = photographs(12)
    images[5] = images[5][: int(0.7 * len(images[5]))]
    data = make_data(32, 24, view=view, random_crop=True, mean="none", max_unreadable=0.1)
    whole = list(loaders.create(data, encoded_examples(images)).training_batches(4, 0, stop_step=24))
    uses = np.concatenate([batch["row"][~batch["valid"]] for batch in whole])
    assert uses.tolist() == [5] * 8
    for start in range(0, 24, 5):
        for share in (slice(0, 2), slice(2, 4)):
            batches = loaders.create(data, encoded_examples(images)).training_batches(4, 0, start, start + 3, share)
            for batch, expected in zip(batches, whole[start:], strict=False):
                same(batch, {name: value[share] for name, value in expected.items()})


@pytest.mark.parametrize("ending", ["closed", "mended", "finished"])
def test_no_threads_are_left_behind(ending):
    images = photographs(12)
    if ending == "mended":
        # Its end is there but its beginning is not what a decoder takes: only decoding tells.
        images[3] = images[3].replace(b"\xff\xdb", b"\xff\xe5")
    data = make_data(32, 24, max_unreadable=0.1)
    for _ in range(6):
        loader = loaders.create(data, encoded_examples(images))
        batches = loader.training_batches(4, 0, stop_step=None if ending == "closed" else 6)
        if ending == "closed":
            next(batches)
            batches.close()
        else:
            assert len(list(batches)) == 6
        assert (len(loader.faults) == 1) == (ending == "mended")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("broken", ["truncated", "no image"])
def test_more_bad_files_than_allowed_end_the_run_with_a_line(broken):
    images = photographs(20)
    for index in (3, 9):
        images[index] = BROKEN[broken]
    data = make_data(32, 24, max_unreadable=0.05)
    with pytest.raises(UserError, match=r"data.max_unreadable=0.05: .* but 2 of 20 are, the last: image [39]"):
        list(loaders.create(data, encoded_examples(images)).training_batches(6, 0, stop_step=12))


def test_labels_without_a_class_are_bad_examples():
    data = make_data(32, 24, max_unreadable=1.0)
    loader = loaders.create(data, encoded_examples(photographs(3), [0, -1, 7]))
    (batch,) = loader.evaluation_batches(3)
    assert batch["valid"].tolist() == [True, False, False]
    assert "image 1: label -1, where there are 5 classes" in loader.faults.new()


def test_images_stay_in_memory_as_far_as_they_fit():
    class Counted(InMemory):
        reads = 0

        def read(self, row):
            Counted.reads += 1
            return super().read(row)

    images = photographs(10)
    examples = EncodedExamples(Counted(images, [0] * 10), range(10), ("a",), "some")
    room = sum(map(len, images[:4]))
    for cache, expected in ((0, 30), (room, None), (2**30, 10)):
        Counted.reads = 0
        reader = reading.Reader(examples, faults.Faults(examples, 0), cache)
        for _ in range(3):
            list(reader.batches(plan.evaluation_batches(10, 5, 0)))
        if expected is None:
            assert 10 < Counted.reads < 30 and sum(len(kept[0]) for kept in reader._kept.values()) <= room
        else:
            assert Counted.reads == expected


def test_an_error_of_the_reader_itself_comes_through_as_it_is():
    class Failing(InMemory):
        def read(self, row):
            raise ValueError("a mistake in the program")

    examples = EncodedExamples(Failing([b""] * 4, [0] * 4), range(4), ("a",), "some")
    with pytest.raises(ValueError, match="a mistake in the program"):
        list(loaders.create(make_data(32, 24), examples).evaluation_batches(2))


def test_a_mended_image_is_read_from_then_on():
    class Fussy:
        """A decoder that refuses one image, which PIL reads."""

        def __call__(self, image):
            raise ValueError("no")

    no_tables = GOOD.replace(b"\xff\xdb", b"\xff\xe5")  # PIL cannot do without them either
    examples = encoded_examples([GOOD, no_tables])
    reader = reading.Reader(examples, faults.Faults(examples, 1.0))
    assert reader.mend(0, Fussy()) and reader.mend(1, Fussy())
    assert not reader.mend(0, Fussy()), "a PNG now"
    ((_, read),) = reader.batches(plan.evaluation_batches(2, 2, 0))
    assert read.good.tolist() == [True, False] and read.images[0].startswith(b"\x89PNG")
    assert len(reader.faults) == 1 and 1 in reader.faults


def mean_of(data, examples):
    loader = loaders.create(data, examples)
    return normalisation.measure(
        data, examples, lambda rows: loader.evaluation_batches(4, rows=rows, whole_canvas=True)
    )[0]


def test_the_mean_image_is_numpys_inside_and_zero_in_the_frame():
    examples = array_examples(count=5000)
    mean = mean_of(make_data(10, 8, mean="per_pixel"), examples)
    expected = np.pad(examples.images.astype(np.float64).mean(0), ((2, 2), (1, 2), (0, 0)))
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    by_channel = mean_of(make_data(10, 8, mean="per_channel"), examples)
    np.testing.assert_allclose(by_channel[2:8, 1:8], np.broadcast_to(expected.sum((0, 1)) / 42, (6, 7, 3)), rtol=1e-6)
    assert by_channel[:2].sum() == 0
    assert mean_of(make_data(10, 8, mean="none"), examples).tolist() == [[[0, 0, 0]]]


def test_the_mean_of_some_examples_and_of_encoded_ones():
    examples = array_examples(count=100, height=8, width=8)
    few = mean_of(make_data(8, 8, mean_examples=2), examples)
    np.testing.assert_allclose(few, examples.images[[0, 99]].mean(0), rtol=1e-6)
    encoded = encoded_examples([encode(image, "PNG") for image in examples.images])
    np.testing.assert_allclose(mean_of(make_data(8, 8), encoded), examples.images.mean(0, dtype=np.float64), rtol=1e-6)


def test_a_mean_without_an_image_is_refused():
    data = make_data(8, 8, max_unreadable=1.0)
    with pytest.raises(UserError, match="some: expected an image that can be read for the mean, found none"):
        mean_of(data, encoded_examples([b"nothing"] * 3))


def test_unreadable_images_are_not_in_the_mean():
    examples = array_examples(count=5, height=8, width=8)
    images = [encode(image, "PNG") for image in examples.images]
    data = make_data(8, 8, max_unreadable=0.5)
    expected = np.delete(examples.images, 2, 0).mean(0, dtype=np.float64)
    images[2] = b"nothing"
    np.testing.assert_allclose(mean_of(data, encoded_examples(images)), expected, rtol=1e-6)


@pytest.mark.parametrize("encoded", [False, True])
def test_lighting_by_the_datasets_own_colours(encoded):
    from alexnet_resnet.ops import lighting

    examples = array_examples(count=40, height=8, width=8)
    given = encoded_examples([encode(image, "PNG") for image in examples.images]) if encoded else examples
    data = make_data(8, 8, lighting="as_run", lighting_statistics="dataset")
    loader = loaders.create(data, given)
    _, axes = normalisation.measure(
        data, given, lambda rows: loader.evaluation_batches(4, rows=rows, whole_canvas=True)
    )
    covariance = np.cov(examples.images.reshape(-1, 3).T.astype(np.float64), bias=True)
    np.testing.assert_allclose(axes.T @ axes, 0.01 * covariance, rtol=1e-5, atol=1e-3)
    data.lighting_statistics = "author"
    _, axes = normalisation.measure(data, array_examples(), list)
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 0.1 * np.sqrt(lighting.AUTHOR.eigenvalues), rtol=1e-5)


def test_the_resident_loader_refuses_images_of_any_size():
    with pytest.raises(UserError, match="data.loader='resident': expected 'tf' for some"):
        loaders.create(make_data(32, 24, loader="resident"), encoded_examples(photographs(2)))
