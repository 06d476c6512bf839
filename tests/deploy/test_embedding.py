"""Many images go into a gallery once each, whatever holds them and whatever is broken among them."""

import csv
import io
import json
import os
import tarfile

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from PIL import Image

from unseen.data.images import PassingError, read_image
from unseen.data.sources.folder import read
from unseen.deploy import embedding
from unseen.deploy.embedding import embed_images
from unseen.deploy.gallery import Gallery
from unseen.deploy.listing import list_images, read_place
from unseen.deploy.runners import local
from unseen.files import refusing_lock


def embed(model, source, folder, **kwargs):
    counted = []
    outcome = embed_images(
        model, list_images(source), folder, batch_size=5, progress=counted.append, **kwargs
    )
    return outcome, sum(counted)


def test_what_is_new_or_has_changed_is_embedded_and_what_is_broken_is_listed(colours, photos, tmp_path):
    model = colours()
    outcome, counted = embed(model, photos, tmp_path / "gallery")
    broken = str(photos / "owl" / "broken.png")
    assert (outcome.embedded, outcome.known, list(outcome.unreadable)) == (12, 0, [broken])
    assert counted == 13
    with (tmp_path / "gallery" / "unreadable.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [broken]
    assert "cannot be read" in rows[0]["reason"]
    gallery = Gallery.open(tmp_path / "gallery")
    assert gallery.column("label").tolist() == ["bee"] * 4 + ["fly"] * 4 + ["owl"] * 4
    for place, found in zip(gallery.column("path"), gallery.embeddings, strict=True):
        mean = read_image(place).reshape(-1, 3).mean(0)
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), rtol=1e-5)

    (photos / "bee" / "0.png").write_bytes((photos / "owl" / "0.png").read_bytes())
    os.utime(photos / "bee" / "0.png", ns=(1, 1))
    (photos / "owl" / "broken.png").unlink()
    outcome, _ = embed(model, photos, tmp_path / "gallery")
    assert (outcome.embedded, outcome.known, outcome.unreadable) == (1, 11, {})
    again = Gallery.open(tmp_path / "gallery")
    assert again.ids.tolist() == list(range(1, 13))
    assert again.row(12)["path"] == str(photos / "bee" / "0.png")
    assert not (tmp_path / "gallery" / "unreadable.csv").exists()


