"""The frames of a chapter's explorers, for pages without a kernel.

    python notebooks/frames.py        say how large the committed explorers are
    python notebooks/frames.py 01 05  write them anew; runs only the cells that an explorer needs

`build.py` does it for every chapter that it executes. A chapter runs with DIFFUSION_COURSE_FRAMES
set, so that each `widgets.explorer` also writes what it shows into a folder. This keeps it small:
notebooks/frames/CHAPTER/CELL.zip, by the id of the cell whose output the explorer is. The archive
holds index.json and WebP pictures without loss: for each series a ground (at each pixel the colour
that most frames have there), and for each frame the rectangle that differs, transparent where it
does not.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import slices  # notebooks/slices.py
from PIL import Image

from diffusion_course import paths
from diffusion_course.app import runner

VARIABLE = "DIFFUSION_COURSE_FRAMES"
FOLDER = Path(__file__).resolve().parent / "frames"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same archive at every time
NONE = -1
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Explorer:
    """What a page needs to show an explorer.

    Attributes:
      index: a dictionary with
        slider, choice: names of the slider and of the menu;
        start: the slider's first position;
        labels: what the readout says at each position;
        size: width and height in pixels, of the largest frame;
        series: [name, frames] for each entry of the menu. A frame is [ground, x, y, picture]:
        draw picture number `ground` at (0, 0), then `picture` at (x, y); -1 means nothing.
      pictures: WebP files.
    """

    index: dict
    pictures: list[bytes]

    def frame(self, series: int, position: int) -> np.ndarray:
        """The pixels at a position, uint8 [height, width, 3]; white where a frame is smaller."""
        ground, x, y, picture = self.index["series"][series][1][position]
        canvas = Image.new("RGBA", tuple(self.index["size"]), "white")
        for number, where in ((ground, (0, 0)), (picture, (x, y))):
            if number != NONE:
                layer = Image.open(io.BytesIO(self.pictures[number])).convert("RGBA")
                canvas.alpha_composite(layer, where)
        return np.asarray(canvas.convert("RGB"))


@contextmanager
def recording() -> Iterator[Path]:
    """A folder into which explorers write, in every process that starts while it is open."""
    before = os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[VARIABLE] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def compact(record: dict) -> Explorer:
    """An explorer from what `widgets.explorer` wrote."""
    pictures: list[bytes] = []
    numbers: dict[bytes, int] = {}

    def add(pixels: np.ndarray) -> int:
        data = webp(pixels)
        if data not in numbers:
            numbers[data] = len(pictures)
            pictures.append(data)
        return numbers[data]

    series, width, height = [], 1, 1
    for name, encoded in record["series"].items():
        frames = [_pixels(base64.b64decode(text)) for text in encoded]
        width = max([width, *(frame.shape[1] for frame in frames)])
        height = max([height, *(frame.shape[0] for frame in frames)])
        series.append([name, _over_grounds(frames, add)])
    index = {key: record[key] for key in ("slider", "choice", "start", "labels")}
    return Explorer(index | {"size": [width, height], "series": series}, pictures)


def webp(pixels: np.ndarray) -> bytes:
    """A picture uint8 [H, W, 3 or 4] without loss. More effort takes 100 times as long for 5 %."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=75, method=4)
    return buffer.getvalue()


