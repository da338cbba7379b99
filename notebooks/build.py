"""Write notebooks/NN_name.ipynb from notebooks/source/NN_name.py and execute them.

    python notebooks/build.py            all chapters
    python notebooks/build.py 01 03      these
    python notebooks/build.py --text 01  new text, same code: keeps the outputs, runs nothing
    python notebooks/build.py --folder solutions    the same for the masters of the exercises

The .ipynb that this writes depends on the source and the results only: cell ids are hashes of
the cells, and there are no times, absolute paths, versions of tools or widget states in it. What
the explorers of a chapter show is written to frames/ (see frames.py).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import time
from pathlib import Path

import frames  # notebooks/frames.py
import jupytext
import nbformat

from diffusion_course import paths
from diffusion_course.app import runner
from diffusion_course.grading import assign

FORMATS = "ipynb,source//py:percent"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
EXPLORER = "[An interactive explorer stands here when the notebook runs.]"
WIDGET = frames.WIDGET
PROGRESS = re.compile(r"\d+%\||\d+it \[")  # tqdm's bar, as text


def read_source(path: Path):
    """The notebook that a percent-format script describes, with ids and without outputs.

    A master's source leaves out what the exercises' specifications know: see `assign.complete`.
    """
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {
            "jupytext": {"formats": FORMATS},
            "kernelspec": KERNEL,
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.cells = assign.complete(notebook.cells)
    for cell, name in zip(notebook.cells, cell_ids(notebook.cells), strict=True):
        cell["id"] = name
        assign.expand(cell)
        fold(cell)
    return notebook


def fold(cell) -> None:
    """Hides the code of a cell tagged "claims", in place: JupyterLab's mark and Colab's."""
    if "claims" in cell.metadata.get("tags", []):
        cell.metadata["jupyter"] = nbformat.from_dict({"source_hidden": True})
        cell.metadata["cellView"] = "form"  # Colab then shows the line "# @title …" alone


def cell_ids(cells) -> list[str]:
    """An id for each cell that survives cells coming and going around it.

    A hash of type and text; equal cells are counted.
    """
    ids, seen = [], {}
    for cell in cells:
        text = f"{cell.cell_type}\n{cell.source}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


def clean(notebook, folder: Path) -> list[str]:
    """Leave in the outputs what a reader needs, in place; returns what was put to stderr."""
    noise = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        kept = []
        for output in _joined(cell.outputs):
            if output.output_type == "stream" and output.name == "stderr":
                noise.append(f"{runner.title(cell.source)}: {output.text.strip()}")
                continue
            if output.output_type == "stream":
                output.text = _portable(_last_states(output.text), folder)
            elif "data" in output:
                if WIDGET in output.data and PROGRESS.search(output.data.get("text/plain", "")):
                    continue
                _clean_data(output, folder)
            kept.append(output)
        cell.outputs = kept
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = nbformat.from_dict({"name": "python"})
    return noise


def _clean_data(output, folder: Path) -> None:
    """A widget becomes a line of text (GitHub cannot show it), unless there is a picture too."""
    output.metadata.pop(WIDGET, None)
    if output.data.pop(WIDGET, None) is not None:
        if any(kind.startswith("image/") for kind in output.data):
            output.data.pop("text/plain", None)
        else:
            output.data = nbformat.from_dict({"text/plain": EXPLORER})
    for kind, value in output.data.items():
        if kind.startswith("text/") and isinstance(value, str):
            output.data[kind] = _portable(value, folder)


def _joined(outputs):
    """Consecutive pieces of one stream as one output, however the kernel cut them."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else None
        if (
            last is not None
            and output.output_type == last.output_type == "stream"
            and output.name == last.name
        ):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _last_states(text: str) -> str:
    """What a terminal shows in the end where a progress bar rewrote its line."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _portable(text: str, folder: Path) -> str:
    """The same on every machine: no absolute paths, no addresses of objects."""
    course = folder.resolve().parent
    for path, name in (
        (str(course) + "/", ""),
        (str(course), "."),
        (str(Path.home()), "~"),
        (tempfile.gettempdir(), "<temporary folder>"),
    ):
        if len(path) > 1:
            text = text.replace(path, name)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def with_outputs_of(notebook, old):
    """The outputs of `old`, whose code is the same, in the new notebook."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    before = [cell for cell in old.cells if cell.cell_type == "code"]
    if [cell.source for cell in code] != [cell.source for cell in before]:
        raise SystemExit("the code has changed too; build without --text")
    for cell, known in zip(code, before, strict=True):
        cell.outputs, cell.execution_count = known.outputs, known.execution_count
    return notebook


def execute(notebook, folder: Path, name: str, timeout: float) -> list[runner.CellTime]:
    """Executes a notebook, and keeps the frames of a chapter's explorers."""
    with frames.recording() as records:
        times = runner.execute(notebook, folder, timeout=timeout)
        if folder == frames.FOLDER.parent:  # not a master of exercises
            frames.keep(records, notebook.cells, frames.FOLDER / name)
    return times


def build(source: Path, timeout: float = 600, text_only: bool = False) -> list[runner.CellTime]:
    """Write the chapter beside its source folder; returns the cells' times.

    Raises:
      runner.CellFailed: a cell raised; the .ipynb stays as it was.
    """
    folder = source.parent.parent
    target = folder / f"{source.stem}.ipynb"
    notebook, times = read_source(source), []
    if text_only:
        with_outputs_of(notebook, nbformat.read(target, as_version=4))
    else:
        times = execute(notebook, folder, source.stem, timeout)
    for line in clean(notebook, folder):
        print(f"{source.stem}: left out of the outputs: {line}", file=sys.stderr)
    nbformat.validate(notebook)
    # nbformat sorts the keys and indents by one.
    target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return times


def sources(folder: Path, names: list[str]) -> list[Path]:
    """The scripts whose names start as given; all of them if nothing is."""
    found = paths.chapters(folder / "source", ".py")
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            raise SystemExit(f"{name!r} is none of: {', '.join(path.stem for path in found)}")
    return [path for path in found if not names or path.name.startswith(tuple(names))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", help="starts of file names; all without")
    parser.add_argument("--text", action="store_true", help="only text has changed: run nothing")
    parser.add_argument("--timeout", type=float, default=600, help="seconds a cell may take")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent)
    arguments = parser.parse_args()
    failed = 0
    for source in sources(arguments.folder.resolve(), arguments.chapters):
        start = time.perf_counter()
        try:
            times = build(source, arguments.timeout, arguments.text)
        except runner.CellFailed as failure:
            print(f"{source.stem}: {failure}", file=sys.stderr)
            failed += 1
            continue
        size = (source.parent.parent / f"{source.stem}.ipynb").stat().st_size
        print(f"{source.stem}: {time.perf_counter() - start:.1f} s, {size / 1e3:.0f} kB")
        if times:
            print(runner.summary(times), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
