"""A saved manifest: the very rows, labels and roles of an earlier run, also on another machine."""

from __future__ import annotations

import os
from pathlib import Path

from unseen.data.manifest import Manifest, ManifestError
from unseen.data.sources import layout


def read(path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None) -> Manifest:
    """Load what `Manifest.save` wrote; `root` replaces the stored one, where the images lie elsewhere.

    Raises:
        ManifestError: there is no such file, it was changed, or its root or images are missing.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ManifestError(
            f"data.path='{file}' is not a file (looked in '{Path.cwd()}'). Name a saved manifest."
        )
    manifest = Manifest.load(file, None if root is None else layout.require_folder(root))
    if not manifest.root.is_dir():
        raise ManifestError(
            f"'{file}' was written for images in '{manifest.root}', which does not exist here. "
            "Name their folder: data.root=<folder>"
        )
    layout.require_images(manifest.root, manifest.paths)
    return manifest
