"""The published data sets: replicas of their files give the right rows, roles, boxes and names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from scipy.io import loadmat, savemat

from unseen.config.command_line import config_folder
from unseen.data.manifest import Manifest, ManifestError
from unseen.data.sources import cars, cub, flowers, pets, plantvillage, sop
from unseen.data.sources.layout import IncompleteData

Replica = Callable[[str], Path]

IMAGES = 6  # of each class in every replica
COUNTS = {
    "cub": {"train": (2, 12), "test": (2, 12)},
    "cars": {"train": (2, 12), "test": (2, 12)},
    "sop": {"train": (3, 18), "test": (3, 18)},
    "inshop": {"train": (2, 12), "query": (2, 6), "gallery": (2, 6)},
    "flowers": {"train": (2, 12), "test": (2, 12)},
    "pets": {"train": (3, 18), "test": (2, 12)},
    "plantvillage": {"train": (4, 24), "test": (2, 12)},
    "omniglot": {"train": (4, 24), "test": (2, 12)},
}


def published(name: str) -> DictConfig:
    config = OmegaConf.load(config_folder() / "data" / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    return config


def read_as_configured(name: str, root: Path, **keys: Any) -> Manifest:
    """What the YAML of a data set reads, with the keys that a person would type."""
    replica_keys = {"test_species": ["Pepper,_bell", "Tomato"]} if name == "plantvillage" else {}
    changes = {"root": str(root), "expected": None} | replica_keys | keys
    config = OmegaConf.create({"data": OmegaConf.merge(published(name), changes)})
    try:
        return instantiate(config.data.source)
    except InstantiationException as error:
        raise error.__cause__ or error from None


@pytest.mark.parametrize("name", COUNTS)
def test_a_replica_gives_the_right_counts_and_images_that_open(name: str, replica: Replica) -> None:
    manifest = read_as_configured(name, replica(name))
    counts = {
        role: (len(np.unique(manifest.labels[manifest.roles == role])), int((manifest.roles == role).sum()))
        for role in dict.fromkeys(manifest.roles.tolist())
    }
    assert counts == COUNTS[name]
    for row in range(len(manifest)):
        with Image.open(manifest.absolute(row)) as image:
            image.load()


@pytest.mark.parametrize("name", COUNTS)
def test_a_replica_is_not_mistaken_for_the_published_set(name: str, replica: Replica) -> None:
    with pytest.raises(ManifestError, match=r"where [\d,]+ were published.*data\.expected=null"):
        read_as_configured(name, replica(name), expected=published(name).expected)


# Out of the literature: images and classes that train, images and classes that test.
ZERO_SHOT = {
    "cub": (5864, 100, 5924, 100),
    "cars": (8054, 98, 8131, 98),
    "sop": (59551, 11318, 60502, 11316),
    "flowers": (3493, 51, 4696, 51),
    "omniglot": (964 * 20, 964, 659 * 20, 659),
}


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_the_published_counts_are_those_of_the_field(name: str) -> None:
    keys = ("train_images", "train_classes", "test_images", "test_classes")
    assert published(name).expected == dict(zip(keys, ZERO_SHOT[name], strict=True))


def test_the_published_counts_of_sets_with_other_splits() -> None:
    shop = published("inshop").expected
    assert (shop.train_images, shop.query_images, shop.gallery_images) == (25882, 14218, 12612)
    assert (shop.train_classes, shop.query_classes, shop.gallery_classes) == (3997, 3985, 3985)
    assert published("pets").expected == {"images": 7349, "train_classes": 19, "test_classes": 18}
    assert published("plantvillage").expected == {"classes": 38, "images_at_least": 54303}


@pytest.mark.parametrize("name", COUNTS)
def test_every_address_is_http_and_has_a_page_besides(name: str) -> None:
    download = published(name).download
    assert download.page.startswith("https://")
    assert all(file.get("url", "https://").startswith(("http://", "https://")) for file in download.files)


def test_cub_boxes_hold_every_pixel_that_they_touch(cub_replica: Path) -> None:
    manifest = cub.read(cub_replica, expected=None)
    assert manifest.boxes is not None
    assert manifest.boxes[0].tolist() == [2, 1, 13, 14]
    assert manifest.class_names[0] == "001.Black_footed_Albatross"
    assert manifest.paths[0].startswith("001.Black_footed_Albatross/Black_footed_Albatross_0000")


def test_cub_without_a_box_for_an_image_names_the_file(cub_replica: Path) -> None:
    path = cub_replica / "CUB_200_2011" / "bounding_boxes.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-2]))
    with pytest.raises(ManifestError, match=r"bounding_boxes.txt' has no line for image 23 \(2 such\)"):
        cub.read(cub_replica, expected=None)


def test_cars_corners_count_from_one_and_include_the_last_pixel(cars_replica: Path) -> None:
    manifest = cars.read(cars_replica, expected=None)
    assert manifest.boxes is not None
    assert manifest.boxes[0].tolist() == [2, 1, 20, 18]
    assert manifest.class_names[1] == "Ram C/V Cargo Van Minivan 2012"
    assert manifest.labels[:5].tolist() == [0, 1, 2, 3, 0]


def test_cars_devkit_gives_the_same_classes(car_devkit: Path) -> None:
    manifest = cars.read(car_devkit, expected={"train_images": 12, "test_images": 12})
    assert manifest.class_names[3] == "smart 2012"
    # The devkit's train and test images are both divided by class.
    assert {path.split("/")[0] for path in manifest.paths} == {"cars_train", "cars_test"}
    assert manifest.labels[0] == 0
    assert manifest.boxes is not None


def test_sop_products_are_ordered_as_numbers_and_keep_their_kind(sop_replica: Path) -> None:
    manifest = sop.read(sop_replica, expected=None)
    assert manifest.class_names == ("8", "9", "10", "11", "12", "13")
    assert manifest.super_classes is not None
    assert set(manifest.super_classes) == {"bicycle", "chair"}


def test_sop_says_how_many_images_are_missing(sop_replica: Path) -> None:
    base = sop_replica / "Stanford_Online_Products"
    gone = sorted((base / "chair_final").iterdir())[:2]
    for path in gone:
        path.unlink()
    with pytest.raises(ManifestError, match=f"2 of 36 listed images are missing.*{gone[0].name}"):
        sop.read(base, expected=None)


def test_inshop_query_and_gallery_share_classes_that_training_lacks(replica: Replica) -> None:
    manifest = read_as_configured("inshop", replica("inshop"))
    seen, query, gallery = (
        set(manifest.labels[manifest.roles == role]) for role in ("train", "query", "gallery")
    )
    assert query == gallery
    assert not seen & query
    assert manifest.boxes is not None
    assert manifest.boxes[0].tolist() == [2, 1, 20, 19]
    assert manifest.super_classes is not None
    assert manifest.super_classes[0] == "WOMEN/Blouses_Shirts"


def test_flowers_labels_belong_to_their_images(flowers_replica: Path) -> None:
    manifest = flowers.read(flowers_replica, expected=None)
    assert manifest.class_names == ("001", "002", "003", "004")
    assert dict(zip(manifest.paths, manifest.labels.tolist(), strict=True))["jpg/image_00007.jpg"] == 2


def test_flowers_with_a_label_file_that_ends_anywhere_say_so(flowers_replica: Path) -> None:
    path = flowers_replica / "imagelabels.mat"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(IncompleteData, match=r"imagelabels\.mat' is (not a complete|broken)"):
            flowers.read(flowers_replica, expected=None)


@pytest.mark.parametrize(
    "content",
    [
        {"setid": np.arange(3)},
        {"labels": np.array(["rose", "tulip"])},
        {"labels": np.array([[]])},
        # Counted from 0, a label of 0 would be the last class.
        {"labels": np.array([[0, 1, 2, 3] * IMAGES], dtype=np.uint8)},
    ],
)
def test_flowers_with_other_labels_name_the_file(flowers_replica: Path, content: dict[str, Any]) -> None:
    savemat(flowers_replica / "imagelabels.mat", content)
    with pytest.raises(IncompleteData, match=r"imagelabels\.mat' is broken"):
        flowers.read(flowers_replica, expected=None)


@pytest.mark.parametrize("first", [0, 2])
def test_cars_whose_labels_do_not_count_from_one_name_the_file(cars_replica: Path, first: int) -> None:
    path = cars_replica / "cars196" / "cars_annos.mat"
    table = loadmat(path)
    for row in table["annotations"][0]:
        row["class"] = row["class"] - 1 + first
    savemat(path, {key: table[key] for key in ("annotations", "class_names")})
    with pytest.raises(IncompleteData, match=r"cars_annos\.mat'.*label [05]; labels go from 1 to 4"):
        cars.read(cars_replica, expected=None)


@pytest.mark.parametrize(
    "content", [{}, {"class_names": ["a", "b"], "annotations": np.arange(3)}, {"annotations": np.arange(3)}]
)
def test_cars_without_names_or_annotations_name_the_file(cars_replica: Path, content: dict[str, Any]) -> None:
    savemat(cars_replica / "cars196" / "cars_annos.mat", content)
    with pytest.raises(IncompleteData, match=r"cars_annos\.mat' is broken"):
        cars.read(cars_replica, expected=None)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def damaged(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return change


CUB, SOP = "CUB_200_2011", "Stanford_Online_Products"


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("cub", f"{CUB}/images.txt", empty),
        ("cub", f"{CUB}/images.txt", damaged(b"Albatross", b"\xe9")),
        ("cub", f"{CUB}/classes.txt", empty),
        ("cub", f"{CUB}/classes.txt", cut),
        ("cub", f"{CUB}/image_class_labels.txt", damaged(b"1 1", b"1 1x")),
        ("cub", f"{CUB}/bounding_boxes.txt", damaged(b"2.5", b"two")),
        ("cub", f"{CUB}/bounding_boxes.txt", damaged(b"2.5", b"nan")),
        ("cub", f"{CUB}/bounding_boxes.txt", damaged(b"2.5", b"inf")),
        ("sop", f"{SOP}/Ebay_train.txt", empty),
        ("sop", f"{SOP}/Ebay_test.txt", empty),
        ("sop", f"{SOP}/Ebay_train.txt", damaged(b"1 8 ", b"1 x ")),
        ("inshop", "Eval/list_eval_partition.txt", empty),
        ("inshop", "Eval/list_eval_partition.txt", damaged(b"train", b"tr")),
        ("inshop", "Anno/list_bbox_inshop.txt", empty),
        ("inshop", "Anno/list_bbox_inshop.txt", damaged(b"019", b"x9")),
        ("pets", "annotations/list.txt", empty),
        ("pets", "annotations/list.txt", damaged(b" 1 1 1", b" x 1 1")),
    ],
)
def test_a_broken_list_is_incomplete_data_and_names_the_file(
    replica: Replica, name: str, file: str, change: Callable[[bytes], bytes]
) -> None:
    root = replica(name)
    path = root / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IncompleteData, match=re.escape(f"{path}'")):
        read_as_configured(name, root)


def test_pets_are_the_listed_ones_in_the_order_of_their_numbers(pets_replica: Path) -> None:
    manifest = pets.read(pets_replica, expected={"images": 30})
    assert manifest.class_names[1:4] == ("american_bulldog", "american_pit_bull_terrier", "Bengal")
    assert "images/Abyssinian_999.jpg" not in manifest.paths
    assert manifest.super_classes is not None
    assert manifest.super_classes[0] == "cat"


def test_plantvillage_leaves_whole_species_out(plantvillage_replica: Path) -> None:
    manifest = plantvillage.read(plantvillage_replica, test_species=["Apple"], expected=None)
    unseen = {manifest.class_names[label] for label in manifest.labels[manifest.roles == "test"]}
    assert unseen == {"Apple___Apple_scab", "Apple___healthy"}
    assert not any("Background" in name for name in manifest.class_names)
    for wrong, message in (
        (["Banana"], "'Banana'. Choose from: Apple"),
        ([], "no species to train or"),
    ):
        with pytest.raises(ManifestError, match=message):
            plantvillage.read(plantvillage_replica, test_species=wrong, expected=None)


@pytest.mark.parametrize(("minimum", "passes"), [(36, True), (35, True), (37, False)])
def test_a_minimum_of_images_is_a_minimum(plantvillage_replica: Path, minimum: int, passes: bool) -> None:
    expected = {"classes": 6, "images_at_least": minimum}
    if passes:
        assert len(plantvillage.read(plantvillage_replica, test_species=["Apple"], expected=expected)) == 36
        return
    with pytest.raises(IncompleteData, match="Read 36 images where at least 37 were published"):
        plantvillage.read(plantvillage_replica, test_species=["Apple"], expected=expected)


def test_more_than_an_exact_count_is_refused(sop_replica: Path) -> None:
    with pytest.raises(IncompleteData, match="Read 36 images where 35 were published"):
        sop.read(sop_replica, expected={"images": 35})


def test_omniglot_characters_carry_their_alphabet(replica: Replica) -> None:
    manifest = read_as_configured("omniglot", replica("omniglot"))
    assert manifest.class_names[0] == "Greek/character01"
    assert manifest.super_classes is not None
    assert manifest.super_classes[-1] == "Angelic"


@pytest.mark.parametrize("name", COUNTS)
def test_an_empty_root_names_the_file_that_was_looked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"Found .*'|Found no folders"):
        read_as_configured(name, tmp_path)


def test_an_unknown_expectation_is_refused(sop_replica: Path) -> None:
    with pytest.raises(ManifestError, match="unknown key 'train_pictures'"):
        sop.read(sop_replica, expected={"train_pictures": 1})
