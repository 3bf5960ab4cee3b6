"""The notebooks of examples/ run as they are, in an empty folder."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))
# A cell with this tag calls supervision, which the tests do not install.
_SUPERVISION = "needs-supervision"


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_has_no_outputs(path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
@pytest.mark.command
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch) -> None:
    # The shell of a cell finds the command beside the Python of the kernel.
    programs = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([programs, os.environ["PATH"]]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = read(path)
    try:
        import supervision  # noqa: F401
    except ImportError:
        notebook.cells = [
            cell for cell in notebook.cells if _SUPERVISION not in cell.metadata.get("tags", ())
        ]
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.startswith("!"):
            # A failed command ends no cell.
            cell.source += "\nassert _exit_code == 0"
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources)
    client.execute()
    *_, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert any(output.output_type == "execute_result" for output in last.outputs)
