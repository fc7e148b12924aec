"""The parts of an image that a network sees, as windows of the encoded image's own pixels.

All of them are exact whole numbers, computed from the image's height and width before anything is decoded. A window is
(top, left, height, width); resized to the network's square it is the view.
"""

import numpy as np

from alexnet_resnet.data import draws

# Section 5 of the Inception paper (Szegedy et al. 2014) as its successors draw it: ten attempts, then the centre.
ATTEMPTS = 10
# The released networks halve their input five times: sides that are multiples of this are covered evenly.
STRIDE = 32
# What a JPEG decoder can scale an image down by, from its coefficients alone.
REDUCTIONS = (1, 2, 4, 8)


def canvas_windows(heights: np.ndarray, widths: np.ndarray, offsets: np.ndarray, size: int, canvas: int) -> np.ndarray:
    """The windows of crops from a square canvas: AlexNet's section 2, rescaled by the shorter side, cut to the centre.

    Args:
      heights: [N], of the images.
      widths: [N].
      offsets: [N, 2], each crop's corner on its canvas.
      size: the crop's side.
      canvas: the canvas's side, to which an image's shorter side is brought.

    Returns:
      [N, 4]. A crop of an image whose shorter side is `canvas` has exactly `size` pixels a side.
    """
    shorter = np.minimum(heights, widths)
    tops, windows = (heights - shorter) // 2, (widths - shorter) // 2
    top, bottom = _edges(offsets[:, 0], size, shorter, canvas, shorter)
    left, right = _edges(offsets[:, 1], size, shorter, canvas, shorter)
    return np.stack([tops + top, windows + left, bottom - top, right - left], 1)


def _edges(offsets, size, shorter, scaled, limit) -> tuple[np.ndarray, np.ndarray]:
    """Where a span of `size` pixels at `offsets` begins and ends in an image's own pixels, rounded half up.

    The image's shorter side, `shorter`, was brought to `scaled`. At least one pixel, and none beyond `limit`.
    """
    begin = (2 * offsets * shorter + scaled) // (2 * scaled)
    end = (2 * (offsets + size) * shorter + scaled) // (2 * scaled)
    begin = np.minimum(begin, limit - 1)
    return begin, np.clip(end, begin + 1, limit)


