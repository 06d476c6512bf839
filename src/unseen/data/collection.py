"""Any data set as a manifest and its images: arrays, torch and Hugging Face data sets, files, folders.

Everything downstream knows images by their row in a manifest. Those that are no files get a synthetic path:
their row and, where they are in memory, the start of a hash of their pixels. Of images that are read as they
are needed only number, order and labels are in the manifest's content hash, not the pixels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

from unseen.data.images import Files, ImageError, Images, Pixels
from unseen.data.labelling import ClassNames, Unseen, classes_of, divided, plain, roles_of
from unseen.data.manifest import Manifest, ManifestError, aliases, real_places
from unseen.data.pixels import ConvertedImages
from unseen.data.sources import folder, layout, manifest_file, table

log = logging.getLogger(__name__)

IN_MEMORY = Path("images in memory")
ON_DEMAND = Path("images of a data set")
IMAGE_COLUMNS = ("image", "img", "images", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")


@dataclass(frozen=True)
class ImageCollection:
    """What a `DataModule` takes.

    Args:
        manifest: `N` rows.
        images: row → `(H, W, 3)` uint8.
    """

    manifest: Manifest
    images: Images


def collect(
    source: Any, *, labels: Any = None, unseen_classes: Unseen = None, class_names: ClassNames | None = None
) -> ImageCollection:
    """Any data set, ready to be split and loaded.

    Args:
        source: `(N, H, W, 3)`, `(N, 3, H, W)` or `(N, H, W)` array or tensor; a torch data set that gives
            `(image, label)`; a Hugging Face data set; a sequence of images or of paths; a folder with one
            folder for each class; a table or saved manifest; a `Manifest`; an `ImageCollection`.
        labels: `N` whole numbers or names; needed where the source has none, and not accepted for a folder,
            a table or a manifest.
        unseen_classes: names or labels of the classes to test on; or their share of all, the last in order.
            `None`: as the source divides its classes, else one half (the first half, rounded down, trains).
        class_names: of labels that are numbers; by default the data set's own, else the numbers.

    Raises:
        ManifestError: labels, names or classes do not fit the images.
        ImageError: the images are none.
        TypeError: the source is of no known kind.
    """
    given = {"labels": labels, "class_names": class_names}
    if isinstance(source, np.ndarray | torch.Tensor):
        return from_arrays(source, unseen_classes=unseen_classes, **given)
    if isinstance(source, ImageCollection | Manifest | str | Path):
        surplus = [name for name, value in given.items() if value is not None]
        if surplus:
            raise ManifestError(
                f"{surplus[0]} was given beside {_kind(source)}, which has its own. Leave it out."
            )
        return _from_described(source, unseen_classes)
    if isinstance(source, Mapping):
        raise TypeError(f"Got several data sets ({', '.join(map(str, source))}). Choose one: data['train'].")
    if hasattr(source, "column_names") and hasattr(source, "__getitem__"):
        return from_hugging_face(source, unseen_classes=unseen_classes, **given)
    if isinstance(source, Sequence) and source and all(isinstance(item, str | Path) for item in source):
        return from_files(source, unseen_classes=unseen_classes, **given)
    return from_dataset(source, unseen_classes=unseen_classes, **given)


def _from_described(source: ImageCollection | Manifest | str | Path, unseen: Unseen) -> ImageCollection:
    """From what already names its classes."""
    if isinstance(source, ImageCollection):
        return replace(source, manifest=divided(source.manifest, unseen))
    if isinstance(source, Manifest) or Path(source).expanduser().is_file():
        return from_manifest(source, unseen_classes=unseen)
    return from_folder(source, unseen_classes=unseen)


def from_arrays(
    images: Any, labels: Any, *, unseen_classes: Unseen = None, class_names: ClassNames | None = None
) -> ImageCollection:
    """Images in memory; the manifest's content hash depends on every pixel.

    Args:
        images: `(N, H, W, C)`, `(N, C, H, W)` or `(N, H, W)`, C one of 1, 3, 4; whole numbers 0 … 255, or
            floating-point numbers 0 … 1. Where both axes could be channels an array has them last, a tensor
            first.
        labels: see `collect`.
        unseen_classes: see `collect`.
        class_names: see `collect`.

    Raises:
        ManifestError: see `collect`.
        ImageError: shape or values are of no images.
    """
    if images.ndim not in (3, 4):
        raise ImageError(
            f"The images have shape {tuple(images.shape)}. Wanted (N, H, W, 3), (N, 3, H, W) or (N, H, W)."
        )
    if len(images) and "int" in str(images.dtype) and images.max() == 1:
        raise ImageError(
            f"The images are {images.dtype} and hold no number above 1: of 255 that is black. Give bool or "
            "floating-point numbers where 1 is white."
        )
    converted = ConvertedImages(images)
    codes, names, known = classes_of(_required(labels, "an array"), len(images), class_names)
    digests = [hashlib.sha256(_stamped(converted[row])).hexdigest() for row in range(len(images))]
    paths = [f"{row:07d}-{digest[:16]}" for row, digest in enumerate(digests)]
    roles = roles_of(names, known, unseen_classes)
    return ImageCollection(_manifest(IN_MEMORY, paths, codes, names, roles), converted)


def _stamped(pixels: Pixels) -> bytes:
    return f"{pixels.shape}".encode() + pixels.tobytes()


def from_dataset(
    dataset: Any, labels: Any = None, *, unseen_classes: Unseen = None, class_names: ClassNames | None = None
) -> ImageCollection:
    """A torch data set, or a sequence of images; each image is read when it is needed.

    Args:
        dataset: has a length and gives `(image, label)`, `{"image": …, "label": …}` or, with `labels`, just
            an image (see `to_pixels`); the same each time, as augmentation is ours.
        labels: by default `dataset.targets`; where there are none each item is read once.
        unseen_classes: see `collect`.
        class_names: by default `dataset.classes`, unless `labels` are given.

    Raises:
        ManifestError: see `collect`.
        ImageError: the first item holds no image.
        TypeError: it has no length or cannot be indexed.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"Cannot make a collection of a {type(dataset).__name__}. Wanted arrays, a data set "
            "with a length that gives (image, label), a list of paths, a folder, a table or a manifest."
        )
    images = ConvertedImages(dataset)
    _probe(images)
    if labels is None:
        labels = _labels_of(dataset)
        class_names = _names_of(dataset) if class_names is None else class_names
    return _on_demand(images, labels, unseen_classes, class_names)


