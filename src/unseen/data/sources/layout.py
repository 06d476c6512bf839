"""What every reader of files shares: finding images, dividing classes, building and counting the table."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.data.manifest import ROLES, Manifest, ManifestError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm"),
        *(".tif", ".tiff", ".webp"),
    }
)


class IncompleteData(ManifestError):
    """Files are missing or broken: getting them again helps, typing something else does not."""


@contextmanager
def reading(*files: Path) -> Iterator[None]:
    """While published files are read: a class without a name, no number where one belongs, or whatever else
    their content leads to, is an error that names them.

    Args:
        files: what is at fault if something is.

    Raises:
        IncompleteData: something went wrong.
    """
    try:
        yield
    except IncompleteData:
        raise
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        words = str(error) if isinstance(error, ManifestError) else f"{type(error).__name__}: {error}"
        names = " or ".join(f"'{file}'" for file in files)
        raise IncompleteData(f"{names} is broken or incomplete ({words}). Unpack or get it again.") from error


def require_folder(root: str | os.PathLike[str]) -> Path:
    """The data root, if there is one; absolute, as a saved manifest may be read from another folder.

    Raises:
        IncompleteData: it does not exist.
        ManifestError: it is a file.
    """
    path = Path(root).expanduser()
    if not path.exists():
        raise IncompleteData(
            f"data.root='{path}' does not exist (looked in '{Path.cwd()}'). Name the folder of images."
        )
    if not path.is_dir():
        raise ManifestError(f"data.root='{path}' is a file. Name the folder that holds the images.")
    return path.absolute()


def find_base(root: str | os.PathLike[str], inner: str, marker: str) -> Path:
    """The folder that holds `marker`: `root/inner` (as the archive unpacks) or `root` itself.

    Raises:
        IncompleteData: neither holds it.
    """
    path = require_folder(root)
    for base in (path / inner, path):
        if (base / marker).exists():
            return base
    raise IncompleteData(
        f"Found '{marker}' neither in '{path / inner}' nor in '{path}'. "
        "Point data.root at the unpacked distribution, or get it with: unseen prepare data=<name>"
    )


def require_file(path: Path) -> Path:
    """A file of the distribution, if it is there.

    Raises:
        IncompleteData: it is not.
    """
    if not path.is_file():
        raise IncompleteData(f"'{path}' is missing: the data set is incomplete. Unpack its archive again.")
    return path


def read_fields(path: Path, names: Sequence[str], skip: int = 0) -> list[list[str]]:
    """The rows of a text table divided by white space (the last field keeps its own); any line ends, any BOM.

    Raises:
        IncompleteData: the file is missing, is no text or has no row, or a row has fewer fields than `names`.
    """
    rows = []
    with reading(path):
        text = require_file(path).read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.splitlines(), start=1):
        if number <= skip or not line.strip() or line.startswith("#"):
            continue
        fields = line.strip().split(maxsplit=len(names) - 1)
        if len(fields) != len(names):
            raise IncompleteData(f"'{path}' line {number} is {line[:80]!r}, wanted: {' '.join(names)}.")
        rows.append(fields)
    if not rows:
        raise IncompleteData(f"'{path}' has no rows: the data set is incomplete. Unpack its archive again.")
    return rows


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file, with axes of length one removed.

    Raises:
        IncompleteData: the file is missing or is none.
    """
    from scipy.io import loadmat  # here, as a bundle that is loaded needs this module and no MATLAB file

    require_file(path)
    try:
        return dict(loadmat(path, squeeze_me=True))
    except Exception as error:  # whatever the broken bytes led SciPy to
        raise IncompleteData(f"'{path}' is not a complete MATLAB file ({error}): get it again.") from error


def numbered(names: Sequence[str], number: int) -> str:
    """The name that a number counted from 1 stands for.

    Raises:
        ValueError: it stands for none.
    """
    if not 1 <= number <= len(names):
        raise ValueError(f"there is a label {number}; labels go from 1 to {len(names)}")
    return names[number - 1]


