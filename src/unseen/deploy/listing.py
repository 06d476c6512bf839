"""Images to embed, wherever they lie: a folder, a table, tar files → places and what is known of each."""

from __future__ import annotations

import csv
import functools
import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.data.acquire.archive import require_end
from unseen.data.images import Pixels, read_image, unreadable
from unseen.data.manifest import SAVED, Manifest
from unseen.data.pixels import to_pixels
from unseen.data.sources.layout import IMAGE_SUFFIXES, find_images, normal

INSIDE = "::"
"""Between a tar file and what lies in it: `shard-000.tar::0001.jpg`."""
LABEL = "label"
FACTS = ("txt", "json", "cls")
"""Files of a sample that say something of it: a caption least of the label, a class most."""
MOST_LINKS = 40
"""That lead to each other; as Linux has it."""
Where = Mapping[str, str | Sequence[str]]
"""Column → the text, or texts, that an image must have there."""


@dataclass(frozen=True)
class Listing:
    """Images in a fixed order.

    Args:
        places: path of a file, absolute, or `<tar>::<member>`.
        columns: name → one text for each image, empty where nothing is known; `label` always.
    """

    places: list[str]
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.places)

    def only(self, where: Where) -> Listing:
        """The images that have these texts.

        Raises:
            ValueError: there is no such column, or no such image.
        """
        rows = matching(self.columns, where, len(self))
        if len(rows) == 0:
            raise ValueError(f"No image has the texts {dict(where)}.")
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return Listing([self.places[row] for row in rows], columns)


def matching(columns: Mapping[str, Iterable[str]], where: Where, count: int) -> NDArray[np.int64]:
    """Rows that have these texts.

    Args:
        columns: name → `count` texts.
        where: name → the text, or texts, that a row must have there.
        count: of the rows.

    Raises:
        ValueError: there is no such column.
    """
    chosen = np.ones(count, dtype=bool)
    for name, wanted in where.items():
        if name not in columns:
            raise ValueError(f"There is no column '{name}'. Columns: {', '.join(columns)}.")
        texts = set(map(normal, [wanted] if isinstance(wanted, str) else wanted))
        chosen &= np.array([normal(text) in texts for text in columns[name]], dtype=bool)
    return np.flatnonzero(chosen)


def list_images(source: str | Path) -> Listing:
    """All images of a source.

    Args:
        source: a folder (the label is the name of the folder directly inside it that holds the image); a
            folder of tar files, or one, as WebDataset writes them (the label is what `.cls` or `.txt` of the
            same key says, or `label` in `.json`, whose other plain values become columns); a `.csv` or a
            `.parquet` with `path` (relative to the table's folder), optionally `label`, and any others; or
            the `manifest.csv` of a run (columns `label`, the class, and `role`: train, query, gallery, test).

    Raises:
        ValueError: there is no such source, it holds no image, a table or a row has no `path`, or it cannot
            be read.
    """
    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise ValueError(f"images={source}: there is no such folder or file (looked in '{Path.cwd()}').")
    listing = _read(path)
    if not listing.places:
        raise ValueError(f"images={source}: there are no images in it ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return listing


def read_place(place: str) -> Pixels:
    """The image `(H, W, 3)` uint8 at a place of a listing.

    Raises:
        ImageError: it cannot be read; the message names it.
        PassingError: the cause is this machine, not the image.
    """
    file, member = located(place)
    if not member:
        return read_image(file)
    try:
        offset, size = _members(file)[member]
        with file.open("rb") as archive:
            archive.seek(offset)
            return to_pixels({"bytes": archive.read(size)})
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise unreadable(place, error) from error


def located(place: str) -> tuple[Path, str]:
    """The file on disk, and the member that is meant where it is a tar file; else no member."""
    before, inside, member = place.partition(f".tar{INSIDE}")
    return (Path(f"{before}.tar"), member) if inside else (Path(place), "")


def _read(path: Path) -> Listing:
    if path.is_dir():
        archives = sorted(path.glob("*.tar"))
        if archives and find_images(path, path):
            raise ValueError(
                f"images={path}: there are images in it, and tar files ({archives[0].name}). Name one of "
                "them, or a folder of one kind."
            )
        return _of_archives(archives) if archives else _of_folder(path)
    if path.suffix == ".tar":
        return _of_archives([path])
    if path.suffix == ".csv" and path.read_bytes()[: len(SAVED)] == SAVED.encode():
        return _of_manifest(path)
    if path.suffix == ".csv":
        return _of_table(path, *_read_csv(path))
    if path.suffix == ".parquet":
        table = pyarrow().parquet.read_table(path)
        return _of_table(path, table.column_names, table.to_pylist())
    raise ValueError(f"images={path}: wanted a folder, a .csv, a .parquet or a .tar.")


def _of_folder(folder: Path) -> Listing:
    found = find_images(folder, folder)
    labels = [normal(PurePosixPath(name).parts[0]) if "/" in name else "" for name in found]
    return Listing([str(folder / name) for name in found], {LABEL: labels})


def _of_manifest(path: Path) -> Listing:
    manifest = Manifest.load(path)
    if not manifest.root.is_dir():
        raise ValueError(
            f"'{path}' was written for images in '{manifest.root}', which does not exist here. "
            "Put them there, or change the first line of a copy (root=<folder>)."
        )
    labels = [manifest.class_names[label] for label in manifest.labels]
    places = [str(manifest.absolute(row).absolute()) for row in range(len(manifest))]
    return Listing(places, {LABEL: labels, "role": list(map(str, manifest.roles))})


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Its columns and rows.

    Raises:
        ValueError: a quote does not end, a row is longer than the header, or it is not UTF-8.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="", strict=True)
        try:
            reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or ()]
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"'{path}' line {reader.line_num} cannot be read ({error}). A field in quotes ends with a "
                "quote, and the text is UTF-8."
            ) from error
    longer = next((number for number, row in enumerate(rows, start=1) if None in row), None)
    if longer is not None:
        raise ValueError(f"'{path}' row {longer} has more fields than the header.")
    return columns, rows