def from_hugging_face(
    dataset: Any,
    labels: Any = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    unseen_classes: Unseen = None,
    class_names: ClassNames | None = None,
) -> ImageCollection:
    """A data set with columns, of the library `datasets` or alike; images are decoded when they are needed.

    Args:
        dataset: one split, not streamed: has `column_names`, a length, rows by number and columns by name.
        labels: by default the label column.
        image_column: by default the first of `IMAGE_COLUMNS` that there is.
        label_column: by default the first of `LABEL_COLUMNS` that there is.
        unseen_classes: see `collect`.
        class_names: by default those of the label column's feature.

    Raises:
        ManifestError: there is no such column; else see `collect`.
        ImageError: the first row holds no image.
    """
    if not hasattr(dataset, "__len__"):
        raise TypeError("The data set is streamed: it has no length. Load it without streaming=True.")
    images = ConvertedImages(dataset, _column(dataset, image_column, IMAGE_COLUMNS, "image_column"))
    _probe(images)
    if labels is None:
        label_column = _column(dataset, label_column, LABEL_COLUMNS, "label_column")
        labels = list(dataset[label_column])
        feature = (getattr(dataset, "features", None) or {}).get(label_column)
        class_names = getattr(feature, "names", None) if class_names is None else class_names
    return _on_demand(images, labels, unseen_classes, class_names)


def _column(dataset: Any, wanted: str | None, usual: Sequence[str], argument: str) -> str:
    names = list(dataset.column_names)
    found = next((name for name in ([wanted] if wanted else usual) if name in names), None)
    if found is None:
        raise ManifestError(
            f"The data set has the columns {', '.join(names)}, none of them "
            f"{wanted or ' or '.join(usual)}. Name it: {argument}=…"
        )
    return str(found)


def from_files(
    paths: Sequence[str | Path],
    labels: Any,
    *,
    unseen_classes: Unseen = None,
    class_names: ClassNames | None = None,
) -> ImageCollection:
    """Image files and their labels.

    Args:
        paths: `N` files, from the working folder.
        labels: see `collect`.
        unseen_classes: see `collect`.
        class_names: see `collect`.

    Raises:
        ManifestError: a file is missing or given twice; else see `collect`.
    """
    codes, names, known = classes_of(_required(labels, "paths"), len(paths), class_names)
    written = [Path(path).expanduser().as_posix() for path in paths]
    first: dict[str, str] = {}
    for path, place in zip(written, real_places(Path.cwd(), written), strict=True):
        if place in first:
            raise ManifestError(
                f"{aliases(first[place], path)} is given twice: it would be its own neighbour. Leave one out."
            )
        first[place] = path
    layout.require_images(Path.cwd(), written)
    roles = roles_of(names, known, unseen_classes)
    manifest = _manifest(Path.cwd(), written, codes, names, roles)
    return ImageCollection(manifest, Files(manifest))


