"""PlantVillage (Hughes and Salathé 2015): leaves of 14 species in 38 states; whole species are left out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from unseen.data.manifest import Manifest, ManifestError
from unseen.data.sources import layout

# As the archive unpacks, as the authors' repository is laid out, and the folder of classes itself.
INNER = ("Plant_leave_diseases_dataset_without_augmentation", "raw/color", "")


def read(
    root: str | os.PathLike[str], *, test_species: Sequence[str], expected: Mapping[str, int] | None
) -> Manifest:
    """Read folders named `<species>___<state>`; one class is one state of one species.

    Args:
        root: folder of the class folders, or the one above.
        test_species: species whose classes are unseen; all others train.
        expected: published counts, see `layout.expect`.

    Raises:
        IncompleteData: there are no such folders, or the counts are not the published ones.
        ManifestError: a species does not exist, or none is left to train or to test on.
    """
    base, folders = _class_folders(layout.require_folder(root))
    species_of = {folder.name: folder.name.split("___")[0] for folder in folders}
    rows = [(path, folder.name) for folder in folders for path in layout.find_images(folder, base)]
    classes = [name for _, name in rows]
    with layout.reading(base):
        manifest = layout.build(
            base,
            [path for path, _ in rows],
            classes,
            ["test" if species_of[name] in test_species else "train" for name in classes],
            sorted(species_of),
            super_classes=[species_of[name] for name in classes],
        )
    # First, as a species may be unknown because its folders are missing.
    layout.expect(manifest, expected, "the tree of images")
    unknown = sorted(set(test_species) - set(species_of.values()))
    if unknown:
        known = ", ".join(sorted(set(species_of.values())))
        raise ManifestError(f"data.test_species names '{unknown[0]}'. Choose from: {known}.")
    if len(set(manifest.roles.tolist())) < 2:
        raise ManifestError(
            f"data.test_species={list(test_species)} leaves no species to train or to test on."
        )
    return manifest


def _class_folders(root: Path) -> tuple[Path, list[Path]]:
    for inner in INNER:
        base = root / inner
        # 'Background_without_leaves', which some copies hold, is no class of a species.
        folders = (
            [folder for folder in layout.subfolders(base) if "___" in folder.name] if base.is_dir() else []
        )
        if folders:
            return base, folders
    raise layout.IncompleteData(
        f"Found no folders named <species>___<state> in '{root}' (nor in {', '.join(INNER[:-1])})."
    )
