"""Every notebook runs from its first cell to its last, without data or an account, and draws its pictures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PICTURES = {
    "quickstart": 3,
    "ablation": 1,
    "attention": 1,
    "your_folder": 1,
    "from_pytorch_metric_learning": 1,
}
# What takes its time in a notebook and shows nothing more here.
FEW = {'"data.workers=0"': '"data.workers=0", "+trainer.limit_train_batches=2"'}
REPLACED = {
    "quickstart": {"epochs=4": "epochs=1", "[Cyrillic,Greek]": "[Greek]"},
    "ablation": {"range(3)": "range(2)", **FEW},
    "attention": {"epochs=2": "epochs=1", "run.data.split.query[::2]": "run.data.split.query[::8]", **FEW},
    "from_pytorch_metric_learning": {"epochs=2": "epochs=1", **FEW},
    "your_folder": {"epochs=2": "epochs=1", **FEW},
}


def test_every_notebook_is_known_and_holds_no_output():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(PICTURES)
    for name in PICTURES:
        cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), name


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for before, after in REPLACED.get(name, {}).items():
        [cell] = [cell for cell in notebook.cells if cell.cell_type == "code" and before in cell.source]
        cell.source = cell.source.replace(before, after)
    NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert list((tmp_path / "runs").rglob("record.json"))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[name]
