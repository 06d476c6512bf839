"""What an embedding is worth: on unseen classes, on held-out images of seen ones, and the gap."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unseen.data.module import DataModule
from unseen.evaluation.embed import EmbeddedImages, embed
from unseen.evaluation.galleries import Rows, matched_galleries
from unseen.evaluation.intervals import class_intervals
from unseen.evaluation.participation import participation_ratio
from unseen.evaluation.untrained import PlainFeatures
from unseen.nn.backbone import Backbone
from unseen.retrieval import RetrievalResult

Evaluate = Callable[..., RetrievalResult]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Scores:
    """Numbers of a run, by split.

    The splits: `unseen`, all test classes. `seen` (held-out images of training classes) and `unseen_matched`
    (unseen images), each the mean over draws of galleries cut to equally many classes and images a class, so
    that both are equally hard; `gap`, `seen` − `unseen_matched`. `validation`, where the protocol holds out
    classes. `untrained` and `untrained_gap`: `unseen` and `gap` of the untrained backbone's plain features.

    Args:
        metrics: split → metric → value.
        spread: `seen`, `unseen_matched`, `gap`, `untrained_gap` → metric → standard deviation over the draws
            of galleries: how far one draw is from another, of the same weights and images. It is 0 where
            there is nothing to choose: where all images of seen classes are in every gallery, `seen` cannot
            move. The mean of n draws is √n times more certain than one draw, but as uncertain as ever about
            other images, classes and seeds of training. NaN with a single draw.
        intervals: `unseen` or `untrained` → metric → (low, high), 95 % over test classes; see
            `class_intervals`. A clustering metric has none, and no gap: it would cost a clustering for each
            draw of galleries.
        participation: `unseen`, `seen` or `untrained` → in how many directions the classes differ (see
            `participation_ratio`).
    """

    metrics: dict[str, Metrics]
    spread: dict[str, Metrics]
    intervals: dict[str, dict[str, tuple[float, float]]]
    participation: dict[str, float]


@dataclass(frozen=True)
class Measurement(Scores):
    """Everything that the record, the table and the pictures of a run need; all on the CPU.

    Args:
        unseen: the full result on unseen classes.
        queries: the unseen images that were searched with.
        gallery: the unseen images that were searched among; the same object when queries are the gallery.
    """

    unseen: RetrievalResult
    queries: EmbeddedImages
    gallery: EmbeddedImages


def measure(
    embedder: nn.Module, data: DataModule, evaluate: Evaluate, *, seed: int, draws: int, resamples: int
) -> Measurement:
    """Embed test, validation and held-out images once, and evaluate all with the same function.

    Args:
        embedder: trained, on the device to use.
        data: gives the split and the images.
        evaluate: `(embeddings, labels, gallery=, gallery_labels=, ids=, gallery_ids=)` → result.
        seed: of matched galleries and resampled classes: the protocol's, so that runs are comparable.
        draws: of matched galleries; at least 1.
        resamples: of test classes, for the interval; 0 for none.

    Raises:
        ValueError: `draws` or `resamples` is out of range, or no query can be answered.
    """
    _check_draws(draws)
    queries, gallery, unseen = _search_unseen(embedder, data, evaluate)
    metrics = {"unseen": dict(unseen.metrics)}
    if len(data.split.validation):
        metrics["validation"] = measure_validation(embedder, data, evaluate)
    images = queries.union(gallery)
    matched, spread, of_seen = _matched(embedder, data, evaluate, images, seed, draws)
    interval = class_intervals(unseen.per_query, unseen.labels, resamples=resamples, seed=seed)
    on_cpu = queries.cpu()
    return Measurement(
        metrics | matched,
        spread,
        {"unseen": interval} if interval else {},
        {"unseen": participation_ratio(images.embeddings, images.labels), **of_seen},
        _on_cpu(unseen),
        on_cpu,
        on_cpu if gallery is queries else gallery.cpu(),
    )


def measure_validation(embedder: nn.Module, data: DataModule, evaluate: Evaluate) -> Metrics:
    """The metrics on the validation classes alone, for a run that must not look at test classes.

    Raises:
        ValueError: the protocol holds no class out.
    """
    images = embed(embedder, data.loader(data.split.validation))
    return dict(evaluate(images.embeddings, images.labels).metrics)


def measure_untrained(
    backbone: Backbone, data: DataModule, evaluate: Evaluate, *, seed: int, draws: int, resamples: int
) -> Scores:
    """Measure the plain features (pooled final map, L2-normalised) of a backbone, before it is trained.

    The difficulty of the classes is in every number of a run; these have it and nothing else. The galleries
    are those that `measure` draws with the same seed. Weights and modes stay as they are.

    Args:
        backbone: on the device to use.
        data: as for `measure`, like the rest.
        evaluate: likewise.
        seed: likewise.
        draws: likewise.
        resamples: likewise.

    Returns:
        The splits `untrained` and, where images of seen classes are held out, `untrained_gap`.

    Raises:
        ValueError: as `measure`.
    """
    _check_draws(draws)
    embedder = PlainFeatures(backbone)
    queries, gallery, unseen = _search_unseen(embedder, data, evaluate)
    images = queries.union(gallery)
    matched, spread, _ = _matched(embedder, data, evaluate, images, seed, draws)
    interval = class_intervals(unseen.per_query, unseen.labels, resamples=resamples, seed=seed)
    return Scores(
        {"untrained": dict(unseen.metrics)} | ({"untrained_gap": matched["gap"]} if matched else {}),
        {"untrained_gap": spread["gap"]} if matched else {},
        {"untrained": interval} if interval else {},
        {"untrained": participation_ratio(images.embeddings, images.labels)},
    )


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"evaluation.draws={draws}: wanted at least 1.")


def _search_unseen(
    embedder: nn.Module, data: DataModule, evaluate: Evaluate
) -> tuple[EmbeddedImages, EmbeddedImages, RetrievalResult]:
    split = data.split
    queries = embed(embedder, data.loader(split.query))
    if split.query_is_gallery:
        return queries, queries, evaluate(queries.embeddings, queries.labels)
    gallery = embed(embedder, data.loader(split.gallery))
    found = evaluate(
        queries.embeddings,
        queries.labels,
        gallery=gallery.embeddings,
        gallery_labels=gallery.labels,
        ids=queries.ids,  # an image that is query and gallery is not its own neighbour
        gallery_ids=gallery.ids,
    )
    return queries, gallery, found


def _matched(
    embedder: nn.Module,
    data: DataModule,
    evaluate: Evaluate,
    unseen: EmbeddedImages,
    seed: int,
    draws: int,
) -> tuple[dict[str, Metrics], dict[str, Metrics], dict[str, float]]:
    """Mean and standard deviation over draws of `seen`, `unseen_matched` and `gap`, and the participation
    ratio of held-out images of seen classes; empty without a match."""
    if len(data.split.held_out) == 0:
        return {}, {}, {}
    seen = embed(embedder, data.loader(data.split.held_out))
    labels = seen.labels.numpy(), unseen.labels.numpy()
    drawn = [matched_galleries(*labels, seed=seed, draw=draw) for draw in range(draws)]
    drawn = [rows for rows in drawn if len(rows[0])]
    if not drawn:
        return {}, {}, {}
    participation = {"seen": participation_ratio(seen.embeddings, seen.labels)}
    by_draw = {
        "seen": _evaluate_each(seen, [rows for rows, _ in drawn], evaluate),
        "unseen_matched": _evaluate_each(unseen, [rows for _, rows in drawn], evaluate),
    }
    names = list(by_draw["seen"][0])
    values = {
        split: np.array([[metrics[name] for name in names] for metrics in each])
        for split, each in by_draw.items()
    }
    values["gap"] = values["seen"] - values["unseen_matched"]
    means = {split: _named(names, each.mean(0)) for split, each in values.items()}
    if len(drawn) == 1:
        return means, {split: dict.fromkeys(names, float("nan")) for split in values}, participation
    spread = {split: _named(names, each.std(0, ddof=1)) for split, each in values.items()}
    return means, spread, participation


def _evaluate_each(images: EmbeddedImages, galleries: list[Rows], evaluate: Evaluate) -> list[Metrics]:
    """The metrics of each gallery, clustering aside; one that was drawn before is not searched again."""
    evaluate = functools.partial(evaluate, nmi=False, ami=False)
    known: dict[bytes, Metrics] = {}
    for rows in galleries:
        if rows.tobytes() not in known:
            part = images.select(torch.from_numpy(rows))
            known[rows.tobytes()] = dict(evaluate(part.embeddings, part.labels).metrics)
    return [known[rows.tobytes()] for rows in galleries]


def _named(names: list[str], values: np.ndarray) -> Metrics:
    return dict(zip(names, values.tolist(), strict=True))


def _on_cpu(value: Any) -> Any:
    """A result with all tensors, in dictionaries and nested results too, on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _on_cpu(getattr(value, field.name)) for field in fields(value)})
    return value
