"""The course as a site: explorers, texts for pictures, links, and its pages in a browser."""

import ast
import base64
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pytest
from PIL import Image

from diffusion_course import paths
from diffusion_course.app import cli, runner, words
from diffusion_course.grading import answers, places, results
from diffusion_course.grading.row import Row
from diffusion_course.notebook import widgets

COURSE = Path(__file__).resolve().parent.parent
CHAPTERS = paths.chapters(COURSE / "notebooks")
sys.path[:0] = [str(COURSE / "site"), str(COURSE / "notebooks"), str(COURSE / ".ci")]
import docstrings  # noqa: E402 (site/docstrings.py)
import frames  # noqa: E402 (notebooks/frames.py)
import links  # noqa: E402 (site/links.py)
import sentence  # noqa: E402 (.ci/sentence.py)

MOST_BYTES = 10_000_000  # of all committed frames together


def read(path):
    return nbformat.read(path, as_version=4)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawn(seed, shape=(9, 14, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# Explorers


def test_an_explorer_writes_what_it_shows_only_where_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(frames.VARIABLE, raising=False)
    pictures = {"a": [b"1", b"2"], "b": [b"3", b"4"]}
    widgets.explorer(pictures, ["low", "high"])
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(frames.VARIABLE, str(tmp_path))
    box = widgets.explorer(pictures, ["low", "high"], slider="x", choice="which", start=1)
    (path,) = tmp_path.iterdir()
    assert path.name == f"{box.model_id}.json"
    told = json.loads(path.read_text())
    assert base64.b64decode(told["series"]["b"][0]) == b"3"
    del told["series"]
    assert told == {"slider": "x", "choice": "which", "start": 1, "labels": ["low", "high"]}


def a_record(*series):
    """What an explorer with these series of pictures writes."""
    encoded = {
        str(n): [base64.b64encode(png(pixels)).decode() for pixels in pictures]
        for n, pictures in enumerate(series)
    }
    labels = [f"at {i}" for i in range(len(series[0]))]
    return {"slider": "t", "choice": "c", "start": 0, "labels": labels, "series": encoded}


def test_compact_frames_are_the_frames_to_the_last_pixel():
    ground = drawn(0)
    moved = [ground.copy() for _ in range(4)]
    moved[1][2:4, 5:9] = 7
    moved[2][8, 13] = 255 - moved[2][8, 13]
    other = [drawn(n) for n in range(1, 5)]
    explorer = frames.compact(a_record(moved, other))
    for series, pictures in enumerate((moved, other)):
        for position, wanted in enumerate(pictures):
            assert np.array_equal(explorer.frame(series, position), wanted)
    # The ground is what most frames have: two of four add nothing to it, two a small rectangle.
    assert [row[3] for row in explorer.index["series"][0][1]][::3] == [frames.NONE] * 2
    assert explorer.index["series"][0][1][1][1:3] == [5, 2]


def test_frames_of_several_sizes_and_with_transparency_lie_on_white():
    small, large = drawn(1, (5, 6, 3)), drawn(2, (8, 10, 3))
    clear = np.zeros((8, 10, 4), np.uint8)
    explorer = frames.compact(a_record([small, large, clear]))
    assert explorer.index["size"] == [10, 8]
    wanted = np.full((8, 10, 3), 255, np.uint8)
    assert np.array_equal(explorer.frame(0, 2), wanted)
    wanted[:5, :6] = small
    assert np.array_equal(explorer.frame(0, 0), wanted)
    assert np.array_equal(explorer.frame(0, 1), large)


def test_an_archive_gives_back_its_explorer_and_the_same_bytes_each_time(tmp_path):
    explorer = frames.compact(a_record([drawn(1), drawn(2)]))
    for name in ("a", "b"):
        frames.write(tmp_path / f"{name}.zip", explorer)
    assert frames.read(tmp_path / "a.zip") == explorer
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


EXPLORING = """
import io
import numpy as np
from PIL import Image
from diffusion_course.notebook import widgets

def picture(level):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()

widgets.explorer([picture(10 * i) for i in range(3)], list("abc"))
"""


def test_what_a_notebook_explores_is_kept_under_its_cell_and_what_is_gone_is_removed(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(EXPLORING, id="here")])
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "gone.zip").touch()
    with frames.recording() as records:
        runner.execute(notebook, tmp_path)
        (path,) = frames.keep(records, notebook.cells, tmp_path / "kept")
    assert frames.VARIABLE not in os.environ
    assert [found.name for found in (tmp_path / "kept").iterdir()] == ["here.zip"] == [path.name]
    explorer = frames.read(path)
    assert explorer.index["labels"] == ["a", "b", "c"]
    assert (explorer.frame(0, 2) == 20).all()


