"""A zip archive for a workshop: the course's wheel, some chapters, their exercises, what to do.

The solutions' masters stay behind. `check` compares an answer with the right function, so the wheel
holds these functions, as every installation of the course does; nothing else in the pack does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_course import files, paths
from diffusion_course.app import colab, runner, table, wheel

TOP = "workshop"  # the one folder that the archive unpacks to
FOLDERS = ("notebooks", "exercises")


def course_folder(start: str | None = None) -> Path:
    """The folder with the chapters: the source tree's, else the one that the wheel brought.

    Raises: runner.Mistake if there is neither.
    """
    try:
        return runner.course_folder(start)
    except runner.Mistake:
        if start is None and (found := _from_the_wheel()) is not None:
            return found
        raise


def _from_the_wheel() -> Path | None:
    """share/diffusion-course, where the installer of the wheel has put it."""
    distribution = wheel.installed()
    names = (distribution.files if distribution else None) or []
    folders = [Path(name.locate()).parent.parent for name in names if name.name == table.NAME]
    folders.append(paths.source_tree() / "share" / wheel.DISTRIBUTION)  # pip install --target
    return next((f.resolve() for f in folders if (f / "notebooks" / table.NAME).exists()), None)


def unpack(course: Path, folder: Path, force: bool = False) -> list[Path]:
    """Copies all chapters and exercises into a folder; returns what was written.

    Args:
      course: from `course_folder`.
      folder: is made if need be.
      force: replace files that differ.

    Raises: runner.Mistake if a file there differs, such as an exercise with somebody's answers.
    """
    sources = [course / "notebooks" / table.NAME]
    for name in FOLDERS:
        sources += paths.chapters(course / name)
    wanted = {folder / path.relative_to(course): path.read_bytes() for path in sources}
    if course.resolve() == folder.resolve():
        raise runner.Mistake(f"{folder} is the course itself; name another folder")
    old = [p for p, content in wanted.items() if p.exists() and p.read_bytes() != content]
    if old and not force:
        names = ", ".join(str(path) for path in old[:3]) + (", …" if old[3:] else "")
        raise runner.Mistake(
            f"already there, and not as they came: {names}; name another folder, or replace them "
            "with --force"
        )
    new = {path: content for path, content in wanted.items() if path in old or not path.exists()}
    for parent in {path.parent for path in new}:
        parent.mkdir(parents=True, exist_ok=True)
    files.write_together(new)
    return list(new)


def pack(course: Path, names: Sequence[str]) -> bytes:
    """The archive; the same course and chapters give the same bytes.

    Args:
      course: from `course_folder`.
      names: of chapters, as `runner.find_chapter` takes them; packed in the course's order.

    Raises: runner.Mistake for an unknown chapter, a damaged notebook, a chapter that must be packed
    alone, or a course that is not installed.
    """
    known, measured = table.read(course)
    stems = sorted({runner.find_chapter(course, name).stem for name in names})
    chapters = [known.get(stem) or table.Chapter(stem, stem, None) for stem in stems]
    wanted = [f"{folder}/{chapter.file}.ipynb" for chapter in chapters for folder in FOLDERS]
    notebooks = {
        path: runner.read_json(course / path) for path in wanted if (course / path).exists()
    }
    wheel_name, wheel_bytes = wheel.wheel()
    parts = [
        (
            "Exercises" if path.startswith("exercises") else "Chapter",
            paths.chapter_number(path.split("/")[1]),
            nb,
        )
        for path, nb in notebooks.items()
    ]
    title = f"Workshop: {_list([chapter.title for chapter in chapters])}"
    content = {"README.md": readme(chapters, measured, notebooks, wheel_name).encode()}
    content[wheel_name] = wheel_bytes
    content["colab.ipynb"] = files.as_json(colab.joined(parts, wheel_name, title))
    for path, notebook in notebooks.items():
        folder = path.split("/")[0]
        content[path] = files.as_json(colab.findable(notebook, wheel_name, folder, list(notebooks)))
    return wheel.archive({f"{TOP}/{path}": data for path, data in content.items()})


def readme(
    chapters: Sequence[table.Chapter],
    measured: str,
    notebooks: Mapping[str, colab.Notebook],
    wheel_name: str,
) -> str:
    """What to open and in which order, how to start, and what to do without a network.

    Args:
      chapters: in their order.
      measured: when and where their seconds were.
      notebooks: of the pack, by their paths.
      wheel_name: the wheel's file name.
    """
    rows = []
    for chapter in chapters:
        time = f"{chapter.warm:g} s" if chapter.warm else "not measured"
        row = f"| {chapter.number} {chapter.title} | `notebooks/{chapter.file}.ipynb` | {time} |"
        exercises = f"exercises/{chapter.file}.ipynb"
        if exercises in notebooks:
            row += f" `{exercises}` | {minutes(notebooks[exercises])} min |"
        rows.append(row if exercises in notebooks else f"{row} | |")
    return README.format(
        titles=_list([chapter.title for chapter in chapters]),
        rows="\n".join(rows),
        measured=measured,
        wheel=wheel_name,
        first=chapters[0].number,
    )


def minutes(exercises: colab.Notebook) -> int:
    """What the heads of the exercises add up to, stretch exercises and written ones included."""
    heads = "\n".join(colab.source(cell) for cell in exercises["cells"])
    return sum(map(int, re.findall(r"^\*[^*\n]*· (\d+) minutes\b", heads, re.MULTILINE)))


def _list(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


README = """\
# Workshop: {titles}

