"""The windows that a network sees: in exact fractions by slow loops, and how the random ones are distributed."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from alexnet_resnet.data import draws, views

# Height and width: usual ones, extreme ones, and those that round badly.
SIZES = [(1, 1), (1, 2), (1, 9), (7, 1), (1, 1000), (2, 2), (3, 5), (20, 3000), (3000, 20), (31, 32), (33, 32)]
SIZES += [(32, 47), (100, 99), (223, 224), (224, 224), (225, 400), (255, 256), (256, 256), (256, 341), (257, 256)]
SIZES += [(375, 500), (500, 375), (500, 500), (480, 640), (511, 513), (1000, 667), (2848, 4288), (4096, 256)]


def random_sizes(count, most=700, seed=0):
    random = np.random.default_rng(seed)
    sizes = np.rint(np.exp(random.uniform(0, np.log(most), (count, 2)))).astype(np.int64)
    sizes[: len(SIZES)] = SIZES[:count]
    return sizes


def half_up(number: Fraction) -> int:
    return math.floor(number + Fraction(1, 2))


def span(offset, size, scale: Fraction, limit) -> tuple[int, int]:
    """Where `size` pixels at `offset` of an image enlarged by `scale` begin and how many of its own pixels they are."""
    begin = min(half_up(offset / scale), limit - 1)
    end = min(max(half_up((offset + size) / scale), begin + 1), limit)
    return begin, end - begin


def canvas_window(height, width, offset, size, canvas):
    shorter = min(height, width)
    (top, high), (left, wide) = (span(int(o), size, Fraction(canvas, shorter), shorter) for o in offset)
    return [(height - shorter) // 2 + top, (width - shorter) // 2 + left, high, wide]


def assert_inside(windows, heights, widths):
    assert windows.dtype.kind == "i" and windows.shape == (len(heights), 4)
    top, left, high, wide = windows.T
    assert top.min() >= 0 and left.min() >= 0 and high.min() >= 1 and wide.min() >= 1
    assert (top + high <= heights).all() and (left + wide <= widths).all()


def assert_uniform(counts):
    """Chi-square of equally probable cells, from both sides: neither too uneven nor more even than chance."""
    share = stats.chisquare(np.ravel(counts)).pvalue
    assert 1e-6 < share < 1 - 1e-6, share


def some_draws(count, first=0):
    """Epochs and rows of as many uses of images."""
    epochs, rows = np.divmod(np.arange(first, first + count), 1000)
    return epochs, rows


@pytest.mark.parametrize(("size", "canvas"), [(224, 256), (227, 256), (256, 256), (32, 40), (28, 31), (8, 480), (1, 1)])
def test_canvas_windows_are_those_of_exact_fractions(size, canvas):
    heights, widths = random_sizes(300).T
    offsets = np.random.default_rng(1).integers(0, canvas - size, (300, 2), endpoint=True)
    offsets[:60:2], offsets[1:60:2] = 0, canvas - size
    windows = views.canvas_windows(heights, widths, offsets, size, canvas)
    assert_inside(windows, heights, widths)
    wanted = [canvas_window(*map(int, hw), o, size, canvas) for *hw, o in zip(heights, widths, offsets, strict=True)]
    np.testing.assert_array_equal(windows, wanted)
    # No edge is further than half a pixel from where it belongs, but for images of so few pixels that one is left.
    shorter = np.minimum(heights, widths)[:, None]
    corner = (np.stack([heights, widths], 1) - shorter) // 2
    for edge, of in ((windows[:, :2], offsets), (windows[:, :2] + windows[:, 2:], offsets + size)):
        off = np.abs(edge - corner - of * shorter / canvas)
        assert off[np.broadcast_to(shorter * size >= canvas, off.shape)].max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 400), (401, 256), (256, 257), (3000, 256)])
def test_an_image_with_the_canvass_shorter_side_is_cropped_and_not_resized(height, width):
    y, x = np.mgrid[0:33, 0:33].reshape(2, -1)
    heights, widths = np.full(y.shape, height), np.full(y.shape, width)
    windows = views.canvas_windows(heights, widths, np.stack([y, x], 1), 224, 256)
    top, left = (height - 256) // 2, (width - 256) // 2
    np.testing.assert_array_equal(windows, np.stack([top + y, left + x, 0 * y + 224, 0 * x + 224], 1))


def test_the_crops_of_a_canvas_reach_all_of_its_square_and_nothing_else():
    for height, width in SIZES:
        corners = np.array([[0, 0], [0, 32], [32, 0], [32, 32]])
        windows = views.canvas_windows(np.full(4, height), np.full(4, width), corners, 224, 256)
        shorter = min(height, width)
        assert windows[0, 0] == (height - shorter) // 2 and windows[0, 1] == (width - shorter) // 2
        assert windows[3, 0] + windows[3, 2] == (height - shorter) // 2 + shorter
        assert windows[3, 1] + windows[3, 3] == (width - shorter) // 2 + shorter


def scale_window(height, width, side, words, size):
    window = []
    for extent, word in zip((height, width), words, strict=True):
        scale = Fraction(side, min(height, width))
        scaled = max(side, half_up(extent * scale))
        window.append(span(word % (scaled - size + 1), size, scale, extent))
    (top, high), (left, wide) = window
    return [top, left, high, wide]


@pytest.mark.parametrize("sides", [(256, 480), (256, 256), (224, 224), (224, 225), (480, 640)])
def test_scale_windows_are_those_of_exact_fractions(sides):
    heights, widths = random_sizes(300, 5000, seed=2).T
    epochs, rows = some_draws(300)
    windows = views.scale_windows(heights, widths, 8, epochs, rows, 224, sides)
    assert_inside(windows, heights, widths)
    side, top, left = (draws.words(8, epochs, rows, p)[0] for p in (draws.SIDE, draws.TOP, draws.LEFT))
    wanted = [
        scale_window(h, w, sides[0] + s % (sides[1] - sides[0] + 1), (y, x), 224)
        for h, w, s, y, x in np.stack([heights, widths, side, top, left], 1).tolist()
    ]
    np.testing.assert_array_equal(windows, wanted)
    # A window is a square, but for the rounding to the image's own pixels and to the view's.
    shorter = np.minimum(heights, widths)
    assert (np.abs(windows[:, 2] - windows[:, 3]) <= 1 + np.ceil(shorter / sides[0] / 2)).all()


def test_the_scale_is_uniform_over_every_side_of_the_range():
    count, shorter = 90_000, 10**7
    epochs, rows = some_draws(count)
    # Of an image that is this large, a window's height says exactly which side was drawn.
    windows = views.scale_windows(
        np.full(count, shorter), np.full(count, 2 * shorter), 1, epochs, rows, 224, (256, 480)
    )
    side = np.rint(224 * shorter / windows[:, 2]).astype(int)
    assert side.min() == 256 and side.max() == 480
    assert_uniform(np.bincount(side - 256, minlength=225))
    # Given the side, all positions in the whole rescaled image are equally probable, on both axes, independently.
    offsets = np.rint(windows[:, :2] * side[:, None] / shorter).astype(int)
    room = np.stack([side, 2 * side], 1) - 224
    assert (offsets >= 0).all() and (offsets <= room).all()
    for axis in (0, 1):
        assert (offsets[:, axis] == 0).any() and (offsets[:, axis] == room[:, axis]).any()
    spread = (offsets + np.random.default_rng(0).uniform(size=offsets.shape)) / (room + 1)
    cells = np.histogramdd(np.column_stack([spread, side]), (8, 8, 5), [(0, 1), (0, 1), (256, 481)])[0]
    assert_uniform(cells)


@pytest.mark.parametrize(("height", "width", "highest"), [(300, 400, (76, 176)), (400, 300, (176, 76))])
def test_each_position_at_one_scale_is_equally_probable(height, width, highest):
    count = 60_000
    epochs, rows = some_draws(count)
    windows = views.scale_windows(np.full(count, height), np.full(count, width), 2, epochs, rows, 224, (300, 300))
    # The image has that scale already: windows are crops, pixel for pixel.
    assert (windows[:, 2:] == 224).all()
    for axis in (0, 1):
        counts = np.bincount(windows[:, axis])
        assert len(counts) == highest[axis] + 1
        assert_uniform(counts)
    assert abs(np.corrcoef(windows[:, 0], windows[:, 1])[0, 1]) < 6 / count**0.5


AREAS, ASPECTS = (0.08, 1.0), (3 / 4, 4 / 3)


def area_window(height, width, seed, epoch, row, areas=AREAS, aspects=ASPECTS):
    """The same by a loop; None where no attempt fits."""
    one = lambda purpose: [int(w[0]) for w in draws.words(seed, np.array([epoch]), np.array([row]), purpose)]  # noqa: E731
    for attempt in range(10):
        area, aspect = (word / 2**32 for word in one(32 + 2 * attempt))
        y, x = one(33 + 2 * attempt)
        pixels = height * width * (areas[0] + area * (areas[1] - areas[0]))
        ratio = aspects[0] * (aspects[1] / aspects[0]) ** aspect
        high, wide = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 1 <= high <= height and 1 <= wide <= width:
            return [y % (height - high + 1), x % (width - wide + 1), high, wide]
    return None


def test_area_windows_are_a_loops_and_always_inside():
    heights, widths = random_sizes(400, 3000, seed=3).T
    epochs, rows = some_draws(400)
    windows = views.area_windows(heights, widths, 4, epochs, rows, AREAS, ASPECTS)
    assert_inside(windows, heights, widths)
    found = 0
    for window, *hwer in zip(windows.tolist(), heights, widths, epochs, rows, strict=True):
        height, width, epoch, row = map(int, hwer)
        if (wanted := area_window(height, width, 4, epoch, row)) is not None:
            assert window == wanted
            found += 1
    assert 150 < found < 400


def test_area_and_aspect_are_uniform_among_those_that_fit():
    count, side = 60_000, 10**6
    epochs, rows = some_draws(count)
    windows = views.area_windows(np.full(count, side), np.full(count, side), 5, epochs, rows, AREAS, ASPECTS)
    assert_inside(windows, np.full(count, side), np.full(count, side))
    top, left, high, wide = windows.T.astype(float)
    area, aspect = high * wide / side**2, np.log(wide / high) / np.log(4 / 3)
    assert area.min() > 0.08 - 1e-5 and area.max() < 1 + 1e-5 and np.abs(aspect).max() < 1 + 1e-4
    # Below 3/4 of a square every aspect fits.
    free = area < 0.75
    assert_uniform(np.histogram2d(area[free], aspect[free], (10, 10), [(0.08, 0.75), (-1, 1)])[0])
    # Above it those aspects whose longer side fits: area * max(aspect, 1 / aspect) <= 1.
    above = 0.25 - 0.75 * math.log(4 / 3)
    expected = above / math.log(4 / 3) / (0.67 + above / math.log(4 / 3))
    assert abs((~free).mean() - expected) < 6 * (expected * (1 - expected) / count) ** 0.5
    assert (np.log(area) + np.abs(aspect) * np.log(4 / 3) < 1e-5).all()
    # And the position is uniform over all that are possible.
    room = np.stack([side - high, side - wide], 1)
    place = (np.stack([top, left], 1) / np.maximum(room, 1))[free]
    assert_uniform(np.histogram2d(*place.T, (9, 9), [(0, 1), (0, 1)])[0])
    together = np.corrcoef(np.column_stack([place, area[free], aspect[free]]).T)
    assert np.abs(together - np.eye(4)).max() < 6 / free.sum() ** 0.5


def test_small_images_have_every_position_of_a_window():
    count = 20_000
    epochs, rows = some_draws(count)
    windows = views.area_windows(np.full(count, 6), np.full(count, 6), 5, epochs, rows, (0.25, 0.25), (1, 1))
    assert (windows[:, 2:] == 3).all()
    assert_uniform(np.bincount(windows[:, 0] * 4 + windows[:, 1], minlength=16))


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [
        # Too long for any aspect that is allowed: the largest window in the middle that has one.
        (1, 1000, (0, 499, 1, 1)),
        (1000, 1, (499, 0, 1, 1)),
        (3, 1000, (0, 498, 3, 4)),
        (1000, 3, (498, 0, 4, 3)),
        (20, 3000, (0, 1486, 20, 27)),
        (3000, 20, (1486, 0, 27, 20)),
    ],
)
def test_without_an_attempt_that_fits_it_is_the_largest_window_in_the_middle(height, width, window):
    epochs, rows = some_draws(200)
    sizes = np.full(200, height), np.full(200, width)
    windows = views.area_windows(*sizes, 0, epochs, rows, (0.9, 1.0), ASPECTS)
    np.testing.assert_array_equal(windows, np.broadcast_to(window, (200, 4)))
    # An image whose own aspect is allowed is taken whole.
    square = np.full(200, 37)
    windows = views.area_windows(square, square, 0, epochs, rows, (1.0, 1.0), (1.2, 1.3))
    assert (windows == [0, 4, 37, 37]).all() or (windows[:, 3] == 37).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 3)])
def test_the_smallest_images_have_area_windows(height, width):
    epochs, rows = some_draws(500)
    sizes = np.full(500, height), np.full(500, width)
    assert_inside(views.area_windows(*sizes, 0, epochs, rows, AREAS, ASPECTS), *sizes)


@pytest.mark.parametrize(
    ("canvas", "size", "middle"), [(256, 224, 16), (256, 227, 14), (36, 32, 2), (33, 32, 0), (32, 32, 0), (40, 29, 5)]
)
def test_ten_crops_are_the_corners_and_the_centre_and_their_mirror_images(canvas, size, middle):
    far = canvas - size
    places = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
    crops = views.ten_crops(canvas, size)
    assert crops == [(*place, False) for place in places] + [(*place, True) for place in places]
    image = np.random.default_rng(0).integers(0, 256, (canvas, canvas))
    seen = [image[top : top + size, left : left + size] for top, left, _ in crops]
    corners = image[:size, :size], image[:size, -size:], image[-size:, :size], image[-size:, -size:]
    for number, corner in enumerate(corners):
        np.testing.assert_array_equal(seen[number], corner)
        np.testing.assert_array_equal(seen[5 + number], corner)


@pytest.mark.parametrize(
    ("canvas", "size", "places"),
    [(32, 24, (0, 4, 8)), (256, 224, (0, 16, 32)), (33, 24, (0, 4, 9)), (26, 24, (0, 1, 2))],
)
def test_nine_crops_are_a_grid_from_edge_to_edge(canvas, size, places):
    crops = views.nine_crops(canvas, size)
    assert crops == [(top, left, False) for top in places for left in places]
    assert len(set(crops)) == 9 and max(crops)[:2] == (canvas - size,) * 2


@pytest.mark.parametrize("side", [224, 256, 384, 480, 640])
def test_whole_images_have_few_shapes_and_lie_in_the_middle(side):
    shapes = set()
    for height, width in random_sizes(300, 3000, seed=side).tolist():
        (top, left, high, wide), size = views.whole_image(height, width, side)
        assert all(isinstance(number, int) for number in (top, left, high, wide, *size))
        shapes.add(size)
        shorter, longer = sorted((height, width))
        assert 0 <= top < top + high <= height and 0 <= left < left + wide <= width
        # Only the longer side is cut.
        begin, extent, kept = (left, wide, size[1]) if height <= width else (top, high, size[0])
        assert min(size) == side and min(high, wide) == (shorter if extent >= shorter else extent)
        assert (top, high) == (0, height) if height <= width else (left, wide) == (0, width)
        assert kept % 32 == 0 and side <= kept <= 2 * side
        # As much as there is, in steps of 32 and to twice the side.
        scale = Fraction(side, shorter)
        scaled = half_up(longer * scale)
        assert kept == max(side, min(scaled - scaled % 32, 2 * side))
        assert (begin, extent) == span((scaled - kept) // 2, kept, scale, longer)
        # In the middle to a pixel of the view's or the image's, and in proportion to a pixel of the image's.
        assert abs((begin + Fraction(extent, 2)) - Fraction(longer, 2)) <= Fraction(1, 2) + max(1, 1 / scale)
        assert abs(extent - kept / scale) <= 1 or extent == 1
    assert len(shapes) <= 2 * (side // 32) + 1


@pytest.mark.parametrize(
    ("height", "width", "side", "window", "size"),
    [
        (256, 256, 256, (0, 0, 256, 256), (256, 256)),
        (375, 500, 224, (0, 8, 375, 483), (224, 288)),
        (500, 375, 224, (8, 0, 483, 375), (288, 224)),
        (256, 287, 256, (0, 15, 256, 256), (256, 256)),
        (256, 288, 256, (0, 0, 256, 288), (256, 288)),
        (1000, 100, 640, (400, 0, 200, 100), (1280, 640)),
    ],
)
def test_whole_images_by_hand(height, width, side, window, size):
    assert views.whole_image(height, width, side) == (window, size)


@pytest.mark.parametrize("side", [225, 250, 32, 33])
def test_whole_images_at_a_side_that_is_no_multiple_of_32_keep_at_least_that_side(side):
    for height, width in SIZES:
        (top, left, high, wide), size = views.whole_image(height, width, side)
        assert min(size) == side and max(size) <= 2 * side
        assert max(size) in (side, 2 * side) or max(size) % 32 == 0
        assert top + high <= height and left + wide <= width and high >= 1 and wide >= 1


@pytest.mark.parametrize("size", [1, 32, 224, 320])
def test_the_decoder_scales_down_as_far_as_pixels_are_left_and_covers_the_window(size):
    random = np.random.default_rng(size)
    heights, widths = random.integers(1, 30 * size, (2, 4000), endpoint=True)
    top, left = (random.integers(0, (extents + 1) // 2) for extents in (heights, widths))
    high, wide = random.integers(1, heights - top, endpoint=True), random.integers(1, widths - left, endpoint=True)
    windows = np.stack([top, left, high, wide], 1)
    reductions = views.reduction(windows, size)
    assert set(reductions.tolist()) <= {1, 2, 4, 8} and len(set(reductions.tolist())) == 4
    reduced = views.reduced(windows, reductions, heights, widths)
    # A decoder that scales down by 2, 4 or 8 rounds its image's sides up.
    assert_inside(reduced, -(-heights // reductions), -(-widths // reductions))
    for window, small, factor in zip(windows.tolist(), reduced.tolist(), reductions.tolist(), strict=True):
        least = Fraction(min(window[2:]), factor)
        assert factor == 1 or least >= size
        assert factor == 8 or least < 2 * size
        for begin, extent, small_begin, small_extent in zip(
            *(window[:2], window[2:], small[:2], small[2:]), strict=True
        ):
            assert factor * small_begin <= begin and factor * (small_begin + small_extent) >= begin + extent
            # Rounded outwards by less than a pixel on either side.
            assert begin - factor * small_begin < factor
            assert factor * (small_begin + small_extent) - begin - extent < factor
            assert factor == 1 or small_extent >= size


def test_reductions_of_a_window_for_sides_of_their_own():
    windows = np.array([[0, 0, 100, 400]] * 3)
    assert views.reduction(windows, np.array([[50, 50], [25, 50], [10, 100]])).tolist() == [2, 4, 4]