def test_every_committed_explorer_belongs_to_a_cell_that_shows_one():
    cells = {
        (path.stem, cell.id): cell
        for path in CHAPTERS
        for cell in read(path).cells
        if cell.cell_type == "code" and "widgets.explorer(" in cell.source
    }
    committed = frames.archives()
    assert committed
    for path in committed:
        assert (path.parent.name, path.stem) in cells, f"{path}: python notebooks/frames.py"
        labels = frames.read(path).index["labels"]
        assert all(len(row) == len(labels) for _, row in frames.read(path).index["series"])
    assert sum(path.stat().st_size for path in committed) <= MOST_BYTES


# Texts for pictures


def test_an_author_s_text_for_a_picture_is_taken_as_it_stands():
    cell = nbformat.v4.new_code_cell("draw()", metadata={"alt": "A curve that falls."})
    assert words.alternative([cell], 0) == "A curve that falls."


def test_without_one_a_picture_is_told_by_its_section_its_axes_and_the_sentence_about_it():
    text = "## 2 · Noise\n\nIt grows. The left panel shows $\\bar\\alpha$, see [this](x.md). Why?"
    code = (
        'fig, ax = plt.subplots()\nax.set(xlabel="time $t$", title="A title")\nax.set_ylabel("y")'
    )
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(code)]
    assert words.alternative(cells, 1) == (
        "Figure of “2 · Noise”. A title. horizontal: time t. vertical: y. "
        "The left panel shows bar alpha, see this."
    )
    assert words.alternative(cells[1:], 0).startswith("Figure. A title.")


def test_a_sign_that_markdown_must_not_take_for_a_mark_stays():
    assert (
        words.plain(r'the word "\*", *twice*: \*, and $a \* b$')
        == 'the word "*", twice: *, and a * b'
    )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_picture_of_a_chapter_has_a_text_of_its_own(path):
    cells = read(path).cells
    told = [
        words.alternative(cells, number)
        for number, cell in enumerate(cells)
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    ]
    assert told and len(set(told)) == len(told)
    for text in told:
        assert len(text) > 25 and not re.search(r"[$\n`]|\\", text), text


# The reference


def test_a_docstring_of_the_course_becomes_what_it_says():
    lines = textwrap.dedent(
        """\
        One line with `x_t` and a*b, p(x_0 | x_t).

        A formula:

            a = b * c

        Args:
          x, y: two arrays [B, H]; the second
            line of it.
          kind: one of "eps", "v".

        Returns: x_ and so on,
        over two lines. Raises nothing.
        Raises: ValueError if x is |x|.

        >>> f(2)
        3
        """
    ).splitlines()
    assert docstrings.restructured(lines) == [
        r"One line with \ ``x_t``\  and a\*b, p(x\_0 \| x\_t).", "",
        "A formula:", "",
        "::", "", "        a = b * c", "",
        "**Args.**", "",
        "* ``x, y``: two arrays [B, H]; the second line of it.",
        '* ``kind``: one of "eps", "v".', "",
        r"**Returns.** x\_ and so on, over two lines. Raises nothing.", "",
        r"**Raises.** ValueError if x is \|x\|.", "",
        ">>> f(2)", "3", "",
    ]  # fmt: skip


def documented(tree):
    """Every docstring of a file."""
    kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
    return filter(None, (ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds)))


