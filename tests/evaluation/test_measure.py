"""What a measurement says, against evaluations by hand; and what it must survive."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unseen.data.batch import Batch
from unseen.evaluation.embed import embed
from unseen.evaluation.galleries import matched_galleries
from unseen.evaluation.intervals import class_intervals
from unseen.evaluation.measure import measure, measure_untrained
from unseen.evaluation.probe import measure_probe, probe_accuracy
from unseen.evaluation.untrained import worse_than_untrained
from unseen.nn.backbone import FeatureMaps
from unseen.nn.embedder import Embedded
from unseen.nn.fusion import Fused
from unseen.retrieval import evaluate


@dataclass
class NumberedImages:
    """Stands for a data module: `labels` of all rows, and the rows of each part."""

    labels: np.ndarray
    query: np.ndarray
    gallery: np.ndarray
    seen: np.ndarray
    validation: np.ndarray
    loaded: int = 0

    @property
    def manifest(self) -> SimpleNamespace:
        return SimpleNamespace(labels=self.labels)

    @property
    def split(self) -> SimpleNamespace:
        parts = {name: getattr(self, name) for name in ("query", "gallery", "validation")}
        return SimpleNamespace(
            **parts, held_out=self.seen, query_is_gallery=np.array_equal(self.query, self.gallery)
        )

    def loader(self, rows: np.ndarray) -> Iterator[Batch]:
        self.loaded += len(rows)
        for some in torch.from_numpy(np.asarray(rows, dtype=np.int64)).split(7):
            yield Batch(
                some.float()[:, None, None, None].expand(-1, 3, 1, 1),
                torch.from_numpy(self.labels)[some],
                some,
            )


def parts(
    labels: Sequence[int],
    test: Sequence[int],
    seen: Sequence[int] = (),
    validation: Sequence[int] = (),
    gallery: Sequence[int] | None = None,
) -> NumberedImages:
    test, gallery, seen, validation = (
        np.array(rows, dtype=np.int64)
        for rows in (test, test if gallery is None else gallery, seen, validation)
    )
    return NumberedImages(np.array(labels, dtype=np.int64), test, gallery, seen, validation)


class Table(nn.Module):
    """An embedder: row → embedding, and twice that as features; notes what it ran in."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(embeddings)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Embedded:
        self.modes.append((self.training, torch.is_autocast_enabled("cpu")))
        found = self.rows[images[:, 0, 0, 0].long()]
        # A product, so that autocast would round it.
        product = found @ torch.eye(found.shape[1])
        return Embedded(product, Fused(2 * product, []), FeatureMaps([], product[:, :, None, None]))


class MapTable(nn.Module):
    """A backbone: row → a final map of 2×2 positions whose mean is the row's vector."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(vectors)

    def forward(self, images: Tensor) -> FeatureMaps:
        found = self.rows[images[:, 0, 0, 0].long()]
        swing = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
        return FeatureMaps([], found[:, :, None, None] + swing)


def clustered(labels: np.ndarray, spread: float, seed: int, size: int = 8) -> Tensor:
    """`(N, size)`, around one centre for each label."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(int(labels.max()) + 1, size, generator=generator)
    return centres[torch.from_numpy(labels)] + spread * torch.randn(len(labels), size, generator=generator)


# 6 unseen classes of 9 images, 5 seen ones of which 4 images each are held out, 2 that validate.
LABELS = np.repeat(np.arange(13), [*[9] * 6, *[4] * 5, *[3] * 2])
TEST, HELD_OUT, VALIDATES = np.arange(54), np.arange(54, 74), np.arange(74, 80)
EMBEDDINGS = clustered(LABELS, spread=1.2, seed=0)
scores = functools.partial(evaluate, recall_at=(1, 2), knn_accuracy_at=())


def whole(**changes: object) -> NumberedImages:
    return parts(LABELS, **({"test": TEST, "seen": HELD_OUT, "validation": VALIDATES} | changes))


def metrics_of(rows: np.ndarray, embeddings: Tensor = EMBEDDINGS) -> dict[str, float]:
    return scores(embeddings[rows], torch.from_numpy(LABELS[rows])).metrics


