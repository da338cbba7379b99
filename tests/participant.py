"""What a participant of a workshop does with the pack, and nothing else: python participant.py ZIP

Run by the Python of an environment with Colab's versions and without the course, in an empty
folder. It unpacks the archive, opens the notebook for Colab and then the exercises, runs their
first cells (with --all every cell of every notebook), and prints what it saw as one JSON object.
"""

import argparse
import json
import shutil
import sys
import zipfile
from importlib import metadata, util
from pathlib import Path

import nbformat
from nbclient import NotebookClient

# What a first cell leaves behind is asked for in a cell of its own.
QUESTION = """\
import json, jax, diffusion_course
print(json.dumps({"jax": jax.__version__, "course": diffusion_course.__file__}))
"""


def run(path: Path, everything: bool = False) -> dict:
    """Runs the cells of a notebook that set it up; its answers, and the errors that it showed."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    last = code[-1] if everything else code[2]  # finds the course, imports what the chapter needs
    notebook.cells = [*notebook.cells[: last + 1], nbformat.v4.new_code_cell(QUESTION)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # those of the chapter as it was published
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=900, allow_errors=True, resources=resources)
    client.execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    printed = [o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"]
    errors = [f"{o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]
    answer = printed[-1] if printed and printed[-1].startswith('{"jax"') else "{}"
    return json.loads(answer) | {"errors": errors, "printed": printed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--all", action="store_true", help="every cell of every notebook")
    arguments = parser.parse_args()
    assert util.find_spec("diffusion_course") is None, "the course is installed here already"
    before = metadata.version("jax")
    zipfile.ZipFile(arguments.archive).extractall()
    top = Path("workshop")
    # On Colab the notebook and the wheel lie side by side, and nothing else is there.
    colab = Path("content")
    colab.mkdir()
    shutil.copy(top / "colab.ipynb", colab)
    seen = {"without the wheel": run(colab / "colab.ipynb")}
    (wheel,) = top.glob("*.whl")
    shutil.copy(wheel, colab)
    # All first cells are the same but for the notebook for Colab: without --all two kinds suffice.
    others = sorted(top.glob("*/*.ipynb" if arguments.all else "exercises/*.ipynb"))
    for path in [colab / "colab.ipynb", *others]:
        seen[path.as_posix()] = run(path, arguments.all)
    print(json.dumps({"jax before": before, "prefix": sys.prefix, "seen": seen}))


if __name__ == "__main__":
    main()