def test_every_docstring_of_the_library_can_be_set(sphinx):
    from docutils.core import publish_doctree
    from docutils.utils import SystemMessage

    settings = {"halt_level": 2, "report_level": 5, "file_insertion_enabled": False}
    for path in sorted((COURSE / "diffusion_course").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        text = "\n\n----\n\n".join(  # a line between two, so that they are set together
            "\n".join(docstrings.restructured(doc.splitlines())) for doc in documented(tree)
        )
        try:
            publish_doctree(f"x\n\n{text}", settings_overrides=settings)
        except SystemMessage as problem:
            pytest.fail(f"{path}: {problem}\n{text}")


# Links


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('<a href="b.html">b</a>', ""),
        ('<a href="b.html#there">b</a><p id="here"></p><a href="#here">up</a>', ""),
        ('<a href="https://example.org/x">out</a>', ""),
        ('<a href="c.html">c</a>', "c.html leads nowhere"),
        ('<a href="b.html#away">b</a>', "b.html has no #away"),
        ('<a href="#nothing">up</a>', "has no #nothing"),
        ('<a href="../../outside">x</a>', "leads nowhere"),
        ('<a href="/b.html">b</a>', "no address inside"),
        ('<img src="b.html">', "a picture has no text"),
        ('<img src="b.html" alt=" ">', "a picture has no text"),
        ('<img src="missing.png" alt="x">', "missing.png leads nowhere"),
        ('<script src="https://cdn.example.org/x.js"></script>', "from a network"),
        ('<link rel="stylesheet" href="//fonts.example.org/x.css">', "from a network"),
        ('<div data-source="no.js"></div>', "no.js leads nowhere"),
    ],
)
def test_what_is_wrong_with_a_page_is_said(tmp_path, page, problem):
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<p id="there">text</p>')
    found = links.problems(tmp_path)
    assert len(found) == bool(problem)
    if problem:
        assert problem in found[0] and found[0].startswith("a.html: ")


# A site of two chapters, and a newcomer on it


