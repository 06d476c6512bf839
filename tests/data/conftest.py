"""Shared by the tests of the data room: small trees of images, and replicas of the published data sets."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from unseen.data.acquire.archive import is_archive, unpack


def write_image(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> Path:
    """Write one image of noise; the suffix chooses the format, `size` is (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise[..., :3]).convert(mode) if mode != "RGBA" else Image.fromarray(noise)
    image.save(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Mapping[str, int]], Path]:
    """Make a class-per-folder tree: `tree({"wren": 3, "robin": 2})` gives its root."""

    def make(classes: Mapping[str, int]) -> Path:
        root = tmp_path / "tree"
        root.mkdir()
        for position, (name, count) in enumerate(classes.items()):
            (root / name).mkdir(parents=True)
            for index in range(count):
                write_image(root / name / f"{index}.png", seed=1000 * position + index)
        return root

    return make


def pack(source: Path, archive: Path) -> Path:
    """Pack what lies in `source` into `archive` (.zip, or a compressed .tar); returns the archive."""
    members = sorted(path for path in source.rglob("*"))
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in members:
                opened.write(path, path.relative_to(source).as_posix())
    else:
        with tarfile.open(archive, "w:gz") as opened:
            for path in members:
                opened.add(path, path.relative_to(source).as_posix(), recursive=False)
    return archive


# Tiny replicas of the published data sets: the files that their pages hand out, with the originals' layout
# and quirks. Every class has IMAGES images, so that each replica can be trained on.
IMAGES = 6


