"""Each picture is a real PNG, shows what it was given where it belongs, and leaves pyplot alone."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unseen.pictures import (
    attention_overlays,
    choose_images,
    choose_queries,
    class_strip,
    embedding_map,
    project,
    retrieval_sheet,
    training_curves,
)
from unseen.pictures.attention import overlay
from unseen.pictures.canvas import BLUE, DOTS_PER_INCH, ORANGE, shortened
from unseen.pictures.curves import PANELS, _lines, read_columns


def color_of(text):
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)])


def pixels_of(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 1, "blank"
    assert os.listdir(path.parent) == [path.name], "left something behind"
    return pixels


def share_of(pixels, color):
    return float((np.abs(pixels.astype(int) - color_of(color)).max(axis=-1) < 12).mean())


def plain(value):
    return np.full((32, 32, 3), value, dtype=np.uint8)


def sheet(path, hits):
    rows, columns = hits.shape
    return retrieval_sheet(
        path,
        [plain(200)] * rows,
        [f"query {row}" for row in range(rows)],
        [[plain(120)] * columns] * rows,
        [["$not a formula$"] * columns] * rows,
        np.full((rows, columns), 0.5),
        hits,
    )


def test_frames_say_right_and_wrong_in_their_own_places(tmp_path):
    hits = np.array([[1, 0, 0], [0, 1, 1]], dtype=bool)
    pixels = pixels_of(sheet(tmp_path / "sheet.png", hits))
    height = len(pixels)
    top = round(0.62 * DOTS_PER_INCH)
    # Frames reach a little beyond their cells.
    left, cell = round(0.35 * DOTS_PER_INCH), round(1.12 * DOTS_PER_INCH)
    for row in range(2):
        band = pixels[top + row * (height - top) // 2 : top + (row + 1) * (height - top) // 2]
        for column in range(3):
            panel = band[:, left + (column + 1) * cell : left + (column + 2) * cell]
            framed, other = (BLUE, ORANGE) if hits[row, column] else (ORANGE, BLUE)
            assert share_of(panel, framed) > 0.03
            assert share_of(panel, other) == 0
        assert share_of(band[:, :left], BLUE) == share_of(band[:, :left], ORANGE) == 0


def test_marks_tell_without_colour(tmp_path):
    """Two sheets that differ in right and wrong alone differ in grey inside the images too."""
    right, wrong = (
        Image.open(sheet(tmp_path / name / "sheet.png", np.full((1, 1), value))).convert("L")
        for name, value in (("right", True), ("wrong", False))
    )
    badges = [np.asarray(image)[:, -round(0.5 * DOTS_PER_INCH) :] > 250 for image in (right, wrong)]
    assert (badges[0] != badges[1]).sum() > 10


def test_a_sheet_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no query"):
        retrieval_sheet(
            tmp_path / "sheet.png", [], [], [], [], np.zeros((0, 3)), np.zeros((0, 3), dtype=bool)
        )
    with pytest.raises(ValueError, match="agree"):
        retrieval_sheet(
            tmp_path / "sheet.png", [plain(0)], ["a"], [], [], np.zeros((1, 3)), np.zeros((1, 3), dtype=bool)
        )
    assert os.listdir(tmp_path) == []


def test_queries_are_half_failures_of_many_classes():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 10)
    hits = generator.random((200, 4)) < 0.7
    chosen = choose_queries(hits, labels, count=8)
    assert len(set(chosen)) == 8
    assert hits[chosen, 0].tolist() == [False] * 4 + [True] * 4
    assert len(set(labels[chosen])) == 8
    assert chosen.tolist() == choose_queries(hits, labels, count=8).tolist()


@pytest.mark.parametrize(("right", "failures"), [(0, 8), (3, 5), (199, 1), (200, 0)])
def test_queries_make_do_with_what_there_is(right, failures):
    hits = (np.arange(200) < right)[:, None] & np.ones((1, 3), dtype=bool)
    chosen = choose_queries(hits, np.arange(200) % 20, count=8)
    assert len(set(chosen)) == 8
    assert (~hits[chosen, 0]).sum() == failures


def test_fewer_queries_than_asked_for():
    assert sorted(choose_queries(np.eye(3, dtype=bool), np.arange(3), count=8)) == [0, 1, 2]


def three_clusters(spread=0.05):
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    return np.eye(16)[labels] + spread * generator.normal(size=(90, 16)), labels


def test_projection_keeps_clusters_together():
    embeddings, labels = three_clusters()
    points = project(embeddings, seed=1)
    assert points.shape == (90, 2)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    assert np.array_equal(points, project(embeddings, seed=1))


@pytest.mark.parametrize("count", [3, 4, 7])
def test_projection_of_few_points(count):
    assert np.isfinite(project(np.random.default_rng(0).normal(size=(count, 5)))).all()


@pytest.mark.parametrize("embeddings", [np.zeros((40, 16)), np.ones((3, 8)), np.arange(40.0)[:, None]])
def test_projection_of_points_that_are_all_the_same_or_on_a_line(embeddings):
    assert np.isfinite(project(embeddings)).all()


def test_projection_of_two_points_is_refused():
    with pytest.raises(ValueError, match="at least 3"):
        project(np.eye(2))


def test_map_colours_as_many_classes_as_asked(tmp_path):
    points = np.random.default_rng(0).normal(size=(200, 2))
    labels = np.arange(200) % 40 + 60  # those of test classes stand behind the training classes
    asked = []

    def image_of(position):
        asked.append(position)
        return plain(90)

    embedding_map(
        tmp_path / "map.png", points, labels, [f"$c_{i}" for i in range(100)], image_of, max_classes=6
    )
    pixels = pixels_of(tmp_path / "map.png")
    assert len(set(labels[asked])) == len(asked) == 6
    saturated = np.ptp(pixels.astype(int), axis=2) > 60
    assert saturated.sum() > 200
    assert share_of(pixels, "#DDDDDD") > 0.001
    assert share_of(pixels, "#5A5A5A") > 0.02  # the thumbnails


def test_images_of_a_map_are_whole_classes_spread_over_all():
    labels = np.repeat(np.arange(1000), 5)
    rows = choose_images(labels, at_most=300)
    assert len(rows) <= 300
    assert set(np.bincount(labels[rows])) == {0, 5}
    assert labels[rows].min() == 0
    assert labels[rows].max() == 999
    assert len(rows) == 300, "as many as there is room for"
    assert choose_images(labels, at_most=5000).tolist() == list(range(5000))


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 400))
def test_images_of_a_map_are_whole_classes_unless_those_are_large(sizes, at_most):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    chosen = np.bincount(labels[choose_images(labels, at_most)], minlength=len(sizes))
    assert 0 < chosen.sum() <= at_most
    share = at_most // min(len(sizes), 20)
    assert all(one in (0, size) or one >= max(1, share) for one, size in zip(chosen, sizes, strict=True))


METRICS = """epoch,lr-Adam/backbone,lr-Adam/head,step,train/loss,train/metric_loss,other,validation/map_at_r
,0.001,0.01,0,,,,
0,,,9,2.0,1.5,0.3,
0,,,9,,,,0.25
,0.0005,0.005,10,,,,
1,,,19,1.0,nan,0.2,
1,,,19,,,,0.5
"""


def test_sparse_columns_become_series(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text(METRICS)
    columns = read_columns(table)
    assert columns["train/loss"] == [(9, 2.0), (19, 1.0)]
    assert columns["train/metric_loss"] == [(9, 1.5)]
    assert columns["lr-Adam/head"] == [(0, 0.01), (10, 0.005)]
    lines = {panel.title: list(_lines(panel, columns)) for panel in PANELS}
    assert lines["Training loss"] == ["total", "metric"]
    assert lines["Validation classes"] == ["MAP@R"]
    assert lines["Learning rate"] == ["backbone", "head"]
    assert lines["Adversary: class accuracy"] == []
    table.write_text("step,epoch,train/loss\n9,0,1.0\n19,0,2.0,3.0\n")
    assert read_columns(table) == {"train/loss": [(9, 1.0), (19, 2.0)]}, "more cells than the header"


def test_curves_that_coincide_are_drawn_once(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss,train/metric_loss\n1,2.0,2.0\n2,1.0,1.0\n")
    assert list(_lines(PANELS[0], read_columns(tmp_path / "metrics.csv"))) == ["total, metric"]


def test_curves_grow_with_what_there_is(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    (tmp_path / "short.csv").write_text("step,train/loss\n1,2.0\n")
    many = pixels_of(training_curves(tmp_path / "many" / "curves.png", tmp_path / "metrics.csv"))
    one = pixels_of(training_curves(tmp_path / "one" / "curves.png", tmp_path / "short.csv"))
    assert many.size > 2 * one.size
    assert share_of(one, BLUE) > 0


def test_curves_of_nothing_are_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,other\n1,2\n")
    with pytest.raises(ValueError, match="other"):
        training_curves(tmp_path / "curves.png", tmp_path / "metrics.csv")


def test_overlay_is_bright_where_attention_is():
    weights = np.zeros((4, 8))
    weights[3, 0] = 1.0
    shown = overlay(plain(100), weights).astype(int).sum(axis=2)
    assert shown.shape == (32, 32)
    assert shown[28:, :4].mean() > 2 * shown[:16, 16:].mean()


def test_overlays_stand_in_a_grid(tmp_path):
    attention = [np.full((2, 8, 8), 1 / 64), np.full((2, 4, 4), 1 / 16)]
    path = attention_overlays(tmp_path / "a.png", [plain(60)] * 2, ["a", "b"], attention, ["first", "second"])
    pixels = pixels_of(path)
    assert pixels.shape[1] == pytest.approx((3 * 1.85 + 0.1) * DOTS_PER_INCH, abs=2)
    # The image itself is grey; both maps are flat and so everywhere at their strongest.
    middle = pixels[round(2 * DOTS_PER_INCH)].astype(int)
    columns = [middle[round((0.1 + column * 1.85 + 0.9) * DOTS_PER_INCH)] for column in range(3)]
    assert columns[0].tolist() == [60, 60, 60]
    assert np.ptp(columns[1]) > 40
    assert columns[1].tolist() == columns[2].tolist()


@pytest.mark.parametrize(
    ("attention", "taps"), [([], []), ([np.ones((1, 2, 2))], ["a"]), ([np.ones((2, 2, 2))], ["a", "b"])]
)
def test_overlays_that_do_not_fit_are_refused(attention, taps, tmp_path):
    with pytest.raises(ValueError):
        attention_overlays(tmp_path / "a.png", [plain(60)] * 2, ["a", "b"], attention, taps)


def test_strip_has_a_bar_for_each_class(tmp_path):
    values = np.array([0.0, 1.0, np.nan, 0.5, 1.0])
    pixels = pixels_of(class_strip(tmp_path / "strip.png", values, list("abcde")))
    assert share_of(pixels, BLUE) > 0.1
    with pytest.raises(ValueError, match="agree"):
        class_strip(tmp_path / "strip.png", values, ["a"])
    with pytest.raises(ValueError, match="No class"):
        class_strip(tmp_path / "strip.png", np.array([np.nan]), ["a"])


def test_short_names():
    assert shortened("sparrow", 7) == "sparrow"
    assert shortened("Black_footed_Albatross", 9) == "Blac…ross"


def test_no_picture_opens_a_pyplot_figure(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    sheet(tmp_path / "sheet.png", np.ones((1, 1), dtype=bool))
    assert pyplot.get_fignums() == before