@pytest.fixture(scope="module")
def sphinx():
    """Skips where the extra "site" is not installed, but fails in CI."""
    if importlib.util.find_spec("myst_nb") and importlib.util.find_spec("furo"):
        return
    missing = 'no Sphinx (pip install "diffusion-course[site]")'
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="module")
def site(sphinx, tmp_path_factory):
    """The folder of a site with chapters 01 and 05, the documents and two modules."""
    output = tmp_path_factory.mktemp("site") / "pages"
    command = (
        "import sys; sys.path.insert(0, 'site'); import build, pathlib; "
        "sys.exit('\\n'.join(build.build(pathlib.Path(sys.argv[1]), wanted=('01', '05'), "
        "modules=('process', 'data'), repository='someone/course')) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, str(output)],
        cwd=COURSE, capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYTHONPATH": str(COURSE)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def test_the_site_holds_what_it_was_asked_for_and_nothing_is_wrong_with_it(site):
    for name in ("index", "search", "notebooks/05_bound", "exercises/01_forward_process",
                 "docs/glossary", "api/process"):  # fmt: skip
        assert (site / f"{name}.html").exists()
    assert not (site / "notebooks" / "06_ddim.html").exists()
    original = COURSE / "notebooks" / "05_bound.ipynb"
    assert (site / "notebooks" / "05_bound.ipynb").read_bytes() == original.read_bytes()
    assert links.problems(site) == []


def test_a_chapter_s_page_has_its_words_its_outputs_and_a_way_to_run_it(site):
    page = (site / "notebooks" / "01_forward_process.html").read_text(encoding="utf-8")
    assert "path (1001, 20000): mean" in page  # printed by a cell
    assert r"\tag{1}" in page and "begin{split}" not in page
    assert "colab.research.google.com/github/someone/course/blob/main/notebooks/01_" in page
    assert "[An interactive explorer" not in page
    assert page.count('class="course-explorer"') == 1
    assert re.search(r"<details class=\"[^\"]*hide[^>]*>.{0,300}?Checked: ", page, re.DOTALL)


def test_the_reference_shows_signature_docstring_and_source(site):
    page = (site / "api" / "process.html").read_text(encoding="utf-8")
    assert 'id="diffusion_course.process.add_noise"' in page
    assert "_modules/diffusion_course/process.html#add_noise" in page


def seen(page):
    """The pixels of the page's explorer, [height, width, 3]."""
    url = page.locator("canvas.course-frame").evaluate("canvas => canvas.toDataURL()")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    assert picture.shape[2] == 3 or (picture[..., 3] == 255).all()
    return picture[..., :3]


def assert_shown(page, explorer, series, position):
    """The page shows this frame, and its readout says so."""
    page.locator(f'.course-explorer[data-shown="{series}:{position}"]').wait_for()
    label = explorer.index["labels"][position]
    assert page.locator(".course-readout").inner_text() == label
    assert page.locator(".course-slider").get_attribute("aria-valuetext") == label
    assert label in page.locator("canvas.course-frame").get_attribute("aria-label")
    assert np.array_equal(seen(page), explorer.frame(series, position))


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_newcomer_moves_the_first_page_s_explorer_and_reads_a_chapter(
    site, chromium, width, scheme
):
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "index.html").as_uri())

    (archive,) = frames.archives("01_forward_process")
    explorer = frames.read(archive)
    slider = page.locator(".course-slider")
    slider.wait_for()
    start = explorer.index["start"]
    assert_shown(page, explorer, 0, start)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert_shown(page, explorer, 0, start + 1)
    page.locator(".course-menu").select_option(label=explorer.index["series"][2][0])
    assert_shown(page, explorer, 2, start + 1)
    slider.focus()
    page.keyboard.press("End")
    assert_shown(page, explorer, 2, len(explorer.index["labels"]) - 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    page.get_by_role("link", name="Read chapter 01").click()
    page.locator("h1", has_text="The forward process").wait_for()
    page.locator("mjx-container").first.wait_for()
    page.locator(".course-explorer").scroll_into_view_if_needed()
    page.locator(".course-slider").wait_for()
    assert_shown(page, explorer, 0, start)
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # A picture keeps a size at which it can be read; on a phone it is moved sideways.
    assert page.locator(".cell_output img").first.bounding_box()["width"] >= 350

    assert said == []
    # From the disk, and not from a server, a browser refuses the excerpts of what it finds.
    page.goto((site / "search.html").as_uri() + "?q=schedule")
    page.locator("#search-results li a").first.wait_for()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()


# The class's page, and the way from a diagnosis to the chapter


def a_class(folder, site):
    """The class's page of six students, with links to the site, in a folder."""
    long = "a_very_long_name_of_a_folder_without_any_space_" * 2
    rows = []
    for number, student in enumerate(["anna", "bert", "cleo", "dora", long, "Ünal Ö."]):
        for chapter in ("01", "05"):
            for exercise in answers.chapters()[chapter]:
                points = (number + int(exercise.id[-1])) % (exercise.points + 1)
                wrong = points < exercise.points
                said = (
                    f"{[*getattr(exercise, 'mistakes', {}), 'no words'][0]} (called with [3], 0.5)"
                )
                given = ("wrong", said) if wrong else ("right", "")
                rows.append(Row(student, exercise.id, points, exercise.points, *given, "x.ipynb"))
    out = folder / "grades.csv"
    titles = {e.id: e.title for group in answers.chapters().values() for e in group}
    results.write(out, rows, "secret", titles)
    assert cli.main(["report", str(out), "--site", str(site)]) == 0
    return out.with_suffix(".html")


@pytest.fixture(scope="module")
def class_page(site, tmp_path_factory):
    return a_class(tmp_path_factory.mktemp("class"), site)


def test_every_section_to_read_again_is_on_the_site(site):
    pages = {}
    for chapter in ("01", "05"):
        (file,) = (path.stem for path in CHAPTERS if path.stem.startswith(chapter))
        pages[chapter] = file
    group = [*answers.chapters()["01"], *answers.chapters()["05"]]
    found = places.places(group, site.as_uri(), pages)
    assert set(found) == {exercise.id for exercise in group}
    for place in found.values():
        address, _, fragment = place.address.partition("#")
        path = site / "notebooks" / address.rpartition("/")[2]
        text = path.read_text(encoding="utf-8")
        assert path.is_file() and unquote(fragment) in links.Page(text).anchors, place


@pytest.mark.parametrize(("width", "scheme"), [(380, "light"), (1280, "dark")])
def test_the_way_from_an_explorer_over_the_class_s_page_to_the_section(
    site, class_page, chromium, width, scheme
):
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((site / "index.html").as_uri())
    page.locator(".course-slider").wait_for()
    before = page.locator(".course-readout").inner_text()
    page.locator(".course-slider").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".course-readout").inner_text() != before

    page.goto(class_page.as_uri())
    fits = "document.documentElement.scrollWidth <= window.innerWidth"
    assert page.evaluate(fits)
    again = page.get_by_role(
        "link", name="chapter 05, section 6 · Pixels are not real numbers"
    ).first
    again.click()
    page.wait_for_url("**/05_bound.html#*")
    page.locator("mjx-container").first.wait_for()
    heading = page.locator("h2", has_text="6 · Pixels are not real numbers")
    page.wait_for_function("heading => Math.abs(heading.getBoundingClientRect().top) < 200",
                           arg=heading.element_handle())  # fmt: skip
    assert page.evaluate(fits)

    page.goto(class_page.as_uri())
    page.get_by_role("link", name="bert").click()
    page.locator("h1", has_text="bert").wait_for()
    assert page.evaluate(fits)
    page.get_by_role("link", name="chapter 01, section").first.click()
    page.wait_for_url("**/01_forward_process.html#*")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()