def build_cub(tree: Path, archives: Path) -> None:
    """Four birds; numbers from 1, Windows line ends, boxes in decimals, one grey image, a stray file."""
    names = (
        "001.Black_footed_Albatross",
        "002.Laysan_Albatross",
        "199.Winter_Wren",
        "200.Common_Yellowthroat",
    )
    base = tree / "CUB_200_2011"
    images, labels, boxes = [], [], []
    for image in range(len(names) * IMAGES):
        label = image // IMAGES
        path = f"{names[label]}/{names[label][4:]}_{image:04d}_7{image}.jpg"
        write_image(base / "images" / path, seed=image, mode="L" if image == 3 else "RGB")
        images.append(f"{image + 1} {path}")
        labels.append(f"{image + 1} {label + 1}")
        boxes.append(f"{image + 1} 2.5 1.5 10.2 12.5")
    classes = [f"{label + 1} {name}" for label, name in enumerate(names)]
    tables = {"images": images, "image_class_labels": labels, "bounding_boxes": boxes, "classes": classes}
    for name, lines in tables.items():
        (base / f"{name}.txt").write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    (tree / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    pack(tree, archives / "CUB_200_2011.tgz")


CAR_NAMES = (
    "AM General Hummer SUV 2000",
    "Ram C/V Cargo Van Minivan 2012",
    "FIAT 500 Abarth 2012",
    "smart 2012",
)


def write_car_annotations(
    path: Path, path_field: str, rows: Sequence[tuple[str, int]], **more: object
) -> None:
    """A devkit's struct array: corners and classes count from 1, and the corners include the last pixel."""
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", path_field)
    annotations = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for position, (name, label) in enumerate(rows):
        annotations[0, position] = (3, 2, 20, 18, label, name)
    savemat(path, {"annotations": annotations, **more})


def car_class_names() -> np.ndarray:
    names = np.empty((1, len(CAR_NAMES)), dtype=object)
    names[0] = CAR_NAMES
    return names


def build_cars(tree: Path, archives: Path) -> None:
    """Four cars in the form of `cars_annos.mat`; class names with spaces and a slash, one grey image."""
    rows = [(f"car_ims/{image + 1:06d}.jpg", image % 4 + 1) for image in range(4 * IMAGES)]
    for image, (name, _) in enumerate(rows):
        write_image(tree / "cars196" / name, seed=image, mode="L" if image == 5 else "RGB")
    annotations = tree / "cars196" / "cars_annos.mat"
    write_car_annotations(annotations, "relative_im_path", rows, class_names=car_class_names())
    pack(tree, archives / "CARS196.zip")


def build_sop(tree: Path, archives: Path) -> None:
    """Six products of two kinds; a head line, upper-case suffixes, one grey image."""
    base = tree / "Stanford_Online_Products"
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for image in range(6 * IMAGES):
        product = image // IMAGES + 8
        kind = ("bicycle", "chair")[product % 2]
        path = f"{kind}_final/1110851228{product:02d}_{image}.JPG"
        write_image(base / path, seed=image, mode="L" if image == 0 else "RGB")
        side = "train" if product <= 10 else "test"
        lines[side].append(f"{image + 1} {product} {product % 2 + 1} {path}")
    for side, rows in lines.items():
        (base / f"Ebay_{side}.txt").write_text(
            "\n".join(["image_id class_id super_class_id path", *rows]) + "\n"
        )
    pack(tree, archives / "Stanford_Online_Products.zip")


def build_inshop(tree: Path, archives: Path) -> None:
    """Four garments, two of them divided into query and gallery; two head lines, padded columns."""
    partition, boxes = [], []
    for image in range(4 * IMAGES):
        item = image // IMAGES + 1
        kind = ("MEN/Denim", "WOMEN/Blouses_Shirts")[item % 2]
        path = f"img/{kind}/id_{item:08d}/{image:02d}_1_front.jpg"
        write_image(tree / path, seed=image)
        role = "train" if item <= 2 else ("query", "gallery")[image % 2]
        partition.append(f"{path:<60} id_{item:08d} {role}")
        boxes.append(f"{path:<60} 1 3 02 01 20 019")
    archives.mkdir(parents=True, exist_ok=True)
    head = "image_name item_id evaluation_status"
    (archives / "list_eval_partition.txt").write_text(
        "\n".join([str(len(partition)), head, *partition]) + "\n"
    )
    head = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
    (archives / "list_bbox_inshop.txt").write_text("\n".join([str(len(boxes)), head, *boxes]) + "\n")
    pack(tree, archives / "img.zip")


def build_flowers(tree: Path, archives: Path) -> None:
    """Four flowers; the labels are a row of MATLAB bytes from 1, not in order."""
    labels = np.array([[image % 4 + 1 for image in range(4 * IMAGES)]], dtype=np.uint8)
    for image in range(4 * IMAGES):
        write_image(tree / "jpg" / f"image_{image + 1:05d}.jpg", seed=image)
    pack(tree, archives / "102flowers.tgz")
    savemat(archives / "imagelabels.mat", {"labels": labels})


def build_pets(tree: Path, archives: Path) -> None:
    """Five breeds; comments in the list, `._` files, an unlisted image, a PNG that is called .jpg."""
    breeds = ("Abyssinian", "american_bulldog", "american_pit_bull_terrier", "Bengal", "yorkshire_terrier")
    lines = ["#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37 Class ids"]
    for image in range(len(breeds) * IMAGES):
        label = image // IMAGES
        name = f"{breeds[label]}_{image}"
        write_image(tree / "images" / f"{name}.jpg", seed=image)
        lines.append(f"{name} {label + 1} {1 if breeds[label][0].isupper() else 2} 1")
    four_channels = write_image(tree / "four.png", seed=99, mode="RGBA")
    four_channels.replace(tree / "images" / "Abyssinian_1.jpg")
    write_image(tree / "images" / "Abyssinian_999.jpg", seed=98)
    (tree / "images" / "Abyssinian_101.mat").write_bytes(b"MATLAB 5.0")
    (tree / "images" / "._Abyssinian_2.jpg").write_bytes(b"\x00\x05\x16\x07")
    pack(tree, archives / "images.tar.gz")
    annotations = tree.parent / "annotations_tree"
    (annotations / "annotations").mkdir(parents=True)
    (annotations / "annotations" / "list.txt").write_text("\n".join(lines) + "\n")
    pack(annotations, archives / "annotations.tar.gz")


def build_plantvillage(tree: Path, archives: Path) -> None:
    """Six states of three species; spaces, commas and brackets in names, and a folder that is no class."""
    states = (
        "Apple___Apple_scab",
        "Apple___healthy",
        "Corn___Cercospora_leaf_spot Gray_leaf_spot",
        "Grape___Esca_(Black_Measles)",
        "Pepper,_bell___healthy",
        "Tomato___Leaf_Mold",
    )
    base = tree / "Plant_leave_diseases_dataset_without_augmentation"
    for label, state in enumerate((*states, "Background_without_leaves")):
        for image in range(IMAGES):
            write_image(base / state / f"image ({image + 1}).jpg", seed=100 * label + image)
        (base / state / "image (1).jpg").replace(base / state / "image (1).JPG")
    pack(tree, archives / "Plant_leaf_diseases_dataset_without_augmentation.zip")


def build_omniglot(tree: Path, archives: Path) -> None:
    """Three alphabets with two characters each; 1-bit drawings, and brackets in an alphabet's name."""
    alphabets = {"images_background": ("Greek", "Japanese_(hiragana)"), "images_evaluation": ("Angelic",)}
    for side, names in alphabets.items():
        for alphabet in names:
            for character in (1, 2):
                for image in range(IMAGES):
                    path = f"{side}/{alphabet}/character{character:02d}/{character:04d}_{image + 1:02d}.png"
                    write_image(tree / side / path, seed=hash_of(path), mode="1")
        pack(tree / side, archives / f"{side}.zip")


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode())