Open these, from top to bottom. A chapter takes 45 to 90 minutes to read and try.

| chapter | open | to run | then its exercises | all of them take |
|---|---|--:|---|--:|
{rows}

*To run*: all cells of the chapter, once its programs are compiled; the first run takes longer.
Measured on {measured}.

## On Google Colab

1. Open `colab.ipynb` with *File, Upload notebook*. It holds all chapters and exercises.
2. Drag `{wheel}` into *Files* (the folder at the left), and wait until the circle is full.
3. Run the first cell. It installs the course and nothing else: Colab keeps its own jax.

The wheel may also lie in My Drive or in a folder of it (mount Drive first), or at an address:
`%env DIFFUSION_COURSE_WHEEL=https://…` in a cell above. To hand in: *File, Download .ipynb*.

## On your own computer

You need Python 3.11 or newer. In this folder:

```sh
python3 -m venv .venv
.venv/bin/python -m pip install "./{wheel}[lab]"
.venv/bin/diffusion-course lab
```

On Windows:

```bat
py -3 -m venv .venv
.venv\\Scripts\\python -m pip install "./{wheel}[lab]"
.venv\\Scripts\\diffusion-course lab
```

The second line needs a network, the third does not. Hand in the notebooks in `exercises/`.

## Before the workshop

```sh
.venv/bin/diffusion-course doctor --workshop
.venv/bin/diffusion-course run {first}
```

The first line checks the machine and says what to change. The second runs a chapter, and the
programs that it compiles are kept for the day itself.

## Without a network

- Install the day before: after that nothing is downloaded. A machine that never has a network
  installs from a folder of wheels, made on a machine of the same kind that has one:

  ```sh
  python3 -m pip download -d wheels "./{wheel}[lab]"
  .venv/bin/python -m pip install --no-index --find-links wheels "./{wheel}[lab]"
  ```

- The data that a CPU trains on come with the install. With an accelerator chapters ask for MNIST:
  name a folder with a copy in `DIFFUSION_COURSE_DATA`, or set `DIFFUSION_COURSE_PROFILE=cpu`.
- If nothing starts: the chapters in `notebooks/` hold their results, to be read in any viewer.

## Grading

`diffusion-course grade FOLDER` takes the notebooks of `exercises/` and copies of `colab.ipynb`. The
exercises hold no solution. `check` compares with the right functions, which are in the wheel, as in
every installation of the course: whoever looks for them finds them.
"""