def from_folder(root: str | Path, *, unseen_classes: Unseen = None) -> ImageCollection:
    """A tree `root/<class>/…`, or one that is divided already: `root/{train,test}/<class>/…`.

    Raises:
        ManifestError: see `unseen.data.sources.folder.read` and `collect`.
    """
    manifest = folder.read(root, split=None, train_fraction=0.5, seed=0, listed="test")
    manifest = divided(manifest, unseen_classes)
    return ImageCollection(manifest, Files(manifest))


def from_manifest(source: Manifest | str | Path, *, unseen_classes: Unseen = None) -> ImageCollection:
    """A manifest, a saved one, or a table with the columns `path`, `label` and optionally `role`.

    Raises:
        ManifestError: see `unseen.data.sources.manifest_file.read`, `…table.read` and `collect`.
    """
    manifest = divided(source if isinstance(source, Manifest) else _read_table(source), unseen_classes)
    return ImageCollection(manifest, Files(manifest))


def _read_table(path: str | Path) -> Manifest:
    file = Path(path).expanduser()
    with file.open("rb") as stream:
        is_manifest = stream.read(17) == b"# unseen manifest"
    if is_manifest:
        return manifest_file.read(file, root=None)
    return table.read(file, root=None, split=None, train_fraction=0.5, seed=0, listed="test")


def _label_of(item: Any) -> Any:
    if isinstance(item, Mapping) and "label" in item:
        return item["label"]
    if isinstance(item, tuple | list) and len(item) > 1:
        return item[1]
    raise ManifestError(
        f"The data set gives a {type(item).__name__} where (image, label) is wanted. Pass labels=…"
    )


def _labels_of(dataset: Any) -> Any:
    """The labels without reading the images, where the data set knows them."""
    known = _known_labels(dataset)
    if known is not None and len(known) == len(dataset) and plain(known[0]) == plain(_label_of(dataset[0])):
        return known
    log.info("Reading %s items for their labels; labels=… spares that.", f"{len(dataset):,}")
    return [_label_of(dataset[row]) for row in range(len(dataset))]


def _known_labels(dataset: Any) -> Any:
    if isinstance(dataset, Subset):
        known = _known_labels(dataset.dataset)
        return None if known is None else [known[row] for row in dataset.indices]
    # What it makes of its targets is known of each item alone.
    return None if getattr(dataset, "target_transform", None) else getattr(dataset, "targets", None)


def _names_of(dataset: Any) -> ClassNames | None:
    if isinstance(dataset, Subset):
        return _names_of(dataset.dataset)
    names = None if getattr(dataset, "target_transform", None) else getattr(dataset, "classes", None)
    return names if isinstance(names, Sequence) and not isinstance(names, str) else None


def _probe(images: ConvertedImages) -> None:
    """Refuse what gives no images before anything is read at length."""
    if not len(images):
        raise ManifestError("The data set has no images.")
    images[0]


def _on_demand(
    images: ConvertedImages, labels: Any, unseen: Unseen, class_names: ClassNames | None
) -> ImageCollection:
    codes, names, known = classes_of(labels, len(images), class_names)
    paths = [f"{row:07d}" for row in range(len(images))]
    return ImageCollection(_manifest(ON_DEMAND, paths, codes, names, roles_of(names, known, unseen)), images)


def _required(labels: Any, what: str) -> Any:
    if labels is None:
        raise ManifestError(f"Labels are missing: {what} has none of its own. Pass labels=…, one an image.")
    return labels


def _manifest(
    root: Path,
    paths: Sequence[str],
    codes: NDArray[np.int64],
    names: tuple[str, ...],
    roles: NDArray[np.str_],
) -> Manifest:
    return Manifest(root=root, paths=tuple(paths), labels=codes, class_names=names, roles=roles[codes])


def _kind(source: object) -> str:
    return f"'{source}'" if isinstance(source, str | Path) else f"a {type(source).__name__}"