@pytest.fixture
def replica_archives(tmp_path: Path) -> Callable[[str], Path]:
    """`replica_archives("cub")` gives a folder with the files that the data set's page hands out."""

    def make(name: str) -> Path:
        tree = tmp_path / f"{name}_distribution"
        tree.mkdir()
        archives = tmp_path / f"{name}_archives"
        globals()[f"build_{name}"](tree, archives)
        return archives

    return make


def unpacked_replica(name: str, archives: Path, root: Path) -> Path:
    shutil.copytree(archives, root)
    for archive in sorted(root.iterdir()):
        if is_archive(archive.name):
            unpack(archive, root)
    for file, folder in (("list_eval_partition.txt", "Eval"), ("list_bbox_inshop.txt", "Anno")):
        if (root / file).exists():
            (root / folder).mkdir()
            (root / file).replace(root / folder / file)
    return root


@pytest.fixture
def replica(tmp_path: Path, replica_archives: Callable[[str], Path]) -> Callable[[str], Path]:
    """`replica("cub")` gives a data root: train on it with `data=cub data.root=<it> data.expected=null`."""
    return lambda name: unpacked_replica(name, replica_archives(name), tmp_path / f"{name}_root")


@pytest.fixture
def cub_replica(replica: Callable[[str], Path]) -> Path:
    return replica("cub")


@pytest.fixture
def cars_replica(replica: Callable[[str], Path]) -> Path:
    return replica("cars")


@pytest.fixture
def sop_replica(replica: Callable[[str], Path]) -> Path:
    return replica("sop")


@pytest.fixture
def inshop_replica(replica: Callable[[str], Path]) -> Path:
    return replica("inshop")


@pytest.fixture
def flowers_replica(replica: Callable[[str], Path]) -> Path:
    return replica("flowers")


@pytest.fixture
def pets_replica(replica: Callable[[str], Path]) -> Path:
    return replica("pets")


@pytest.fixture
def plantvillage_replica(replica: Callable[[str], Path]) -> Path:
    return replica("plantvillage")


@pytest.fixture
def omniglot_replica(replica: Callable[[str], Path]) -> Path:
    return replica("omniglot")


@pytest.fixture
def car_devkit(tmp_path: Path) -> Path:
    """Cars-196 in its other form: the devkit, and images divided for classification."""
    root = tmp_path / "devkit_root"
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": car_class_names()})
    files = {"cars_train": "devkit/cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}
    for folder, table in files.items():
        rows = [(f"{image + 1:05d}.jpg", image % 4 + 1) for image in range(2 * IMAGES)]
        write_car_annotations(root / table, "fname", rows)
        for name, _ in rows:
            write_image(root / folder / name, seed=hash_of(folder + name))
    return root
