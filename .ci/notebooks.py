"""Execute the notebooks of docs/notebooks, each in a kernel of its own and an empty folder with the tutorial's data.

.ci/beside nbclient ipykernel -- .ci/notebooks.py            does each run to its end? (two epochs)
.ci/beside nbclient ipykernel -- .ci/notebooks.py --write    with all epochs; keep what they print and draw
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600  # seconds for a cell
EPOCHS = re.compile(r"(epochs=)\d+")


def main() -> None:
    """Run all notebooks. Raises CellExecutionError, which shows the cell, where one fails."""
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if "--write" not in sys.argv[1:]:
            for cell in notebook.cells:
                cell.source = EPOCHS.sub(r"\g<1>2", cell.source)
        with tempfile.TemporaryDirectory() as folder:
            for data in (ROOT / "examples").glob("*.h5ad"):
                shutil.copy(data, folder)
            NotebookClient(
                notebook, timeout=TIMEOUT, resources={"metadata": {"path": folder}}, record_timing=False
            ).execute()
        if "--write" in sys.argv[1:]:
            for cell in notebook.cells:
                if cell.cell_type == "code":  # lines of progress are for the person who waits
                    cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
            notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: ran to its end", flush=True)


if __name__ == "__main__":
    main()
