"""How long an explorer takes from a key on its slider to the new picture in the page.

    python benchmarks/explorers.py [NN …]

Opens JupyterLab in Chromium, runs the cells that a chapter's explorers need, and presses the arrow
keys. A hand does not notice 150 ms; a frame that is computed at the move, instead of beforehand,
takes seconds.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import nbformat

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "tests"))

import browser  # noqa: E402 (the browser's driver is the tests')
import slices  # noqa: E402

from diffusion_course import paths  # noqa: E402

# From a key on the slider to the new picture in the page, in milliseconds.
WATCH = """() => {
  window.delays = [];
  document.addEventListener('keydown', () => { window.pressed = performance.now(); }, true);
  new MutationObserver(() => window.delays.push(performance.now() - window.pressed)).observe(
    document.querySelector('.course-frame'), {attributes: true, attributeFilter: ['src']});
}"""


def delays(page, moves: int) -> list[float]:
    """Of the first explorer of the page, in milliseconds."""
    page.evaluate(WATCH)
    handle = page.locator(".course-slider .noUi-handle").first
    handle.focus()
    for number in range(moves):
        handle.press("ArrowLeft" if number % 2 else "ArrowRight")
        page.wait_for_function("n => window.delays.length > n", arg=number, timeout=60_000)
    return page.evaluate("() => window.delays")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers, such as 04; all without")
    parser.add_argument("--moves", type=int, default=8)
    arguments = parser.parse_args()
    chapters = paths.chapters(COURSE / "notebooks")
    named = arguments.chapters
    wanted = [c for c in chapters if not named or paths.chapter_number(c.name) in named]
    with tempfile.TemporaryDirectory() as folder, browser.course_in_browser(Path(folder)) as lab:
        for chapter in wanted:
            cells = [nbformat.v4.new_code_cell(source) for source in slices.explorers(chapter)[0]]
            notebook = nbformat.v4.new_notebook(cells=cells)
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
            name = f"notebooks/{chapter.stem}_explorers.ipynb"
            nbformat.write(notebook, lab.folder / name)
            page = lab.open(name)
            failed = [cell for cell in lab.run_all(page, timeout=900) if cell["errors"]]
            if failed:
                raise SystemExit(f"{chapter.name}: {failed[0]['errors']}")
            found = delays(page, arguments.moves)
            print(
                f"{chapter.stem:<24} {statistics.median(found):5.0f} ms, "
                f"{min(found):.0f} to {max(found):.0f}, {len(found)} moves"
            )
            lab.close(page)


if __name__ == "__main__":
    main()