def scale_windows(
    heights: np.ndarray, widths: np.ndarray, seed: int, epochs: np.ndarray, rows: np.ndarray, size: int, sides
) -> np.ndarray:
    """The windows of crops at a random scale: section 3.4 of the ResNet paper.

    The shorter side is brought to a whole number drawn evenly from `sides`, and the crop is drawn from all positions
    in the whole rescaled image, [N, 4].

    Args:
      heights: [N], of the images.
      widths: [N].
      seed: the run's seed.
      epochs: [N], of the examples.
      rows: [N], the examples' numbers.
      size: the crop's side.
      sides: the lowest and the highest shorter side, at least `size`.
    """
    side = sides[0] + draws.below(draws.words(seed, epochs, rows, draws.SIDE)[0], sides[1] - sides[0] + 1).astype(int)
    shorter = np.minimum(heights, widths)
    edges = []
    for extent, purpose in ((heights, draws.TOP), (widths, draws.LEFT)):
        scaled = np.maximum(side, (2 * extent * side + shorter) // (2 * shorter))
        offset = draws.below(draws.words(seed, epochs, rows, purpose)[0], scaled - size + 1).astype(int)
        edges.append(_edges(offset, size, shorter, side, extent))
    (top, bottom), (left, right) = edges
    return np.stack([top, left, bottom - top, right - left], 1)


def area_windows(
    heights: np.ndarray, widths: np.ndarray, seed: int, epochs: np.ndarray, rows: np.ndarray, areas, aspects
) -> np.ndarray:
    """The windows of the Inception crop: a random share of the area with a random aspect, anywhere, [N, 4].

    Args:
      heights: [N], of the images.
      widths: [N].
      seed: the run's seed.
      epochs: [N], of the examples.
      rows: [N], the examples' numbers.
      areas: the lowest and the highest share of the image's area, drawn evenly between them.
      aspects: the lowest and the highest width / height, their logarithm drawn evenly.
    """
    # Without an attempt that fits: the largest centred window of an aspect that is allowed.
    fallback = np.clip(widths / heights, *aspects)
    high = np.minimum(heights, np.maximum(1, np.rint(widths / fallback))).astype(int)
    wide = np.minimum(widths, np.maximum(1, np.rint(heights * fallback))).astype(int)
    window = np.stack([(heights - high) // 2, (widths - wide) // 2, high, wide], 1)
    open_ = np.ones(len(heights), bool)
    for attempt in range(ATTEMPTS):
        area, aspect = map(draws.uniform, draws.words(seed, epochs, rows, draws.ATTEMPTS + 2 * attempt))
        top, left = draws.words(seed, epochs, rows, draws.ATTEMPTS + 2 * attempt + 1)
        pixels = heights * widths * (areas[0] + area * (areas[1] - areas[0]))
        ratio = np.exp(np.log(aspects[0]) + aspect * np.log(aspects[1] / aspects[0]))
        high, wide = np.rint(np.sqrt(pixels / ratio)).astype(int), np.rint(np.sqrt(pixels * ratio)).astype(int)
        fits = open_ & (high > 0) & (high <= heights) & (wide > 0) & (wide <= widths)
        top = draws.below(top, np.maximum(heights - high, 0) + 1).astype(int)
        left = draws.below(left, np.maximum(widths - wide, 0) + 1).astype(int)
        window = np.where(fits[:, None], np.stack([top, left, high, wide], 1), window)
        open_ &= ~fits
    return window


def ten_crops(canvas: int, size: int) -> list[tuple[int, int, bool]]:
    """AlexNet's ten test views as (top, left, mirrored): the four corners and the centre, then their mirror images."""
    room = canvas - size
    corners = [(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)]
    return [(top, left, mirrored) for mirrored in (False, True) for top, left in corners]


def nine_crops(canvas: int, size: int) -> list[tuple[int, int, bool]]:
    """The nine test views of cuda-convnet's 11pct net as (top, left, mirrored): a grid from edge to edge, no mirroring.

    Corners, middles of the edges and the centre: at 0, 4 and 8 both ways for crops of 24 from a canvas of 32.
    """
    room = canvas - size
    places = (0, room // 2, room)
    return [(top, left, False) for top in places for left in places]


# The views of an evaluation by several crops of the canvas, by the names of `config.EVALUATION_VIEWS`.
CROPS = {"ten_crop": ten_crops, "nine_crop": nine_crops}


def whole_image(height: int, width: int, side: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """The window and the size of a whole image for a fully convolutional pass at one scale.

    The shorter side becomes `side`. The longer one keeps the image's proportions, cut at both ends to the multiple of
    32 below, and to twice the shorter at most, so that images come in few shapes.

    Returns:
      The window, and the height and width that it is resized to.
    """
    shorter, longer = min(height, width), max(height, width)
    scaled = (2 * longer * side + shorter) // (2 * shorter)
    kept = side if scaled < side + STRIDE else min(scaled // STRIDE * STRIDE, 2 * side)
    begin, end = _edges(np.array([(scaled - kept) // 2]), kept, shorter, side, longer)
    begin, extent = begin.item(), (end - begin).item()
    if height <= width:
        return (0, begin, height, extent), (side, kept)
    return (begin, 0, extent, width), (kept, side)


def reduction(windows: np.ndarray, sizes: np.ndarray | int) -> np.ndarray:
    """By how much (1, 2, 4 or 8) the JPEG decoder itself may scale each image down, [N].

    The largest with which a window still has as many pixels as its view, so that what is left to resize is less than
    a factor of two, where bilinear interpolation does not skip pixels.
    """
    factor = np.min(windows[:, 2:] // sizes, axis=1)
    return np.select([factor >= 8, factor >= 4, factor >= 2], [8, 4, 2], 1)


def reduced(windows: np.ndarray, reductions: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The windows in the pixels of the images that the decoder has scaled down, rounded outwards by less than one."""
    factor = reductions[:, None]
    begin = windows[:, :2] // factor
    limit = -(-np.stack([heights, widths], 1) // factor)
    end = np.minimum(-(-(windows[:, :2] + windows[:, 2:]) // factor), limit)
    return np.concatenate([begin, end - begin], 1)