def test_the_class_s_page_prints_without_scripts(class_page, chromium):
    text = class_page.read_text(encoding="utf-8")
    assert "<script" not in text and not re.search(r"(src|@import|url\()", text)
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_viewport_size({"width": 718, "height": 1000})  # of A4 with margins of a centimetre
    page.emulate_media(media="print")
    page.goto(class_page.as_uri())
    for table in page.locator("table").all():
        box = table.bounding_box()
        assert box["height"] > 0 and box["x"] >= 0 and box["x"] + box["width"] <= 718
    assert page.locator("a", has_text="chapter 05, section").first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    context.close()


# What fails is named


def test_the_sentence_above_the_first_cell_that_fails_is_told(tmp_path):
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# A chapter"),
        new.new_code_cell("few, many = 3.0, 1.0"),
        new.new_markdown_cell("## 2 · Steps\n\nFew steps are *better* than many."),
        new.new_code_cell('assert few < many, "few steps are worse"'),
        new.new_markdown_cell("Further down."),
        new.new_code_cell("never_there"),
    ]
    notebook = new.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "01_a.ipynb")
    report = tmp_path / "report.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q",
         "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}",
         "notebooks/01_a.ipynb"],
        cwd=tmp_path, capture_output=True, timeout=300,
    )  # fmt: skip
    (found,) = sentence.broken(report, tmp_path)
    assert (found.notebook, found.number, found.after) == ("notebooks/01_a.ipynb", 1, 1)
    assert "few steps are worse" in found.error
    text = sentence.told(found, tmp_path)
    assert "*2 · Steps*" in text and "> Few steps are *better* than many." in text
    assert "assert few < many" in text and "Further down" not in text


def test_a_report_without_a_failure_breaks_no_sentence(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite><testcase name="Cell 0"/></testsuite></testsuites>')
    assert sentence.broken(report) == []


@pytest.mark.parametrize("name", ["site", "weekly"])
def test_a_workflow_calls_only_what_is_there_and_holds_no_secret(name):
    yaml = pytest.importorskip("yaml")
    text = (COURSE / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    assert "secrets." not in text
    for path in re.findall(r"(?<![\w/])(\.?\w[\w./-]*\.(?:py|txt))\b", text):
        assert (COURSE / path).exists(), path
    for target in re.findall(r"\bmake ([a-z-]+)", text):
        assert re.search(rf"(?m)^{target}:", (COURSE / "Makefile").read_text(encoding="utf-8"))