def find_images(folder: Path, root: Path) -> list[str]:
    """Images anywhere under `folder`: POSIX paths relative to `root`, in an order that no platform changes.

    Hidden files (such as the `._x.jpg` that macOS leaves in archives) are not images. Links to folders are
    followed, but for one to a folder that it lies in; a folder to which several ways lead is found once, by
    the way without a link if there is one.

    Raises:
        ManifestError: a folder cannot be read.
    """
    found, visited = [], set()
    starts = [folder]
    for start in starts:  # links join it, so that each is followed after all that is none
        for parent, folders, files in os.walk(start, onerror=_refuse):  # by default it passes over them
            within = os.path.realpath(parent)
            if within in visited:
                folders.clear()
                continue
            visited.add(within)
            inside = [Path(parent, name) for name in sorted(folders) if not _is_hidden(name)]
            starts += [path for path in inside if path.is_symlink() and not _is_around(path, within)]
            folders[:] = [path.name for path in inside]
            found += [(Path(parent) / name).relative_to(root).as_posix() for name in files if _is_image(name)]
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """Visible folders directly inside, by name; a warning tells of images beside them and in hidden ones."""
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    found = [path for path in entries if path.is_dir()]
    if loose := [path.name for path in entries if _is_image(path.name) and path.is_file()]:
        log.warning(
            "%d images lie in '%s' itself, not in the folder of a class, and are left out: '%s' …",
            *(len(loose), folder, loose[0]),
        )
    hidden = [path for path in found if _is_hidden(path.name)]
    if with_images := [path.name for path in hidden if _has_images(path)]:
        log.warning(
            "Hidden folders of '%s' are no classes, though they hold images: %s. To use one, rename it.",
            *(folder, ", ".join(with_images)),
        )
    return [path for path in found if path not in hidden]


def _refuse(error: OSError) -> None:
    raise ManifestError(
        f"Folder '{error.filename}' cannot be read ({error.strerror}), so its images would be missing. "
        "Change its permissions, or move it elsewhere."
    ) from error


def _has_images(folder: Path) -> bool:
    try:
        return bool(find_images(folder, folder))
    except ManifestError:  # the system's own, such as those of a bin
        return False


def _is_around(folder: Path, place: str) -> bool:
    """Whether a link leads to a folder that holds the place where it lies."""
    return Path(place).is_relative_to(os.path.realpath(folder))


def _is_image(name: str) -> bool:
    """Whether a file of that name is one."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def first_half(names: Sequence[str]) -> dict[str, str]:
    """The field's usual zero-shot split: the first half of the classes, rounded up, trains; the rest test."""
    half = (len(names) + 1) // 2
    return {name: "train" if position < half else "test" for position, name in enumerate(names)}


def divide_classes(
    class_names: Sequence[str], split: str, train_fraction: float, seed: int, listed: str, root: Path
) -> list[str]:
    """One role, `train` or `test`, for each class: no class is in both.

    `split` is one of
    - `order`: the first `floor(train_fraction · C)` classes train;
    - `fraction`: as many, those whose SHA-256 of "seed:name" is smallest, so that any platform draws the
      same, and adding a class moves few others;
    - the path of a text file, one class name a line (from the working folder or from `root`); `listed` says
      whether those are the `test` or the `train` classes, all others are the opposite.

    Raises:
        ManifestError: the split leaves no class to train or to test on, `split` is no such file, or the file
            names a class that does not exist.
    """
    if listed not in ("train", "test"):
        raise ManifestError(
            f"data.listed='{listed}' says what the listed classes are. Choose from train, test."
        )
    if split in ("order", "fraction"):
        ordered = (
            list(class_names) if split == "order" else sorted(class_names, key=lambda name: _draw(seed, name))
        )
        training = set(ordered[: _training_count(len(ordered), train_fraction)])
    else:
        named = _read_class_list(split, class_names, root)
        training = named if listed == "train" else set(class_names) - named
    roles = ["train" if name in training else "test" for name in class_names]
    if len(set(roles)) < 2:
        raise ManifestError(
            f"data.split={split} puts all {len(roles)} classes into {roles[0]}: "
            "there must be a class to train and one to test on."
        )
    return roles


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def _training_count(classes: int, train_fraction: float) -> int:
    count = int(classes * train_fraction + 1e-9)
    if not 0 < train_fraction < 1 or count == 0:
        raise ManifestError(
            f"data.train_fraction={train_fraction} of {classes} classes leaves none to train or to test on. "
            "Wanted a number between 0 and 1, and at least two classes."
        )
    return count


