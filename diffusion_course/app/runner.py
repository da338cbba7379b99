"""Run the course's notebooks without a browser: find a chapter, execute it, time its cells."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_course import paths

FIRST_PAGE = "00_start_here.ipynb"


class Mistake(Exception):
    """Something that the user can put right: one line with the remedy, no traceback."""


class CellFailed(Exception):
    """A cell raised. ``str()`` shows where and what."""


@dataclass(frozen=True)
class CellTime:
    """Seconds that code cell ``number`` (counted from 1, code cells only) took."""

    number: int
    title: str
    seconds: float


def course_folder(start: str | os.PathLike | None = None) -> Path:
    """The folder that holds ``notebooks/``.

    Args:
      start: where to look. Without it, the folder that the package was installed from
        (``pip install -e .``), then the current folder and those above it.

    Raises:
      Mistake: there are no notebooks there.
    """
    if start is not None:
        candidates = [Path(start)]
    else:
        here = Path.cwd()
        candidates = [paths.source_tree(), here, *here.parents]
    for folder in candidates:
        if chapters(folder):
            return folder.resolve()
    where = f"in {candidates[0]}" if start is not None else "next to the package or here"
    raise Mistake(
        f"no notebooks {where}; change to the course's folder (the one with notebooks/ in it) "
        "or name it with --course; after pip install diffusion-course, make one: "
        "diffusion-course notebooks FOLDER"
    )


def chapters(course: Path) -> list[Path]:
    """The chapters' notebooks, in order."""
    return paths.chapters(course / "notebooks")


def find_chapter(course: Path, name: str) -> Path:
    """The chapter with that number (``1``, ``01``) or whose file name starts so."""
    wanted = Path(name).name.removesuffix(".ipynb")
    if wanted.isdecimal():
        wanted = f"{int(wanted):02d}"
    found = [path for path in chapters(course) if wanted and path.name.startswith(wanted)]
    exact = [path for path in found if path.stem == wanted]
    if len(exact or found) == 1:
        return (exact or found)[0]
    problem = "matches several chapters" if found else "is not a chapter"
    names = ", ".join(path.stem for path in found or chapters(course))
    raise Mistake(f"{name!r} {problem}; choose one of: {names}")


def read_json(path: Path) -> dict:
    """The JSON of a notebook file. Raises: Mistake unless it is one with cells, whole."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        whole = all(isinstance(notebook[key], int) for key in ("nbformat", "nbformat_minor"))
        whole = whole and notebook["nbformat"] == 4 and isinstance(notebook["metadata"], dict)
        whole = whole and all(_is_cell(cell) for cell in notebook["cells"])
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise Mistake(f"{path} is no notebook; get a new copy of it")
    if not notebook["cells"]:
        raise Mistake(f"{path} is a notebook without cells; get a new copy of it")
    return notebook


def _is_cell(cell: dict) -> bool:
    """What the course needs of a cell. Small faults, which Jupyter mends, are none."""
    source, kind = cell["source"], cell["cell_type"]
    lines = source if isinstance(source, list) else [source]
    return (
        kind in ("code", "markdown", "raw")
        and isinstance(cell["metadata"], dict)
        and all(isinstance(line, str) for line in lines)
        and (kind != "code" or isinstance(cell["outputs"], list))
    )


def read(path: Path):
    """The `nbformat` notebook in a file. Raises: as `read_json`."""
    import nbformat

    read_json(path)
    try:
        return nbformat.read(path, as_version=4)
    except nbformat.ValidationError:  # what `read_json` does not look at, such as an output
        raise Mistake(f"{path} is no notebook; get a new copy of it") from None


def title(source: str) -> str:
    """A cell's first line, short enough for a progress bar."""
    line = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return line if len(line) <= 48 else line[:47] + "…"


def execute(
    notebook,
    folder: Path,
    *,
    timeout: float = 600,
    before: Callable[[CellTime], None] = lambda cell: None,
    after: Callable[[CellTime], None] = lambda cell: None,
) -> list[CellTime]:
    """Execute a notebook in a fresh kernel of this interpreter, in place.

    Args:
      notebook: an `nbformat` notebook; its outputs and execution counts are replaced.
      folder: the kernel's working folder.
      timeout: seconds that one cell may take.
      before: called before each code cell, with its seconds still 0.
      after: called after each code cell.

    Raises:
      CellFailed: a cell raised, took too long, or the kernel died.
    """
    # In an environment of its own a kernel must come from there, not from the user's folder.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],  # its remarks would cut a progress bar
        resources={"metadata": {"path": str(folder)}},
    )
    client.reset_execution_trackers()
    times = []
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            number = len(times) + 1
            before(CellTime(number, title(cell.source), 0.0))
            start = time.perf_counter()
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                raise CellFailed(_describe(number, cell, error)) from None
            except CellTimeoutError:
                where = f"code cell {number} ({title(cell.source)})"
                raise CellFailed(f"{where} took longer than {timeout:g} s; see --timeout") from None
            except DeadKernelError:
                where = f"code cell {number} ({title(cell.source)})"
                raise CellFailed(f"the kernel died in {where}; out of memory?") from None
            times.append(CellTime(number, title(cell.source), time.perf_counter() - start))
            after(times[-1])
    return times


def _describe(number: int, cell, error) -> str:
    """The line of the cell that raised, and what it raised."""
    traceback = next(
        ("\n".join(o.traceback) for o in cell.outputs if o.output_type == "error"), error.traceback
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", traceback)
    lines = cell.source.splitlines()
    # IPython marks the line with an arrow; the first mark lies in the cell itself.
    marked = re.search(r"^-+> *(\d+)", plain, re.MULTILINE) or re.search(r", line (\d+)", plain)
    line = int(marked.group(1)) if marked else 1
    source = lines[line - 1].strip() if 0 < line <= len(lines) else title(cell.source)
    return f"code cell {number}, line {line}: {source}\n  {error.ename}: {error.evalue}"


def summary(times: Sequence[CellTime], slowest: int = 5) -> str:
    """The total and the slowest cells, one a line."""
    lines = [f"{len(times)} code cells in {sum(cell.seconds for cell in times):.1f} s; slowest:"]
    for cell in sorted(times, key=lambda cell: -cell.seconds)[:slowest]:
        lines.append(f"  {cell.seconds:7.1f} s  cell {cell.number:<3} {cell.title}")
    return "\n".join(lines)
