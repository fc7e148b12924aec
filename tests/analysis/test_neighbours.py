"""Nearest training images against all distances in float64, and the figure of them."""

import numpy as np
import pytest
from PIL import Image

from alexnet_resnet.analysis import neighbours
from alexnet_resnet.analysis.neighbours import Neighbours, Shown
from alexnet_resnet.errors import UserError


def brute_force(queries, features, k):
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - features.astype(np.float64), axis=-1)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, 1)


@pytest.mark.parametrize("chunk", [1, 7, 64, 101, 5000])
def test_the_nearest_are_those_of_all_distances_whatever_the_chunk(chunk):
    random = np.random.default_rng(0)
    features = random.normal(size=(101, 33)).astype(np.float32)
    queries = random.normal(size=(4, 33)).astype(np.float32)
    rows, distances = brute_force(queries, features, 9)
    found = neighbours.nearest(queries, features, 9, chunk)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-13)
    whole = neighbours.nearest(queries, features, 9, 101)
    assert found.distances.tobytes() == whole.distances.tobytes()


@pytest.mark.parametrize("chunk", [3, 10, 40])
def test_of_equal_distances_the_first_row_comes_first(chunk):
    random = np.random.default_rng(1)
    # Five vectors, each eight times in a random order; few enough values that others tie by chance.
    vectors = random.integers(-2, 3, (5, 6)).astype(np.float32)
    features = vectors[random.permutation(np.repeat(np.arange(5), 8))]
    queries = np.concatenate([vectors[:2], np.zeros((1, 6), np.float32)])
    rows, distances = brute_force(queries, features, 19)
    found = neighbours.nearest(queries, features, 19, chunk)
    np.testing.assert_array_equal(found.rows, rows)
    assert np.all(found.distances[:2, :8] == 0)


def test_a_copy_is_at_distance_0_and_near_ones_are_told_apart_far_from_the_origin():
    # Where |q|^2 - 2qx + |x|^2 has lost all digits.
    features = np.full((6, 512), 3000.0, np.float32)
    features[[1, 2, 4], 0] += np.float32([0.002, 0.001, 0.003])
    found = neighbours.nearest(features[3:4], features, 6, 4)
    assert found.rows[0].tolist() == [0, 3, 5, 2, 1, 4] and found.distances[0, :3].tolist() == [0, 0, 0]


def test_maps_bytes_and_mapped_files_are_taken_as_vectors(tmp_path):
    random = np.random.default_rng(2)
    features = random.integers(0, 256, (20, 4, 3, 2), dtype=np.uint8)
    rows, distances = brute_force(features[:2].reshape(2, -1), features.reshape(20, -1), 20)
    file = np.memmap(tmp_path / "features", np.uint8, "w+", shape=features.shape)
    file[:] = features
    found = neighbours.nearest(features[:2], file, 20, 6)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, distances)


def test_no_queries_have_no_neighbours():
    found = neighbours.nearest(np.zeros((0, 3)), np.zeros((5, 3)), 2)
    assert found.rows.shape == found.distances.shape == (0, 2) and found.rows.dtype == np.int64


def test_agreement_is_the_share_of_the_own_class():
    found = Neighbours(np.array([[0, 1, 2, 3], [4, 3, 2, 1]]), np.zeros((2, 4)))
    shares = neighbours.agreement(found, np.array([7, 8]), np.array([7, 7, 8, 7, 8]))
    assert shares.tolist() == [0.75, 0.5]


@pytest.mark.parametrize(
    ("queries", "features", "options", "message"),
    [
        (np.zeros((2, 3)), np.zeros((5, 3)), dict(k=6), "k=6: expected at most the 5 training images"),
        (np.zeros((2, 3)), np.zeros((5, 3)), dict(k=0), "k=0: expected a number of at least 1"),
        (np.zeros((2, 3)), np.zeros((5, 3)), dict(k=1, chunk=0), "chunk=0: expected"),
        (np.zeros((2, 3)), np.zeros((5, 4)), dict(k=1), r"queries=\(2, 3\): expected vectors of shape \(4,\)"),
        (np.zeros((2, 2, 3)), np.zeros((5, 6)), dict(k=1), r"expected vectors of shape \(6,\)"),
        (np.zeros((2, 3)), np.full((5, 3), np.nan), dict(k=1), "expected finite numbers"),
        (np.full((2, 3), np.inf), np.zeros((5, 3)), dict(k=1), "expected finite numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(queries, features, options, message):
    with pytest.raises(UserError, match=message):
        neighbours.nearest(queries, features, **options)


def shown(number, name, channels=3):
    picture = np.random.default_rng(number).integers(0, 256, (20 + number, 24, channels), dtype=np.uint8)
    return Shown(picture, name)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_figure_has_a_row_for_each_test_image(channels, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    panels, imshow = [], Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **style: panels.append((self, x)) or imshow(self, x, **style))
    names = ["cat", "a class of a very long name $_x"]
    found = Neighbours(np.array([[0, 1, 5], [2, 3, 4]]), np.array([[0.0, 1.5, 12345.678], [1, 2, 3]]))
    tests = [shown(10, "cat", channels), shown(11, "dog", channels)]
    path = str(tmp_path / "a.png")
    neighbours.draw(tests, lambda row: shown(row, names[row % 2], channels), found, path, "a net, fc7")
    image = np.asarray(Image.open(path).convert("RGB"))
    assert min(image.shape[:2]) > 300 and image.std() > 10
    assert len(panels) == 8
    titles = [axes.get_title() for axes, _ in panels]
    assert titles[:3] == ["cat", "cat", "a class of a very l…"] and titles[4] == "dog"
    assert [axes.title.get_color() for axes, _ in panels[:4]] == ["black", "green", "black", "black"]
    assert [axes.texts[0].get_text() for axes, _ in panels[:4]] == [
        *("test image", "distance 0", "distance 1.5", "distance 1.235e+04"),
    ]
    # The central square.
    whole = shown(5, "", channels).picture
    np.testing.assert_array_equal(panels[3][1], whole[0:24, 0:24][..., 0] if channels == 1 else whole[0:24, 0:24])


def test_a_figure_of_other_tests_than_were_compared_is_refused(tmp_path):
    found = Neighbours(np.zeros((2, 1), int), np.zeros((2, 1)))
    for tests in ([], [shown(0, "a")]):
        with pytest.raises(UserError, match="tests: expected one or more"):
            neighbours.draw(tests, lambda row: shown(row, "b"), found, str(tmp_path / "a.png"))
    with pytest.raises(UserError, match="expected a file in a folder that exists"):
        neighbours.draw([shown(0, "a")] * 2, lambda row: shown(row, "b"), found, str(tmp_path / "no" / "a.png"))