def _of_table(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Listing:
    if "path" not in names:
        raise ValueError(f"'{path}' has the columns {', '.join(names) or '(none)'}; 'path' is missing.")
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"'{path}' has two columns '{doubled[0]}': rename or remove one.")
    columns: dict[str, list[str]] = {name: [] for name in names}
    for row in rows:
        for name, values in columns.items():
            values.append(_cell(row[name]))
    written = [name.replace("\\", "/") for name in columns.pop("path")]  # of a table that was made on Windows
    if "" in written:
        raise ValueError(f"'{path}' row {written.index('') + 1} has no path.")
    places = [str(path.parent / name) for name in written]
    labels = [normal(label) for label in columns.pop(LABEL, [""] * len(places))]
    return Listing(places, {LABEL: labels, **columns})


def _cell(value: Any) -> str:
    """As a CSV has it: nothing for what is missing, and no fraction of whole numbers, which what is missing
    beside them makes floating in some programs."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _of_archives(archives: list[Path]) -> Listing:
    places: list[str] = []
    known: list[dict[str, str]] = []
    for archive in archives:
        for place, facts in _samples(archive):
            places.append(place)
            known.append(facts)
    names = dict.fromkeys([LABEL, *(name for facts in known for name in facts)])
    columns = {name: [facts.get(name, "") for facts in known] for name in names}
    return Listing(places, columns | {LABEL: list(map(normal, columns[LABEL]))})


def _samples(archive: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """WebDataset: files of one sample have one name up to the first dot."""
    facts: dict[str, dict[str, dict[str, str]]] = {}
    images: list[tuple[str, str]] = []
    with archive.open("rb") as file:
        for name, (offset, size) in _members(archive).items():
            key, _, kind = name.rpartition("/")[2].partition(".")
            key = f"{name.rpartition('/')[0]}/{key}"
            if f".{kind.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES:
                images.append((key, name))
            elif kind in FACTS:
                file.seek(offset)
                facts.setdefault(key, {})[kind] = _facts(kind, file.read(size))
    for key, name in images:
        of_kinds = facts.get(key, {})
        said = [of_kinds[kind] for kind in FACTS if kind in of_kinds]
        yield f"{archive}{INSIDE}{name}", {name: text for one in said for name, text in one.items()}


def _facts(kind: str, content: bytes) -> dict[str, str]:
    text = content.decode("utf-8-sig", errors="replace").strip()
    if kind != "json":
        return {LABEL: text}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    plain = values.items() if isinstance(values, dict) else ()
    return {_text(name): _text(value) for name, value in plain if isinstance(value, str | int | float)}


def _text(value: str | int | float) -> str:
    """JSON may hold halves of letters, which no table can."""
    return str(value).encode(errors="replace").decode()


def _members(archive: Path) -> dict[str, tuple[int, int]]:
    """Name → where its bytes begin, and how many there are."""
    return _members_as_of(archive, archive.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _members_as_of(archive: Path, modified: int) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(archive, "r:") as opened:
            entries = {posixpath.normpath(one.name): one for one in opened if not _is_left_out(one)}
            require_end(opened)
    except tarfile.TarError as error:
        raise ValueError(f"'{archive}' is not an uncompressed tar file, or not whole: {error}.") from error
    members = {}
    for one in entries.values():
        content = _content(one, entries)
        if content is not None:
            members[one.name] = (content.offset_data, content.size)
        elif (one.issym() or one.islnk()) and _counts(one.name):
            raise ValueError(
                f"'{archive}': its member '{one.name}' is a link to '{one.linkname}', which is no file in "
                "the archive. Pack it again with the files themselves (tar --dereference)."
            )
    return members


def _is_left_out(entry: tarfile.TarInfo) -> bool:
    """Whether it is what macOS leaves beside files, or a file that was packed twice: a link to itself."""
    is_left = any(part.startswith(("._", "__MACOSX")) for part in entry.name.split("/"))
    return is_left or (entry.islnk() and posixpath.normpath(entry.linkname) == posixpath.normpath(entry.name))


def _content(entry: tarfile.TarInfo | None, entries: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The file that an entry is, or that it links to within the archive."""
    for _ in range(MOST_LINKS):
        if entry is None or not (entry.issym() or entry.islnk()):
            break
        # A symbolic link starts from its folder, a hard one from the root of the archive.
        start = posixpath.dirname(entry.name) if entry.issym() else ""
        entry = entries.get(posixpath.normpath(posixpath.join(start, entry.linkname)))
    return entry if entry is not None and entry.isreg() else None


def _counts(name: str) -> bool:
    """Whether it would be an image, or say something of one."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix.removeprefix(".") in FACTS


def pyarrow() -> ModuleType:
    """The library of Parquet.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            "A gallery is kept in Parquet by pyarrow, which is not installed: "
            "pip install 'unseen-dml[serve]'."
        ) from error
    return pyarrow
