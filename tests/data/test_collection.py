"""Any data set as data: the same images and labels whatever holds them, and errors that say what to do."""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, Subset

from unseen.data.collection import ImageCollection, collect, from_hugging_face
from unseen.data.images import Files, ImageError
from unseen.data.manifest import Manifest, ManifestError
from unseen.data.module import DataModule
from unseen.data.pixels import to_pixels
from unseen.data.samplers import ClassBalanced
from unseen.data.split import fixed
from unseen.data.transforms import Transforms, random_resized_crop, resized_center, sequence

NAMES = ("ant", "bee", "cow", "dog")
LABELS = np.repeat(np.arange(4), 10)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """`(40, 20, 24, 3)`: four classes of ten."""
    return np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), dtype=np.uint8)


class Vision(Dataset[Any]):
    """As torchvision's data sets are: `targets`, `classes`, Pillow's images unless there is a transform."""

    def __init__(self, pixels: NDArray[np.uint8], transform: Callable[[Any], Any] | None = None) -> None:
        self.pixels = pixels
        self.targets = LABELS.tolist()
        self.classes = list(NAMES)
        self.transform = transform
        self.read = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        self.read += 1
        image = Image.fromarray(self.pixels[row])
        return (self.transform(image) if self.transform else image), self.targets[row]


class Columns:
    """As data sets of the library `datasets` are; images may be decoded or not."""

    def __init__(self, columns: dict[str, list[Any]], names: list[str] | None = None) -> None:
        self.columns = columns
        self.features = {name: SimpleNamespace() for name in columns}
        if names:
            self.features["label"] = SimpleNamespace(names=names)

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}