def _read_class_list(split: str, class_names: Sequence[str], root: Path) -> set[str]:
    path = next((path for path in (Path(split).expanduser(), root / split) if path.is_file()), None)
    if path is None:
        raise ManifestError(
            f"data.split='{split}' is neither order nor fraction, and there is no such file. "
            "Name a text file with one class name a line."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(f"'{path}' is not UTF-8 text ({error}). Save it as UTF-8.") from error
    named = {normal(line.strip()) for line in lines if line.strip()}
    unknown = sorted(named - set(class_names))
    if unknown:
        close = difflib.get_close_matches(unknown[0], class_names, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ManifestError(
            f"'{path}' names class '{unknown[0]}', which does not exist ({len(unknown)} such).{hint}"
        )
    return named


def normal(name: str) -> str:
    """One spelling of a class name: file systems differ in how they compose accented letters."""
    return unicodedata.normalize("NFC", name)


def build(
    root: Path,
    paths: Sequence[str],
    classes: Sequence[str],
    roles: Sequence[str],
    class_names: Sequence[str],
    boxes: NDArray[np.int64] | None = None,
    super_classes: Sequence[str] | None = None,
) -> Manifest:
    """A `Manifest` from `N` rows of path, class name and role; labels are positions in `class_names`.

    Raises:
        IncompleteData: an image is missing.
        ManifestError: what `Manifest` itself refuses.
    """
    require_images(root, paths)
    position = {name: label for label, name in enumerate(class_names)}
    return Manifest(
        root=root,
        paths=tuple(PurePosixPath(path).as_posix() for path in paths),
        labels=np.array([position[name] for name in classes], dtype=np.int64),
        class_names=tuple(class_names),
        roles=np.array(roles, dtype=np.str_),
        boxes=boxes,
        super_classes=None if super_classes is None else tuple(super_classes),
    )


def require_images(root: Path, paths: Iterable[str]) -> None:
    """Every listed image is a file.

    Raises:
        IncompleteData: some are not; names the first and counts them.
    """
    listed = list(paths)
    missing = [path for path in listed if not os.path.isfile(os.path.join(root, path))]
    if missing:
        raise IncompleteData(
            f"{len(missing):,} of {len(listed):,} listed images are missing under '{root}', "
            f"the first is '{missing[0]}'. Correct the list or data.root; of a downloaded data set, "
            "unpack the archive again."
        )


def expect(manifest: Manifest, expected: Mapping[str, int] | None, lists: str) -> Manifest:
    """The manifest, if it has the published size.

    Args:
        manifest: what was read.
        expected: keys `images`, `classes` or `<role>_images`, `<role>_classes`, each also as
            `<key>_at_least` where copies differ; `None` expects nothing.
        lists: the files of the distribution that were counted, for the message.

    Raises:
        IncompleteData: a number is another, or too small.
        ManifestError: a key is unknown.
    """
    counts = {"images": len(manifest), "classes": len(set(manifest.labels.tolist()))}
    for role in ROLES:
        rows = manifest.roles == role
        counts[f"{role}_images"] = int(rows.sum())
        counts[f"{role}_classes"] = len(set(manifest.labels[rows].tolist()))
    for key, wanted in (expected or {}).items():
        counted = key.removesuffix("_at_least")
        if counted not in counts:
            raise ManifestError(
                f"data.expected has an unknown key '{key}'. Choose from {', '.join(counts)}, "
                "or one of them with _at_least."
            )
        count, minimum = counts[counted], counted != key
        if count < wanted or (count > wanted and not minimum):
            raise IncompleteData(
                f"Read {count:,} {counted.replace('_', ' ')} where {'at least ' if minimum else ''}"
                f"{wanted:,} were published: {lists} in "
                f"'{manifest.root}' is not the complete original. Get it again, or set data.expected=null "
                "if it is a subset on purpose."
            )
    return manifest
