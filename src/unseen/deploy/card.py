"""The model card, in the form that model hubs read: YAML between dashes, then Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R", "r_precision": "R-precision"}


def model_card(facts: Mapping[str, Any], size: int) -> str:
    """What the model is, what it is worth on unseen classes, and how it is used.

    Args:
        facts: of the run: `data`, `loss`, `backbone`, `metrics` (split → metric → share), `intervals`,
            `split`.
        size: dimensions of an embedding.
    """
    lines = [
        "---",
        "library_name: unseen",
        "pipeline_tag: image-feature-extraction",
        "tags: [deep-metric-learning, image-retrieval, zero-shot]",
        "---",
        "",
        f"# Embeddings of {facts.get('data', 'images')}",
        "",
        f"{size} dimensions; backbone `{facts.get('backbone', '?')}`, loss `{facts.get('loss', '?')}`, "
        f"seed {facts.get('seed', '?')}. Trained and measured by "
        "unseen (`unseen-dml`): no class below was seen in training.",
        "",
        *_table(facts.get("metrics", {}), facts.get("intervals", {})),
        "",
        *_thresholds(facts.get("thresholds")),
        "```python",
        "import unseen",
        "",
        "model = unseen.load('this/folder')",
        "embeddings = model.embed(['image.jpg'])  # (1, d), of length 1",
        "```",
        "",
        f"Class split `{facts.get('split', '?')}`, images `{facts.get('manifest', '?')}`.",
        "",
    ]
    return "\n".join(lines)


def _thresholds(thresholds: Mapping[str, Any] | None) -> list[str]:
    if thresholds is None:
        return [
            "No thresholds of similarity were calibrated: training held no classes out "
            "(`protocol=holdout` does).",
            "",
        ]
    same = [
        f"| {one['threshold']:.3f} | {100 * one['false_accepts']:.2f} | {100 * one['false_rejects']:.1f} |"
        for one in thresholds["same"]
    ]
    known = [
        f"| {one['threshold']:.3f} | {100 * one['unknown_rejected']:.1f} | {100 * one['known_found']:.1f} |"
        for one in thresholds["known"]
    ]
    return [
        f"Thresholds of similarity, from {thresholds['images']} images of {thresholds['classes']} held-out "
        "training classes. Two images are of the same class from",
        "",
        "| similarity | % of different pairs accepted | % of same pairs rejected |",
        "|---|---|---|",
        *same,
        "",
        "An image is of a class of the gallery where its nearest image has at least",
        "",
        "| similarity | % of unknown images rejected | % of known images found |",
        "|---|---|---|",
        *known,
        "",
    ]


def _table(metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> list[str]:
    shown = [name for name in SHOWN if name in metrics.get("unseen", {})]
    if not shown:
        return ["It was not measured on unseen classes."]
    rows = ["| in % | unseen classes | 95 % over classes | before training |", "|---|---|---|---|"]
    for name in shown:
        low, high = intervals.get("unseen", {}).get(name, (None, None))
        interval = "–" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        before = metrics.get("untrained", {}).get(name)
        untrained = "–" if before is None else f"{100 * before:.1f}"
        rows.append(f"| {SHOWN[name]} | {100 * metrics['unseen'][name]:.1f} | {interval} | {untrained} |")
    return rows