def test_each_split_is_what_an_evaluation_by_hand_gives() -> None:
    measured = measure(Table(EMBEDDINGS), whole(), scores, seed=3, draws=6, resamples=50)
    assert measured.metrics["unseen"] == metrics_of(TEST)
    assert measured.metrics["validation"] == metrics_of(VALIDATES)
    seen, unseen = [], []
    for draw in range(6):
        held, test = matched_galleries(LABELS[HELD_OUT], LABELS[TEST], seed=3, draw=draw)
        seen.append(metrics_of(HELD_OUT[held]))
        unseen.append(metrics_of(TEST[test]))
    for name in measured.metrics["unseen"]:
        of_seen, of_unseen = (np.array([values[name] for values in side]) for side in (seen, unseen))
        for split, values in (("seen", of_seen), ("unseen_matched", of_unseen), ("gap", of_seen - of_unseen)):
            assert measured.metrics[split][name] == pytest.approx(values.mean())
            assert measured.spread[split][name] == pytest.approx(values.std(ddof=1), abs=1e-12)
    assert measured.spread["gap"]["map_at_r"] > 0
    wanted = class_intervals(measured.unseen.per_query, measured.unseen.labels, resamples=50, seed=3)
    assert measured.intervals == {"unseen": wanted}
    low, high = wanted["recall_at_1"]
    assert low < measured.metrics["unseen"]["recall_at_1"] < high


def test_images_are_embedded_once_however_many_draws_there_are() -> None:
    data = whole()
    measure(Table(EMBEDDINGS), data, scores, seed=0, draws=20, resamples=10)
    assert data.loaded == len(LABELS)


def test_the_seed_decides_the_gap_and_more_draws_settle_it() -> None:
    def gap(seed: int, draws: int) -> float:
        measured = measure(Table(EMBEDDINGS), whole(), scores, seed=seed, draws=draws, resamples=0)
        return measured.metrics["gap"]["recall_at_1"]

    assert gap(0, 1) == gap(0, 1)
    one, many = (np.std([gap(seed, draws) for seed in range(8)]) for draws in (1, 16))
    assert one > 2 * many  # four times in expectation


def test_the_untrained_reference_is_the_pooled_final_map_of_unit_length() -> None:
    vectors = EMBEDDINGS * torch.linspace(0.1, 9, len(LABELS))[:, None]
    pooled = torch.nn.functional.normalize(vectors, dim=1)
    euclidean = functools.partial(scores, similarity="euclidean")  # so that the length matters
    sizes = {"seed": 3, "draws": 4, "resamples": 20}
    untrained = measure_untrained(MapTable(vectors), whole(), euclidean, **sizes)
    wanted = measure(Table(pooled), whole(), euclidean, **sizes)
    assert set(untrained.metrics) == {"untrained", "untrained_gap"}
    assert untrained.metrics["untrained"] == pytest.approx(wanted.metrics["unseen"])
    assert untrained.metrics["untrained_gap"] == pytest.approx(wanted.metrics["gap"])
    assert untrained.spread == {"untrained_gap": pytest.approx(wanted.spread["gap"])}
    assert untrained.intervals["untrained"]["map_at_r"] == pytest.approx(
        wanted.intervals["unseen"]["map_at_r"]
    )


def test_official_queries_are_searched_in_the_gallery_and_the_gap_takes_both() -> None:
    query, gallery = TEST[::3], np.setdiff1d(TEST, TEST[::3][2:])  # two images are both
    data = whole(test=query, gallery=gallery)
    measured = measure(Table(EMBEDDINGS), data, scores, seed=0, draws=3, resamples=20)
    assert measured.queries.ids.tolist() == query.tolist()
    assert measured.gallery.ids.tolist() == gallery.tolist()
    for row, positions in zip(query, measured.unseen.neighbours.positions, strict=True):
        assert row not in gallery[positions[positions >= 0].numpy()]
    test = np.concatenate([query, np.setdiff1d(gallery, query)])
    chosen = [matched_galleries(LABELS[HELD_OUT], LABELS[test], seed=0, draw=draw)[1] for draw in range(3)]
    wanted = np.mean([metrics_of(test[rows])["map_at_r"] for rows in chosen])
    assert measured.metrics["unseen_matched"]["map_at_r"] == pytest.approx(wanted)
    assert set(measure_probe(Table(EMBEDDINGS), data, classes=5, images=4, seed=0)) == {
        *("unseen", "seen", "unseen_matched", "gap")
    }


@pytest.mark.parametrize("seen", [[], [54, 58, 62]], ids=["none", "single images"])
def test_without_images_to_compare_there_is_no_gap(seen: list[int]) -> None:
    data = whole(seen=seen, validation=[])
    measured = measure(Table(EMBEDDINGS), data, scores, seed=0, draws=3, resamples=20)
    assert set(measured.metrics) == {"unseen"}
    assert measured.spread == {}
    untrained = measure_untrained(MapTable(EMBEDDINGS), data, scores, seed=0, draws=3, resamples=20)
    assert set(untrained.metrics) == {"untrained"}
    assert set(measure_probe(Table(EMBEDDINGS), data, classes=5, images=4, seed=0)) == {"unseen"}