def _pixels(png: bytes) -> np.ndarray:
    """uint8 [height, width, 3], on white."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture))[
        ..., :3
    ]


def _over_grounds(frames: list[np.ndarray], add) -> list[list[int]]:
    """[ground, x, y, picture] of each frame; frames of one size share a ground."""
    found: list[list[int]] = [[]] * len(frames)
    for shape in dict.fromkeys(frame.shape for frame in frames):
        places = [i for i, frame in enumerate(frames) if frame.shape == shape]
        if len(places) == 1:
            found[places[0]] = [NONE, 0, 0, add(frames[places[0]])]
            continue
        ground = _most_common(np.stack([frames[i] for i in places]))
        number = add(ground)
        for i in places:
            found[i] = [number, *_difference(frames[i], ground, add)]
    return found


def _most_common(frames: np.ndarray) -> np.ndarray:
    """At each pixel the colour that most of the frames [F, H, W, 3] have there."""
    codes = frames.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    codes = np.sort(codes.reshape(len(codes), -1), axis=0)
    best, most = codes[0].copy(), np.ones(codes.shape[1], int)
    run = most.copy()
    for before, here in pairwise(codes):
        run = np.where(before == here, run + 1, 1)
        better = run > most
        best[better], most[better] = here[better], run[better]
    pixels = np.stack([best >> 16, best >> 8 & 255, best & 255], axis=-1).astype(np.uint8)
    return pixels.reshape(frames.shape[1:])


def _difference(frame: np.ndarray, ground: np.ndarray, add) -> tuple[int, int, int]:
    """x, y and the number of the rectangle in which a frame differs from its ground."""
    differs = (frame != ground).any(axis=-1)
    if not differs.any():
        return 0, 0, NONE
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = (differs[box] * np.uint8(255))[..., None]
    return int(columns[0]), int(rows[0]), add(np.concatenate([frame[box], alpha], axis=-1))


def write(path: Path, explorer: Explorer) -> None:
    """The archive of an explorer; the same explorer gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [("index.json", json.dumps(explorer.index, ensure_ascii=False).encode())]
    members += [(f"{i:04}.webp", picture) for i, picture in enumerate(explorer.pictures)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)  # stored: WebP is compressed


def read(path: Path) -> Explorer:
    """The explorer of an archive."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return Explorer(
            json.loads(archive.read("index.json")),
            [archive.read(name) for name in sorted(names) if name.endswith(".webp")],
        )


def models(cells) -> dict[str, str]:
    """The id of each widget among the cells' outputs, and a name for it: its cell's id.

    A cell's further widgets are counted: "…-2".
    """
    found = {}
    for cell in cells:
        shown = [
            output.data[WIDGET]["model_id"]
            for output in cell.get("outputs", [])
            if WIDGET in output.get("data", {})
        ]
        for n, model in enumerate(shown, start=1):
            found[model] = cell.id if n == 1 else f"{cell.id}-{n}"
    return found


def keep(records: Path, cells, folder: Path) -> list[Path]:
    """Writes a chapter's explorers, and removes those that it no longer has.

    Args:
      records: the folder of `recording`.
      cells: those that were executed, with their widgets as outputs.
      folder: the chapter's folder of frames.
    """
    written = []
    for model, name in models(cells).items():
        record = records / f"{model}.json"
        if record.exists():
            written.append(folder / f"{name}.zip")
            write(written[-1], compact(json.loads(record.read_text(encoding="utf-8"))))
    for path in folder.glob("*.zip"):
        if path not in written:
            path.unlink()
    return written


def record(chapter: Path) -> list[Path]:
    """Executes the cells that a chapter's explorers need, and keeps what these show."""
    notebook = nbformat.read(chapter, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    sources = [cell.source for cell in code]
    wanted = set()
    for number, source in enumerate(sources):
        if "widgets.explorer(" in source:
            wanted |= set(slices.needed(sources, number))
        elif "course = setup(" in source:
            wanted.add(number)
    notebook.cells = [cell for number, cell in enumerate(code) if number in wanted]
    with recording() as records:
        runner.execute(notebook, chapter.parent)
        return keep(records, notebook.cells, FOLDER / chapter.stem)


def archives(name: str = "*") -> list[Path]:
    """The committed explorers, of a chapter or of all."""
    return sorted(FOLDER.glob(f"{name}/*.zip"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="starts of file names, or all")
    given = parser.parse_args()
    for chapter in paths.chapters(FOLDER.parent):
        if given.chapters and (
            given.chapters == ["all"] or chapter.name.startswith(tuple(given.chapters))
        ):
            start = time.perf_counter()
            record(chapter)
            print(f"{chapter.stem}: {time.perf_counter() - start:.1f} s", flush=True)
    total = 0
    for path in archives():
        explorer, size = read(path), path.stat().st_size
        count = sum(len(frames) for _, frames in explorer.index["series"])
        print(f"{path.parent.name}/{path.stem}: {count} frames, {size / 1e3:.0f} kB")
        total += size
    print(f"all: {total / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