def encoded(image: NDArray[np.uint8]) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def scaled(image: Any) -> torch.Tensor:
    """What torchvision's ToTensor makes of an image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def sources(pixels: NDArray[np.uint8], folder: Path) -> Iterator[tuple[str, ImageCollection]]:
    named = {"labels": LABELS, "class_names": NAMES}
    yield "array", collect(pixels, **named)
    yield "float array", collect(pixels.astype(np.float32) / 255, **named)
    yield "channels first", collect(pixels.transpose(0, 3, 1, 2), **named)
    yield "tensor", collect(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), **named)
    yield "list of images", collect([Image.fromarray(image) for image in pixels], **named)
    yield "torchvision", collect(Vision(pixels))
    yield "tensors", collect(Vision(pixels, scaled))
    yield "pairs", collect([(image, NAMES[label]) for image, label in zip(pixels, LABELS, strict=True)])
    images = [Image.fromarray(image) for image in pixels]
    yield "hugging face", collect(Columns({"image": images, "label": LABELS.tolist()}, list(NAMES)))
    undecoded = Columns({"img": [encoded(image) for image in pixels], "y": [NAMES[i] for i in LABELS]})
    yield "undecoded", from_hugging_face(undecoded, label_column="y")
    paths = []
    for row, (image, label) in enumerate(zip(pixels, LABELS, strict=True)):
        paths.append(folder / NAMES[label] / f"{row:02d}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(paths[-1])
    yield "paths", collect(paths, **named)
    yield "folder", collect(folder)
    collect(str(folder)).manifest.save(folder.parent / "manifest.csv")
    yield "saved manifest", collect(folder.parent / "manifest.csv")
    table = [f"{path},{path.parent.name}\n" for path in paths]
    (folder.parent / "table.csv").write_text("path,label\n" + "".join(table))
    yield "table", collect(folder.parent / "table.csv")


def test_every_source_gives_the_same_images_labels_and_roles(
    pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    for kind, made in sources(pixels, tmp_path / "tree"):
        assert made.manifest.class_names == NAMES, kind
        assert made.manifest.labels.tolist() == LABELS.tolist(), kind
        assert set(made.manifest.labels[made.manifest.roles == "train"]) == {0, 1}, kind
        assert len(made.images) == len(pixels), kind
        for row in (0, 17, 39):
            image = made.images[row]
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image, pixels[row], err_msg=kind)


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., DataModule]:
    def make(made: ImageCollection, **changes: Any) -> DataModule:
        arguments: dict[str, Any] = {
            "protocol": functools.partial(fixed, seed=0, held_out_fraction=0.2),
            "sampler": functools.partial(ClassBalanced, classes_per_batch=2, images_per_class=3),
            "transforms": Transforms(
                sequence([random_resized_crop(16, (0.3, 1.0))]), resized_center(16, 1.0)
            ),
            "seed": 3,
            "workers": 0,
            "evaluation_batch_size": 7,
            "exclude": None,
            "on_error": "raise",
            "crop_to_box": False,
            "cache": "none",
            "cache_size": 256,
            "cache_dir": tmp_path / "caches",
        }
        return DataModule(made.manifest, images=made.images, **arguments | changes)

    return make


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("kind", ["array", "torchvision", "hugging face"])
def test_an_epoch_is_the_same_with_and_without_workers(
    module: Callable[..., DataModule], pixels: NDArray[np.uint8], tmp_path: Path, kind: str, cache: str
) -> None:
    made = dict(sources(pixels, tmp_path / "tree"))[kind]
    epochs = []
    for workers in (0, 2):
        data = module(made, workers=workers, cache=cache)
        epochs.append(list(data.train_dataloader()))
        rows = np.concatenate([batch.ids.numpy() for batch in data.loader(data.split.query)])
        assert rows.tolist() == data.split.query.tolist()
    assert len(epochs[0]) == len(epochs[1]) > 0
    for one, other in zip(*epochs, strict=True):
        assert one.images.shape == (6, 3, 16, 16)
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    row = int(data.split.query[3])
    np.testing.assert_array_equal(
        data.image(row),
        data.transforms.evaluation(torch.from_numpy(pixels[row]).permute(2, 0, 1)).permute(1, 2, 0),
    )


@pytest.mark.parametrize("kind", ["array", "torchvision", "hugging face", "undecoded"])
def test_collections_reach_processes_that_are_not_forked(
    pixels: NDArray[np.uint8], tmp_path: Path, kind: str
) -> None:
    made = pickle.loads(pickle.dumps(dict(sources(pixels, tmp_path / "tree"))[kind]))
    np.testing.assert_array_equal(made.images[5], pixels[5])


def test_files_of_a_collection_keep_their_caches(
    module: Callable[..., DataModule], pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    made = dict(sources(pixels, tmp_path / "tree"))
    assert isinstance(made["folder"].images, Files)
    data = module(made["folder"], cache="memmap")
    assert data.reads_files
    np.testing.assert_array_equal(data.images[7], pixels[7])
    with pytest.raises(ValueError, match=r"data\.cache=memmap .* Set data\.cache=none or ram"):
        module(made["array"], cache="memmap")


class Spoilt(Vision):
    """Two images cannot be read."""

    def __getitem__(self, row: int) -> tuple[Any, int]:
        if row in (4, 31):
            raise OSError("image file is truncated")
        return super().__getitem__(row)


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_unreadable_and_excluded_images_leave_the_right_ones(
    module: Callable[..., DataModule], pixels: NDArray[np.uint8], tmp_path: Path, cache: str
) -> None:
    made = collect(Spoilt(pixels))
    (tmp_path / "exclude.txt").write_text("0000002\n0000033\n")
    data = module(made, cache=cache, on_error="skip", exclude=tmp_path / "exclude.txt")
    left = [row for row in range(40) if row not in (2, 4, 31, 33)]
    assert data.manifest.labels.tolist() == LABELS[left].tolist()
    for position, row in enumerate(left):
        np.testing.assert_array_equal(data.images[position], pixels[row])
    assert made.images.problems == {}
    with pytest.raises(
        ImageError, match=r"Image 4 of 40 cannot be read \(OSError: image file is truncated\)"
    ):
        made.images[4]


def test_a_hash_follows_the_pixels_in_memory_and_the_labels_elsewhere(pixels: NDArray[np.uint8]) -> None:
    make = functools.partial(collect, labels=LABELS)
    first = make(pixels).manifest.content_hash
    assert make(pixels.copy()).manifest.content_hash == first
    assert make(pixels.transpose(0, 3, 1, 2)).manifest.content_hash == first
    changed = pixels.copy()
    changed[39, 19, 23, 2] ^= 1
    assert make(changed).manifest.content_hash != first
    swapped = LABELS.copy()
    swapped[[0, 39]] = swapped[[39, 0]]
    assert collect(pixels, labels=swapped).manifest.content_hash != first
    read = collect(Vision(pixels)).manifest.content_hash
    assert collect(Vision(changed)).manifest.content_hash == read
    assert collect(Vision(pixels), labels=swapped).manifest.content_hash != read


def test_known_labels_spare_reading_and_others_are_read(pixels: NDArray[np.uint8]) -> None:
    dataset = Vision(pixels)
    collect(dataset)
    assert dataset.read <= 2
    part = Subset(dataset, list(range(5, 35)))
    assert collect(part).manifest.labels.tolist() == LABELS[5:35].tolist()
    assert collect(part).manifest.class_names == NAMES

    class Reversed(Vision):
        """Its items do not follow its targets, as with a `target_transform`."""

        def __getitem__(self, row: int) -> tuple[Any, int]:
            image, label = super().__getitem__(row)
            return image, 3 - label

    assert collect(Reversed(pixels)).manifest.labels.tolist() == (3 - LABELS).tolist()


@pytest.mark.parametrize("transform", [lambda label: label // 2, lambda label: 3 - label])
def test_labels_that_a_data_set_transforms_are_those_of_its_items(
    pixels: NDArray[np.uint8], transform: Callable[[int], int]
) -> None:
    class Transformed(Vision):
        target_transform = staticmethod(transform)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            image, label = super().__getitem__(row)
            return image, transform(label)

    for dataset in (Transformed(pixels), Subset(Transformed(pixels), list(range(len(LABELS))))):
        manifest = collect(dataset).manifest
        assert manifest.labels.tolist() == [transform(label) for label in LABELS.tolist()]
        assert set(manifest.class_names) == {str(transform(label)) for label in LABELS.tolist()}


def test_a_file_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.png"]
    with pytest.raises(ManifestError, match=r"a.png' is given twice"):
        collect(paths, labels=[0, 1, 0])
    (tmp_path / "link.png").symlink_to(paths[0])
    with pytest.raises(ManifestError, match=r"a.png' alias '.*link.png' is given twice"):
        collect([*paths[:2], tmp_path / "link.png"], labels=[0, 1, 0])


def test_names_by_label_may_be_of_any_number(pixels: NDArray[np.uint8]) -> None:
    names = {-1: "ant", 0: "bee", 1: "cow", 2: "dog"}
    assert collect(pixels, labels=LABELS - 1, class_names=names).manifest.class_names == tuple(names.values())


def test_names_that_a_data_set_has_are_not_those_of_other_labels(pixels: NDArray[np.uint8]) -> None:
    assert collect(Vision(pixels), labels=LABELS * 10).manifest.class_names == ("0", "10", "20", "30")


def trains(made: ImageCollection) -> set[str]:
    manifest = made.manifest
    return {manifest.class_names[label] for label in manifest.labels[manifest.roles == "train"]}


@pytest.mark.parametrize(
    ("unseen", "training"),
    [
        (None, {"ant", "bee"}),
        (0.25, {"ant", "bee", "cow"}),
        (0.7, {"ant"}),
        (["bee", "cow"], {"ant", "dog"}),
        ([0, np.int64(3)], {"bee", "cow"}),
        (torch.tensor([1]), {"ant", "cow", "dog"}),
    ],
)
def test_unseen_classes_are_names_labels_or_a_share(
    pixels: NDArray[np.uint8], unseen: Any, training: set[str]
) -> None:
    assert trains(collect(pixels, labels=LABELS, class_names=NAMES, unseen_classes=unseen)) == training
    mapping = dict(enumerate(NAMES))
    assert trains(collect(pixels, labels=LABELS, class_names=mapping, unseen_classes=unseen)) == training


def test_what_is_divided_stays_so_unless_asked(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    for row, label in enumerate(LABELS):
        path = tmp_path / "tree" / ("test" if label == 1 else "train") / NAMES[label] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(path)
    made = collect(tmp_path / "tree")
    assert trains(made) == {"ant", "cow", "dog"}
    assert trains(collect(made)) == {"ant", "cow", "dog"}
    assert trains(collect(made.manifest, unseen_classes=["ant"])) == {"bee", "cow", "dog"}
    assert trains(collect(made, unseen_classes=0.5)) == {"ant", "bee"}
    gap = replace(made.manifest, class_names=(*NAMES, "none"))  # a name without an image
    assert trains(collect(gap, unseen_classes=0.5)) == {"ant", "bee"}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (1, 6, 5)])
def test_grey_images_of_any_type_become_rgb(dtype: Any, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
    given = values.reshape(shape)
    if np.issubdtype(dtype, np.floating):
        image = (given / 255).astype(dtype)
    elif dtype is np.bool_:
        image, values = given > 100, np.where(values > 100, 255, 0)
    else:
        image = given.astype(dtype)
    made = to_pixels(image)
    assert made.shape == (6, 5, 3)
    assert made.flags.c_contiguous
    assert made.flags.writeable
    for channel in range(3):
        np.testing.assert_array_equal(made[..., channel], values)


def test_layouts_that_could_be_either_follow_the_type() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_pixels(image), image)
    np.testing.assert_array_equal(to_pixels(torch.from_numpy(image)), image.transpose(1, 2, 0))
    clear = np.full((4, 5, 4), (10, 20, 30, 0), dtype=np.uint8)
    assert (to_pixels(clear) == 255).all(), "transparent pixels lie on white, as those of files do"


def bad(pixels: NDArray[np.uint8], divided_tree: Path) -> dict[str, Callable[[], object]]:
    normalised = (pixels.astype(np.float32) / 255 - 0.5) / 0.25
    with_nan = pixels.astype(np.float32) / 255
    with_nan[1, 2, 3] = np.nan
    columns = Columns({"picture": list(pixels), "label": LABELS.tolist()})
    return {
        r"float32 values go from -2 to 2; wanted 0 … 1.*not normalised": lambda: collect(
            normalised, labels=LABELS
        ),
        r"Image 1 of 40 .*nan": lambda: collect(with_nan, labels=LABELS),
        r"int64 values go from 0 to 510; wanted 0 … 255": lambda: to_pixels(pixels[0].astype(np.int64) * 2),
        r"shape \(40, 1440\)\. Wanted \(N, H, W, 3\)": lambda: collect(pixels.reshape(40, -1), labels=LABELS),
        r"uint8 and hold no number above 1.*Give bool": lambda: collect(pixels // 128, labels=LABELS),
        r"int64 and hold no number above 1": lambda: collect(
            torch.from_numpy(pixels // 128).long(), labels=LABELS
        ),
        r"Image 0 of 2 .*it has 201×1 pixels": lambda: collect(np.zeros((2, 1, 201)), labels=[0, 1]),
        r"an image has shape \(20, 24, 2\)": lambda: collect(pixels[..., :2], labels=LABELS),
        r"Labels are missing.*Pass labels=": lambda: collect(pixels),
        r"labels has shape \(39,\) for 40 images": lambda: collect(pixels, labels=LABELS[1:]),
        r"labels has shape \(40, 4\)": lambda: collect(pixels, labels=np.eye(4)[LABELS]),
        r"types Tensor\. Wanted whole": lambda: collect(list(zip(pixels, torch.eye(40), strict=True))),
        r"types float\. Wanted whole numbers or names": lambda: collect(pixels, labels=LABELS * 1.0),
        r"label of image 1 is empty": lambda: collect(pixels[:2], labels=["ant", ""]),
        r"3 names and none for the label 3": lambda: collect(pixels, labels=LABELS, class_names=NAMES[:3]),
        r"none for the label -1": lambda: collect(pixels, labels=LABELS - 1, class_names=NAMES),
        r"names 'bees', which no image has .*Did you mean 'bee'": lambda: collect(
            Vision(pixels), unseen_classes=["bees"]
        ),
        r"leaves 0 of 4 classes to train on": lambda: collect(Vision(pixels), unseen_classes=NAMES),
        r"leaves 4 of 4 classes": lambda: collect(Vision(pixels), unseen_classes=[]),
        r"unseen_classes=1\.5: wanted a share": lambda: collect(Vision(pixels), unseen_classes=1.5),
        r"unseen_classes='bee': wanted a list": lambda: collect(Vision(pixels), unseen_classes="bee"),
        r"several data sets \(train, test\)\. Choose one": lambda: collect({"train": 1, "test": 2}),
        r"columns picture, label, none of them image or .*image_column=": lambda: collect(columns),
        r"streamed: it has no length": lambda: collect(IterableColumns()),
        r"Cannot make a collection of a int": lambda: collect(3),
        r"ndarray where \(image, label\) is wanted\. Pass labels=": lambda: collect(list(pixels)),
        r"got a str where an image is wanted": lambda: collect([("a.png", 0), ("b.png", 1)]),
        r"'nowhere' does not exist": lambda: collect("nowhere"),
        r"found 'val' in .*Wanted only train": lambda: collect(divided_tree),
        r"labels was given beside a Manifest": lambda: collect(
            collect(Vision(pixels)).manifest, labels=LABELS
        ),
        r"2 of 2 listed images are missing": lambda: collect(["no/a.png", "no/b.png"], labels=[0, 1]),
        r"has no images": lambda: collect([], labels=[]),
    }


class IterableColumns:
    column_names = ("image", "label")

    def __getitem__(self, key: str) -> None:
        raise KeyError(key)


def test_what_cannot_work_is_refused_in_words(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "ant").mkdir(parents=True)
    for words, attempt in bad(pixels, tmp_path).items():
        with pytest.raises((ManifestError, ImageError, TypeError, ValueError), match=words):
            attempt()


def test_images_and_rows_have_to_be_as_many(
    module: Callable[..., DataModule], pixels: NDArray[np.uint8]
) -> None:
    made = collect(Vision(pixels))
    assert isinstance(made.manifest, Manifest)
    with pytest.raises(ValueError, match="40 images for 30 rows"):
        module(replace(made, manifest=made.manifest.select(range(5, 35))))