def test_draws_in_which_no_class_has_two_images_do_not_count() -> None:
    # One unseen class; of the seen ones, one has two images and five a single one.
    labels = np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 6])
    data = parts(labels, test=[0, 1, 2], seen=range(3, 10))
    embeddings = clustered(labels, spread=0.1, seed=0)
    measured = measure(Table(embeddings), data, scores, seed=0, draws=20, resamples=20)
    assert measured.metrics["seen"]["recall_at_1"] == 1
    assert measured.intervals == {}  # one class says nothing about others


def test_one_draw_has_no_spread_and_numbers_out_of_range_are_refused_by_key() -> None:
    measured = measure(Table(EMBEDDINGS), whole(), scores, seed=0, draws=1, resamples=0)
    assert np.isnan(measured.spread["gap"]["recall_at_1"])
    assert measured.intervals == {}
    for function, network in ((measure, Table(EMBEDDINGS)), (measure_untrained, MapTable(EMBEDDINGS))):
        with pytest.raises(ValueError, match=r"evaluation\.draws=0"):
            function(network, whole(), scores, seed=0, draws=0, resamples=0)
        with pytest.raises(ValueError, match=r"evaluation\.resamples=-1"):
            function(network, whole(), scores, seed=0, draws=1, resamples=-1)


def test_embedding_leaves_modes_and_random_numbers_alone_and_ignores_autocast() -> None:
    network = Table(EMBEDDINGS).train()
    network.frozen.eval()
    before = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = embed(network, whole().loader(TEST))
    assert torch.equal(images.embeddings, EMBEDDINGS[TEST])
    assert set(network.modes) == {(False, False)}
    assert network.training
    assert not network.frozen.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_probe_is_that_of_the_sample_and_loads_no_more() -> None:
    data = whole()
    accuracies = measure_probe(Table(EMBEDDINGS), data, classes=3, images=4, seed=0)
    assert data.loaded == 3 * 3 * 4
    assert accuracies["gap"] == accuracies["seen"] - accuracies["unseen_matched"]
    everything = measure_probe(Table(EMBEDDINGS), data, classes=99, images=99, seed=0)
    wanted = probe_accuracy(2 * EMBEDDINGS[TEST], torch.from_numpy(LABELS[TEST]))
    assert everything["unseen"] == pytest.approx(wanted)
    assert 0 < wanted < 1


def test_the_probe_can_be_switched_off_and_refuses_impossible_sizes() -> None:
    data = whole()
    assert measure_probe(Table(EMBEDDINGS), data, classes=0, images=20, seed=0) == {}
    assert data.loaded == 0
    for sizes, words in (
        ((1, 5), "probe_classes=1"),
        ((-1, 5), "probe_classes=-1"),
        ((5, 1), "probe_images=1"),
    ):
        with pytest.raises(ValueError, match=words):
            measure_probe(Table(EMBEDDINGS), data, classes=sizes[0], images=sizes[1], seed=0)


def test_a_run_that_made_unseen_classes_worse_is_told_so_with_both_numbers() -> None:
    before = {"recall_at_1": 0.638, "map_at_r": 0.2, "recall_at_2": 0.9}
    warning = worse_than_untrained({"untrained": before, "unseen": {"recall_at_1": 0.613, "map_at_r": 0.25}})
    assert warning is not None
    assert "Recall@1 61.3 after training, 63.8 before it" in warning
    assert "MAP@R" not in warning
    assert worse_than_untrained({"untrained": before, "unseen": before}) is None
    worse_elsewhere = {"recall_at_1": 0.7, "map_at_r": 0.3, "recall_at_2": 0.8}
    assert worse_than_untrained({"untrained": before, "unseen": worse_elsewhere}) is None
    assert "MAP@R 10.0" in (worse_than_untrained({"untrained": before, "unseen": {"map_at_r": 0.1}}) or "")
    assert worse_than_untrained({"unseen": before}) is None


def test_clusters_are_sought_once_and_not_for_each_draw_of_galleries(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def agreement(embeddings: Tensor, *_: object) -> dict[str, float]:
        asked.append(len(embeddings))
        return {"nmi": 0.5, "ami": 0.4}

    monkeypatch.setattr(sys.modules[evaluate.__module__], "cluster_agreement", agreement)
    data = whole(validation=[])
    measured = measure(
        Table(EMBEDDINGS), data, functools.partial(evaluate, nmi=True, ami=True), seed=0, draws=3, resamples=0
    )
    assert asked == [len(data.query)]
    assert measured.metrics["unseen"]["nmi"] == 0.5
    assert "nmi" not in measured.metrics["gap"]
