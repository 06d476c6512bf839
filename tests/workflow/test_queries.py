"""What a run keeps of single queries, against a search and a projection by hand."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.data.manifest import Manifest
from unseen.evaluation.embed import embed
from unseen.evaluation.projection import principal_plane
from unseen.tracking.sheet import RetrievalSheet
from unseen.workflow.queries import spread_over_classes
from unseen.workflow.run import Run, execute

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two seeds of one split; the first draws, with TensorBoard."""
    root = tmp_path_factory.mktemp("queries")
    done = []
    for seed, more in enumerate((["logger=tensorboard"], ["pictures=false"])):
        overrides = [*tiny_run, "sampler.classes_per_batch=4", f"seed={seed}", *more]
        run = build(load_config(overrides, run_folder=root / str(seed)))
        execute(run)
        done.append(run)
    return done


def test_neighbours_are_those_of_a_search_by_hand(runs: list[Run]) -> None:
    run = runs[0]
    images = embed(run.learner.embedder, run.data.loader(run.data.split.query))
    similarity = (images.embeddings.double() @ images.embeddings.double().T).numpy()
    np.fill_diagonal(similarity, -np.inf)
    with np.load(run.folder / "queries.npz") as saved:
        ids, neighbours, similarities = saved["ids"], saved["neighbours"], saved["similarities"]
        recall, labels = saved["recall_at_1"], saved["labels"]
        position = saved["position"]
    assert neighbours.shape == similarities.shape == (len(ids), 10)
    assert neighbours.dtype == np.int64
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :10]
    np.testing.assert_allclose(similarities, np.take_along_axis(similarity, order, 1), atol=1e-5)
    named = Manifest.load(run.folder / "manifest.csv").labels[neighbours[:, 0]]
    np.testing.assert_array_equal(named == labels, recall == 1)
    centred = images.embeddings.double().numpy() - images.embeddings.double().numpy().mean(0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(position), np.abs(centred @ components[:2].T), atol=1e-4)


def test_every_run_of_a_split_shows_the_same_queries_with_or_without_pictures(runs: list[Run]) -> None:
    first, second = (RetrievalSheet.load(run.folder / "retrieval_sheet.json") for run in runs)
    assert [row.query for row in first.rows] == [row.query for row in second.rows]
    assert first.split == second.split == runs[0].data.split.fingerprint
    assert not (runs[1].folder / "pictures").exists()


def test_the_seed_of_the_draws_does_not_choose_what_a_split_shows(
    tiny_run: list[str], tmp_path: Path
) -> None:
    shown = []
    for seed in range(2):
        overrides = [
            *tiny_run, "sampler.classes_per_batch=4", "pictures=false", "protocol.held_out_fraction=0",
            f"protocol.seed={seed}",
        ]  # fmt: skip
        run = build(load_config(overrides, run_folder=tmp_path / str(seed)))
        execute(run)
        shown.append(RetrievalSheet.load(run.folder / "retrieval_sheet.json"))
    assert shown[0].split == shown[1].split
    assert [row.query for row in shown[0].rows] == [row.query for row in shown[1].rows]


def test_a_sheet_says_what_the_search_found(runs: list[Run]) -> None:
    run = runs[1]
    path = run.folder / "retrieval_sheet.json"
    sheet = RetrievalSheet.load(path)
    assert path.stat().st_size < 500_000
    assert len(sheet.rows) == min(24, len(run.data.split.query))
    with np.load(run.folder / "queries.npz") as saved:
        neighbours = dict(zip(saved["ids"].tolist(), saved["neighbours"].tolist(), strict=True))
    manifest = run.data.manifest
    for row in sheet.rows:
        assert row.neighbours == neighbours[row.query][:8]
        assert row.right == [manifest.labels[one] == manifest.labels[row.query] for one in row.neighbours]
        assert row.similarities == sorted(row.similarities, reverse=True)
        for image in (row.query, *row.neighbours):
            assert sheet.names[image] == manifest.class_names[manifest.labels[image]]
    shown = Image.open(io.BytesIO(base64.b64decode(sheet.thumbnails[sheet.rows[0].query])))
    original = run.data.image(sheet.rows[0].query)
    assert shown.size == (32, 32)
    np.testing.assert_allclose(np.asarray(shown).mean((0, 1)), original.mean((0, 1)), atol=4)


def test_what_is_no_sheet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "retrieval_sheet.json").write_text('{"rows": [1]}')
    with pytest.raises(ValueError, match=r"retrieval_sheet\.json"):
        RetrievalSheet.load(tmp_path / "retrieval_sheet.json")


def test_tensorboard_gets_the_projector(runs: list[Run]) -> None:
    [names] = (runs[0].folder / "tensorboard").rglob("metadata.tsv")
    manifest = runs[0].data.manifest
    expected = [manifest.class_names[manifest.labels[row]] for row in runs[0].data.split.query]
    assert names.read_text().splitlines() == expected
    assert list(names.parent.glob("sprite.png"))
    assert len(list(names.parent.glob("tensors.tsv"))) == 1


def test_queries_are_of_as_many_classes_as_possible() -> None:
    labels = np.repeat([5, 1, 9], [10, 2, 3])
    chosen = spread_over_classes(labels, 8, seed=3)
    assert sorted(labels[chosen[:3]]) == [1, 5, 9]
    assert sorted(labels[chosen].tolist()) == [1, 1, 5, 5, 5, 9, 9, 9]
    assert len(set(chosen.tolist())) == 8
    np.testing.assert_array_equal(chosen, spread_over_classes(labels, 8, seed=3))
    assert chosen.tolist() != spread_over_classes(labels, 8, seed=4).tolist()
    assert len(spread_over_classes(labels, 99, seed=0)) == 15


@pytest.mark.parametrize("shape", [(40, 1), (3, 6), (9000, 5)])
def test_the_plane_is_of_largest_variance_and_has_one_sign(shape: tuple[int, int]) -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(3, [1 + i for i in range(shape[1])], shape))
    plane = principal_plane(points.float())
    assert plane.shape == (shape[0], 2)
    turned = principal_plane(points.float().flip(0)).flip(0)
    torch.testing.assert_close(plane, turned, rtol=0, atol=1e-4)
    variance = np.linalg.svd((points - points.mean(0)).numpy(), compute_uv=False)[:2] ** 2
    torch.testing.assert_close(
        plane.double().square().sum(0)[: len(variance)], torch.from_numpy(variance), rtol=1e-4, atol=1e-4
    )