def test_what_was_unreadable_elsewhere_stays_listed_while_it_is_there(colours, photos, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    write_tar(others / "shard.tar", photos / "owl", {})
    broken, within = str(photos / "owl" / "broken.png"), f"{others}/shard.tar::broken.png"

    def listed(source):
        embed(colours(), source, tmp_path / "gallery")
        path = tmp_path / "gallery" / "unreadable.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [row["path"] for row in csv.DictReader(file)]

    assert listed(photos) == [broken]
    assert listed(others) == [broken, within]
    assert listed(photos / "bee") == [broken, within]
    write_tar(others / "shard.tar", photos / "fly", {})
    assert listed(others) == [broken]
    (photos / "owl" / "broken.png").unlink()
    assert listed(photos / "bee") == []


def test_after_a_crash_it_goes_on_and_ends_with_the_same(colours, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "SEGMENT", 4)
    embed(colours(), photos, tmp_path / "whole")

    class Dies(colours):
        def embed_prepared(self, batch):
            if len(self.batches) == 2:
                raise MemoryError
            return super().embed_prepared(batch)

    with pytest.raises(MemoryError):
        embed(Dies(), photos, tmp_path / "gallery")
    assert len(Gallery.open(tmp_path / "gallery")) == 10
    model = colours()
    outcome, counted = embed(model, photos, tmp_path / "gallery")
    assert (outcome.embedded, outcome.known, counted) == (2, 10, 13)
    assert sum(model.batches) == 2
    whole, gallery = Gallery.open(tmp_path / "whole"), Gallery.open(tmp_path / "gallery")
    np.testing.assert_array_equal(gallery.embeddings, whole.embeddings)
    assert gallery.column("path").tolist() == whole.column("path").tolist()


def test_what_only_this_machine_cannot_read_stops_it(colours, photos, tmp_path, monkeypatch):
    def fails(place):
        raise PassingError("Image 'x' cannot be read now")

    monkeypatch.setattr(local, "read_place", fails)
    with pytest.raises(PassingError, match="cannot be read now"):
        embed(colours(), photos, tmp_path / "gallery")


def test_tables_bring_labels_and_columns(colours, photos, tmp_path):
    table = photos / "table.csv"
    table.write_text("path,label,price\nbee/0.png,bee,3\nfly/1.png,,7\nbee/0.png,bee,3\n")
    outcome, counted = embed(colours(), table, tmp_path / "gallery")
    assert (outcome.embedded, counted) == (2, 3)  # listed twice, one image
    gallery = Gallery.open(tmp_path / "gallery")
    assert gallery.row(1) == {"id": 1, "path": str(photos / "fly" / "1.png"), "label": "", "price": "7"}
    content = arrow.table(
        {"path": ["owl/2.png"], "label": [5], "price": arrow.array([None], arrow.float64())}
    )
    arrow.parquet.write_table(content, photos / "table.parquet")
    listing = list_images(photos / "table.parquet")
    assert listing.columns == {"label": ["5"], "price": [""]}
    paths = ["owl/2.png", "owl\\3.png", "bee/0.png"]
    content = arrow.table({"path": paths, "label": [1.0, float("nan"), None], "share": [1.5, None, 2.0]})
    arrow.parquet.write_table(content, photos / "table.parquet")
    listing = list_images(photos / "table.parquet")
    assert listing.columns == {"label": ["1", "", ""], "share": ["1.5", "", "2"]}
    assert listing.places[1] == str(photos / "owl" / "3.png")
    content = arrow.table({"path": ["owl/2.png", None]})
    arrow.parquet.write_table(content, photos / "table.parquet")
    with pytest.raises(ValueError, match=r"table\.parquet' row 2 has no path"):
        list_images(photos / "table.parquet")
    table.write_text("file,label\na.png,b\n")
    with pytest.raises(ValueError, match="has the columns file, label; 'path' is missing"):
        list_images(table)


def test_the_manifest_of_a_run_brings_classes_and_roles(colours, photos, tmp_path):
    (photos / "owl" / "broken.png").unlink()
    read(photos, split="order", train_fraction=0.5, seed=0, listed="test").save(tmp_path / "manifest.csv")
    listing = list_images(tmp_path / "manifest.csv")
    assert (len(listing), list(listing.columns)) == (12, ["label", "role"])
    unseen = listing.only({"role": "test"})
    assert set(unseen.columns["role"]) == {"test"}
    wanted = [str(photos / label / f"{index}.png") for label in ("fly", "owl") for index in range(4)]
    assert unseen.places == wanted
    assert listing.only({"label": ["bee", "fly"]}).columns["label"] == ["bee"] * 4 + ["fly"] * 4
    with pytest.raises(ValueError, match=r"no column 'split'. Columns: label, role"):
        listing.only({"split": "test"})
    with pytest.raises(ValueError, match=r"No image has the texts {'label': 'cat'}"):
        listing.only({"label": "cat"})


def test_tar_files_as_webdataset_writes_them(colours, photos, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard, label in enumerate(("bee", "owl")):
        with tarfile.open(shards / f"{shard}.tar", "w") as archive:
            for index in range(3):
                key = f"{label}{index}"
                archive.add(photos / label / f"{index}.png", f"{key}.png")
                kind, text = (
                    ("cls", label) if shard == 0 else ("json", json.dumps({"label": label, "n": index}))
                )
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
    outcome, _ = embed(colours(), shards, tmp_path / "gallery")
    assert outcome.embedded == 6
    gallery = Gallery.open(tmp_path / "gallery")
    assert gallery.column("label").tolist() == ["bee"] * 3 + ["owl"] * 3
    assert gallery.column("n").tolist() == ["", "", "", "0", "1", "2"]
    np.testing.assert_array_equal(read_place(gallery.row(4)["path"]), read_image(photos / "owl" / "1.png"))
    assert list_images(shards / "1.tar").places == gallery.column("path")[3:].tolist()
    (shards / "1.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="is not an uncompressed tar file"):
        list_images(shards / "1.tar")


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_links_within_a_tar_file_are_followed(photos, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(photos / "bee" / "0.png", "./a/0.png")
        archive.add(photos / "bee" / "1.png", "./b/1.png")
        archive.addfile(link("./a/0.png", "./a/0.png", tarfile.LNKTYPE))  # packed twice
        archive.addfile(link("./a/hard.png", "./a/0.png", tarfile.LNKTYPE))
        archive.addfile(link("./a/soft.png", "../b/1.png"))
        archive.addfile(link("./b/far.png", "../a/soft.png"))
        archive.addfile(link("./README", "/etc/passwd"))
    listing = list_images(tmp_path / "shard.tar")
    names = ["./a/0.png", "./b/1.png", "./a/hard.png", "./a/soft.png", "./b/far.png"]
    assert listing.places == [f"{tmp_path}/shard.tar::{name}" for name in names]
    for place, of in zip(listing.places, (0, 1, 0, 1, 1), strict=True):
        np.testing.assert_array_equal(read_place(place), read_image(photos / "bee" / f"{of}.png"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../photos/bee/0.png", "nothing.png", "1.png", "."])
@pytest.mark.parametrize("name", ["1.png", "1.cls"])
def test_links_that_lead_out_of_a_tar_file_are_refused(photos, tmp_path, name, target):
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(photos / "bee" / "0.png", "0.png")
        archive.addfile(link(name, target))
        archive.addfile(link("1.png", "1.png"))
    words = f"its member '{name}' is a link to .* which is no file in the archive. Pack it again"
    with pytest.raises(ValueError, match=words):
        list_images(tmp_path / "shard.tar")


def test_what_macos_leaves_in_a_tar_file_is_no_image(photos, tmp_path):
    left = {"._0.png": b"?", "./owl/._1.png": b"?", "__MACOSX/owl/1.png": b"?", "._0.cls": b"?"}
    write_tar(tmp_path / "shard.tar", photos / "bee", left)
    listing = list_images(tmp_path / "shard.tar")
    assert listing.places == [f"{tmp_path}/shard.tar::{index}.png" for index in range(4)]
    assert listing.columns == {"label": [""] * 4}


def test_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder or file"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there are no images in it"):
        list_images(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"wanted a folder, a .csv, a .parquet or a .tar"):
        list_images(tmp_path / "a.txt")


def test_a_folder_of_images_and_of_tar_files_is_refused(photos):
    (photos / "backup.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"images in it, and tar files \(backup\.tar\)"):
        list_images(photos)


def test_memory_that_runs_out_says_nothing_of_an_image_in_a_tar_file(photos, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        archive.add(photos / "owl" / "1.png", "1.png")
    place = list_images(tmp_path / "one.tar").places[0]
    monkeypatch.setattr("unseen.deploy.listing.to_pixels", lambda image: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(PassingError, match="The cause is this machine"):
        read_place(place)


def write_tar(path, images, others):
    """All images of a folder, and other members by name."""
    with tarfile.open(path, "w") as archive:
        for image in sorted(images.iterdir()):
            archive.add(image, image.name)
        for name, content in others.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_table(path, columns, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def test_what_a_table_says_otherwise_by_now_is_taken_over_without_embedding_again(colours, photos, tmp_path):
    table, model = tmp_path / "images.csv", colours()
    names = [f"{photos}/bee/{row}.png" for row in range(3)]
    write_table(table, ["path", "label"], [[name, "bee"] for name in names])
    embed(model, table, tmp_path / "gallery")
    before = Gallery.open(tmp_path / "gallery").embeddings.copy()
    write_table(
        table,
        ["path", "label", "site"],
        [[name, label, "north"] for name, label in zip(names, "abc", strict=True)],
    )
    again = colours()
    outcome, counted = embed(again, table, tmp_path / "gallery")
    assert (outcome.embedded, outcome.known, counted, again.batches) == (0, 3, 3, [])
    gallery = Gallery.open(tmp_path / "gallery")
    assert gallery.column("label").tolist() == ["a", "b", "c"]
    assert gallery.column("site").tolist() == ["north"] * 3
    assert gallery.column("path").tolist() == names
    np.testing.assert_array_equal(gallery.embeddings, before)
    embed(again, table, tmp_path / "gallery")
    assert Gallery.open(tmp_path / "gallery").ids.tolist() == gallery.ids.tolist(), "nothing to take over"


def test_columns_with_the_names_of_the_gallerys_own_hide_none(colours, photos, tmp_path):
    rows = [[f"{photos}/bee/{row}.png", "7", "9", "0.3"] for row in range(3)]
    write_table(tmp_path / "images.csv", ["path", "id", "rank", "similarity"], rows)
    embed(colours(), tmp_path / "images.csv", tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery")
    assert gallery.ids.tolist() == [0, 1, 2]
    assert gallery.column("given_id").tolist() == ["7"] * 3
    assert gallery.row(1)["given_rank"] == "9"


def test_a_path_in_a_sample_does_not_rewrite_the_gallery_each_time(colours, photos, tmp_path):
    write_tar(tmp_path / "shard.tar", photos / "bee", {"0.json": b'{"label": "bee", "path": "raw/0.png"}'})
    for _ in range(2):
        embed(colours(), tmp_path / "shard.tar", tmp_path / "gallery")
        gallery = Gallery.open(tmp_path / "gallery")
        assert gallery.ids.tolist() == [0, 1, 2, 3]
        assert gallery.row(0)["path"] == f"{tmp_path}/shard.tar::0.png"
        assert gallery.column("given_path").tolist() == ["raw/0.png", "", "", ""]


def test_a_file_name_that_is_no_text_is_listed_as_unreadable(colours, photos, tmp_path):
    odd = photos / os.fsdecode(b"bee/caf\xe9.png")
    odd.write_bytes((photos / "bee" / "0.png").read_bytes())
    outcome, _ = embed(colours(), photos, tmp_path / "gallery")
    assert outcome.unreadable[str(odd)] == "its name is not UTF-8"
    assert outcome.embedded == 12
    assert b"caf\xe9.png" in (tmp_path / "gallery" / "unreadable.csv").read_bytes()


def test_links_to_folders_are_followed_as_in_training(photos, tmp_path):
    root = tmp_path / "linked"
    root.mkdir()
    (root / "bee").symlink_to(photos / "bee")
    (root / "fly").mkdir()
    (root / "fly" / "more").symlink_to(photos / "fly")
    (root / "fly" / "round").symlink_to(root)
    listing = list_images(root)
    assert listing.columns["label"] == ["bee"] * 4 + ["fly"] * 4
    found = read(root, split="order", train_fraction=0.5, seed=0, listed="test")
    assert [str(found.absolute(row)) for row in range(len(found))] == listing.places


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_batches_of_no_images_are_refused(colours, photos, tmp_path, size):
    with pytest.raises(ValueError, match="wanted a whole number from 1 upwards"):
        embed_images(
            colours(), list_images(photos), tmp_path / "gallery", batch_size=size, progress=lambda count: None
        )


def test_a_manifest_is_read_from_any_folder(colours, photos, tmp_path, monkeypatch):
    (photos / "owl" / "broken.png").unlink()
    monkeypatch.chdir(photos.parent)
    options = {"split": "order", "train_fraction": 0.5, "seed": 0, "listed": "test"}
    read(photos.name, **options).save(tmp_path / "manifest.csv")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome, _ = embed(colours(), tmp_path / "manifest.csv", tmp_path / "gallery")
    assert (outcome.embedded, outcome.unreadable) == (12, {})


def test_a_part_of_the_source_takes_nothing_away(colours, photos, tmp_path):
    (photos / "owl" / "broken.png").unlink()
    whole = photos.parent / "prices.csv"
    places = sorted(str(path) for path in photos.rglob("*.png"))
    write_table(
        whole,
        ["path", "label", "price"],
        [[place, place.split("/")[-2], str(row)] for row, place in enumerate(places)],
    )
    embed(colours(), whole, tmp_path / "gallery")
    before = {row["path"]: row for row in map(Gallery.open(tmp_path / "gallery").row, range(12))}

    def now():
        gallery = Gallery.open(tmp_path / "gallery")
        return {row["path"]: row for row in map(gallery.row, gallery.ids.tolist())}

    def told(rows):
        return {path: {name: row[name] for name in ("label", "price")} for path, row in rows.items()}

    Image.new("RGB", (4, 4), "red").save(photos / "owl" / "new.png")
    outcome, _ = embed(colours(), photos / "owl", tmp_path / "gallery")
    assert (outcome.embedded, outcome.known) == (1, 4)
    after = now()
    added = after.pop(str(photos / "owl" / "new.png"))
    assert (added["label"], added["price"]) == ("", "")
    assert told(after) == told(before)

    some = photos.parent / "some.csv"
    write_table(some, ["path", "label"], [[places[0], "wasp"]])
    os.utime(places[1], ns=(1, 1))
    write_table(photos.parent / "changed.csv", ["path", "colour"], [[places[1], "green"]])
    embed(colours(), some, tmp_path / "gallery")
    outcome, _ = embed(colours(), photos.parent / "changed.csv", tmp_path / "gallery")
    assert outcome.embedded == 1, "its file has changed"
    after = now()
    assert (after[places[0]]["label"], after[places[0]]["price"]) == ("wasp", "0")
    assert (after[places[1]]["label"], after[places[1]]["price"]) == ("bee", "1")
    assert (after[places[1]]["colour"], after[places[0]]["colour"]) == ("green", "")


def test_two_processes_do_not_embed_into_one_gallery(colours, photos, tmp_path):
    embed(colours(), photos, tmp_path / "gallery")
    with (
        refusing_lock(tmp_path / "gallery" / ".embedding.lock", "held"),
        pytest.raises(ValueError, match="Another process embeds into gallery"),
    ):
        embed(colours(), photos, tmp_path / "gallery")
    assert len(Gallery.open(tmp_path / "gallery")) == 12


def test_an_image_that_is_listed_twice_with_different_texts_is_refused(colours, photos, tmp_path):
    place = str(photos / "bee" / "0.png")
    write_table(photos.parent / "twice.csv", ["path", "label"], [[place, "red"], [place, "blue"]])
    with pytest.raises(ValueError, match="is listed twice, with label 'red' and 'blue'"):
        embed(colours(), photos.parent / "twice.csv", tmp_path / "gallery")
    write_table(photos.parent / "twice.csv", ["path", "label"], [[place, "red"], [place, "red"]])
    outcome, _ = embed(colours(), photos.parent / "twice.csv", tmp_path / "gallery")
    assert outcome.embedded == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('path,label\na.png,"bee\nb.png,bee\n', "cannot be read .* A field in quotes ends"),
        ("path,label\na.png,bee,1\n", "row 1 has more fields than the header"),
        ("path,label,label\na.png,bee,fly\n", "two columns 'label'"),
    ],
)
def test_a_table_that_is_broken_is_refused(photos, text, said):
    (photos / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        list_images(photos / "table.csv")


def test_names_of_columns_and_labels_have_one_spelling(photos):
    (photos / "table.csv").write_text("path , label\nbee/0.png,He\u0301risson\n")
    listing = list_images(photos / "table.csv")
    assert listing.columns == {"label": ["H\u00e9risson"]}
    assert len(listing.only({"label": "He\u0301risson"})) == 1
    (photos / "owl").rename(photos / "e\u0301")
    assert "\u00e9" in list_images(photos).columns["label"]


@pytest.mark.parametrize("order", [("cls", "json", "txt"), ("txt", "json", "cls")])
def test_a_class_says_more_of_the_label_than_a_caption(photos, order):
    said = {"cls": "7", "json": '{"label": "bee", "shop": "\\ud800x"}', "txt": "a photo of a bee"}
    with tarfile.open(photos / "shard.tar", "w") as archive:
        archive.add(photos / "bee" / "0.png", "0.png")
        for kind in order:
            info = tarfile.TarInfo(f"0.{kind}")
            info.size = len(said[kind])
            archive.addfile(info, io.BytesIO(said[kind].encode()))
    assert list_images(photos / "shard.tar").columns == {"label": ["7"], "shop": ["?x"]}


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("0.json", b'{"\\ud800": "x"}', {"label": "", "?": "x"}),
        ("0.json", b"[" * 100_000, {"label": ""}),
        ("0.json", '\ufeff{"label": "e\u0301"}'.encode(), {"label": "\u00e9"}),
        ("0.cls", "\ufeffe\u0301\r\n".encode(), {"label": "\u00e9"}),
    ],
)
def test_what_a_sample_says_is_taken_as_far_as_it_can_be(colours, photos, tmp_path, name, content, columns):
    write_tar(tmp_path / "shard.tar", photos / "bee", {name: content})
    embed(colours(), tmp_path / "shard.tar", tmp_path / "gallery")
    row = Gallery.open(tmp_path / "gallery").row(0)
    assert {key: row[key] for key in columns} == columns


def test_a_tar_file_that_was_cut_or_damaged_is_not_taken_for_a_whole_one(photos):
    path = photos.parent / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for index in range(4):
            archive.add(photos / "bee" / f"{index}.png", f"{index}.png")
    with tarfile.open(path) as archive:
        third = archive.getmember("2.png").offset
    whole = path.read_bytes()
    assert len(list_images(path)) == 4
    for number, content in enumerate((whole[:third], whole[:third] + b"?" + whole[third + 1 :])):
        path.write_bytes(content)
        os.utime(path, ns=(number, number))
        with pytest.raises(ValueError, match="was cut between two members"):
            list_images(path)
