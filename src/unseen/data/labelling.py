"""Labels of any kind → classes in order, and which of them train."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.data.manifest import Manifest, ManifestError
from unseen.data.sources import layout

Label = int | str
ClassNames = Sequence[str] | Mapping[Any, str]
Unseen = float | Iterable[Any] | None
"""Names or labels of the classes to test on, or their share, the last in order; `None`: as the source divides
them, else one half."""


def classes_of(
    labels: Any, count: int, class_names: ClassNames | None
) -> tuple[NDArray[np.int64], tuple[str, ...], dict[Any, int]]:
    """`(N,)` positions among the sorted labels that occur; their names; and what either may be called by."""
    shape = tuple(getattr(labels, "shape", (len(labels),)))
    if shape != (count,):
        raise ManifestError(f"labels has shape {shape} for {count} images. Wanted ({count},), one an image.")
    if not count:
        raise ManifestError("There are no images.")
    values = [plain(label) for label in labels]
    kinds = {type(value) for value in values}
    if kinds not in ({int}, {str}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ManifestError(f"labels are of the types {found}. Wanted whole numbers or names, not both.")
    if "" in values:
        raise ManifestError(f"The label of image {values.index('')} is empty. Name every image's class.")
    occurring = sorted(set(values))
    names = tuple(layout.normal(_name(label, class_names)) for label in occurring)
    position = {label: code for code, label in enumerate(occurring)}
    by_name = {name: code for code, name in enumerate(names)}
    return np.array([position[value] for value in values], dtype=np.int64), names, position | by_name


def _name(label: Label, class_names: ClassNames | None) -> str:
    if class_names is None or (isinstance(label, str) and not isinstance(class_names, Mapping)):
        return str(label)
    try:
        if isinstance(label, int) and label < 0 and not isinstance(class_names, Mapping):
            raise LookupError
        return str(class_names[label])  # type: ignore[index]
    except LookupError:
        raise ManifestError(
            f"class_names has {len(class_names)} names and none for the label {label!r}. Name every label."
        ) from None


def divided(manifest: Manifest, unseen: Unseen) -> Manifest:
    """The manifest with other roles; as it is where nobody asks for that."""
    if unseen is None:
        return manifest
    occurring = np.unique(manifest.labels)
    names = tuple(manifest.class_names[label] for label in occurring)
    roles = np.full(len(manifest.class_names), "test", dtype="<U5")
    roles[occurring] = roles_of(names, {name: code for code, name in enumerate(names)}, unseen)
    return replace(manifest, roles=roles[manifest.labels])


def roles_of(names: Sequence[str], known: Mapping[Any, int], unseen: Unseen) -> NDArray[np.str_]:
    """`(C,)` train or test."""
    chosen = _unseen_classes(names, known, 0.5 if unseen is None else unseen)
    if not 0 < len(chosen) < len(names):
        raise ManifestError(
            f"unseen_classes={unseen!r} leaves {len(names) - len(chosen)} of {len(names)} classes to "
            "train on. There must be one to train and one to test on."
        )
    return np.where(np.isin(np.arange(len(names)), list(chosen)), "test", "train")


def _unseen_classes(
    names: Sequence[str], known: Mapping[Any, int], unseen: float | Iterable[Any]
) -> set[int]:
    if isinstance(unseen, float):
        if not 0 < unseen < 1:
            raise ManifestError(f"unseen_classes={unseen}: wanted a share between 0 and 1, or class names.")
        return set(range(int(len(names) * (1 - unseen) + 1e-9), len(names)))
    if isinstance(unseen, str) or not isinstance(unseen, Iterable):
        raise ManifestError(
            f"unseen_classes={unseen!r}: wanted a list of classes, or their share as a float."
        )
    listed = [layout.normal(label) if isinstance(label, str) else plain(label) for label in unseen]
    unknown = [label for label in listed if label not in known]
    if unknown:
        close = difflib.get_close_matches(str(unknown[0]), names, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else f" There are {', '.join(names[:5])} …"
        raise ManifestError(
            f"unseen_classes names {unknown[0]!r}, which no image has ({len(unknown)} such).{hint}"
        )
    return {known[label] for label in listed}


def plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") and math.prod(label.shape) == 1 else label
