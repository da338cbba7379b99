"""Slides of chapters: what they hold, that they load nothing, and how they move in a browser."""

import base64
import copy
import html.parser
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from diffusion_course import paths
from diffusion_course.app import cli, runner, slides, words

COURSE = Path(__file__).resolve().parent.parent
CHAPTERS = paths.chapters(COURSE / "notebooks")
ONE = "07_guidance"  # with formulas, predictions, an explorer and figures


def png(width, height):
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width), 200, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shows(picture, **metadata):
    shown = nbformat.v4.new_output("display_data", {"image/png": picture})
    return nbformat.v4.new_code_cell("draw()", outputs=[shown], metadata=metadata)


FIRST, SECOND = png(40, 30), png(300, 20)


class Pictures(html.parser.HTMLParser):
    """The texts of a page's pictures."""

    def __init__(self, page):
        super().__init__()
        self.told = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.told.append(dict(attributes)["alt"])


def tiny():
    """A chapter of three sections with two figures, an explorer and a recap."""
    text = nbformat.v4.new_markdown_cell
    explorer = nbformat.v4.new_output(
        "display_data", {"text/plain": "[An interactive explorer stands here when …]"}
    )
    cells = [
        text("# 03 · A < B\n\n**The question.** Why\nnot [both](x.md)?\n\nThis is left out."),
        text("## 1 · One $x$\n\nThe left panel is *its* $x_t$. It is small."),
        shows(FIRST),
        nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("stream", text="no 1")]),
        text("## 2 · Nothing to see\n\nText."),
        text("## 3 · Again\n\n**Predict, then run.** What\nwill $y$ be?\n\nIt is left out, too."),
        shows(SECOND, alt='Two "lines".'),
        nbformat.v4.new_code_cell("explore()", outputs=[explorer]),
        text("## Recap\n\n1. One\n   line.\n2. Two.\n\n**New words:** none."),
        text("## Further reading\n\nA. Author."),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def test_the_slides_are_question_predictions_figures_explorer_and_recap():
    first, one, empty, asked, figure, explorer, recap = slides.slides(tiny().cells)
    assert first == slides.Slide("title", "03 · A < B", "Why\nnot both?")
    assert one == slides.Slide(
        "figure", "1 · One $x$", "The left panel is its $x_t$.", FIRST, (40, 30),
        "Figure of “1 · One x”. The left panel is its x_t.",
    )  # fmt: skip
    assert empty == slides.Slide("section", "2 · Nothing to see")
    assert asked == slides.Slide(
        "prediction", "3 · Again", "**Predict, then run.** What\nwill $y$ be?"
    )
    said = 'Two "lines".'
    assert figure == slides.Slide("figure", "3 · Again", said, SECOND, (300, 20), said)
    assert (explorer.kind, explorer.heading) == ("explorer", "3 · Again")
    assert recap == slides.Slide("recap", "Recap", "1. One\n   line.\n2. Two.")


def test_a_deck_escapes_what_it_says_and_leaves_the_notebook_as_it_was():
    notebook = tiny()
    before = copy.deepcopy(notebook)
    page = slides.page(notebook)
    assert notebook == before
    assert "<title>03 · A &lt; B</title>" in page
    assert page.count("<section ") == 7 and "no 1" not in page and "draw()" not in page
    assert Pictures(page).told == [
        "Figure of “1 · One x”. The left panel is its x_t.",
        'Two "lines".',
    ]
    assert "<ol>" in page and "left out" not in page and "New words" not in page


def test_formulas_need_mathjax_and_a_deck_without_any_needs_no_other_file(tmp_path):
    assert f'src="{slides.MATHJAX}"' in slides.page(tiny())
    plain = tiny()
    for cell in plain.cells:
        cell.source = cell.source.replace("$", "")
    page = slides.page(plain)
    assert slides.MATHJAX not in page and "MathJax" not in page


def test_a_deck_names_no_address_that_a_browser_would_load(tmp_path):
    for page in (slides.page(tiny()), slides.page(nbformat.read(CHAPTERS[7], as_version=4))):
        loaded = re.findall(r'(?:src|<link [^>]*href)="([^"]*)"', page)
        assert {url for url in loaded if not url.startswith("data:")} <= {slides.MATHJAX}
        assert "@import" not in page and "url(" not in page


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_figure_of_a_chapter_is_in_its_deck_and_so_are_question_and_recap(path):
    cells = nbformat.read(path, as_version=4).cells
    found = slides.slides(cells)
    pictures = [
        "".join(output["data"]["image/png"].split())
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures and [s.picture for s in found if s.kind == "figure"] == pictures
    assert found[0].kind == "title" and found[0].text.endswith("?")
    (recap,) = (s for s in found if s.kind == "recap")
    assert len(re.findall(r"(?m)^\d\. ", recap.text)) >= 4
    sections = [h for c in cells for h in re.findall(r"(?m)^## (\d+ · .+)$", c.source)
                if c.cell_type == "markdown"]  # fmt: skip
    assert list(dict.fromkeys(s.heading for s in found if s.heading[:3] != recap.heading[:3]))[
        1:
    ] == [h for h in sections if h[:3] != recap.heading[:3]]
    asked = sum(c.source.count("**Predict, then ") for c in cells if c.cell_type == "markdown")
    assert sum(s.kind == "prediction" for s in found) == asked >= 1
    for slide in found:
        assert slide.heading and "](" not in re.sub(r"\]\(http", "", slide.text)


def test_the_command_writes_decks_of_the_chapters_that_are_named(tmp_path, capsys):
    assert cli.main(["slides", str(tmp_path / "new"), "07", "--course", str(COURSE)]) == 0
    assert f"wrote {tmp_path / 'new' / ONE}.html, " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"{ONE}.html", slides.MATHJAX}


def test_the_command_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    command = ["slides", str(tmp_path / "new"), "77", "--course", str(COURSE)]
    assert cli.main(command) == 2 and "77" in capsys.readouterr().err

    def missing():
        raise runner.Mistake("MathJax is not installed")

    monkeypatch.setattr(slides, "mathjax", missing)
    command[2] = "07"
    assert cli.main(command) == 2 and "MathJax is not" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_caption_is_the_last_sentence_that_says_what_is_seen():
    new = nbformat.v4
    for text, wanted in [
        (
            "## A\n\nNoise grows. The upper row is $\\bar\\alpha$. And then?",
            "The upper row is $\\bar\\alpha$.",
        ),
        ("## A\n\nNoise grows. That is all.", ""),
        (
            "## A\n\nThe dots are data (A line is drawn. It is long.)",
            "The dots are data A line is drawn.",
        ),
    ]:
        cells = [new.new_markdown_cell(text), new.new_code_cell("draw()")]
        assert words.caption(cells, 1) == wanted
        cells[1].metadata["alt"] = "A ring."
        assert words.caption(cells, 1) == "A ring."


# In a browser


@pytest.fixture(scope="module")
def deck(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decks")
    return slides.write(COURSE, folder, ["07"])[0]


FITS = "() => document.documentElement.scrollWidth <= window.innerWidth"


@pytest.mark.parametrize(("width", "height", "scheme"), [(380, 800, "dark"), (1280, 720, "light")])
def test_the_arrow_keys_move_and_every_slide_fits_the_width(deck, chromium, width, height, scheme):
    page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(deck.as_uri())
    page.locator("mjx-container").first.wait_for(state="attached")  # formulas are set
    count = page.locator("section").count()
    now = page.locator("section.now")
    assert now.inner_text().startswith("07 · Guidance\n") and now.count() == 1
    for number in range(1, count + 1):
        assert page.locator("nav span").inner_text() == f"{number} / {count}"
        assert page.evaluate("location.hash") == f"#{number}"
        visible = page.evaluate(
            "[...document.querySelectorAll('section')].filter(s => s.offsetHeight).length"
        )
        assert visible == 1 and page.evaluate(FITS), now.inner_text()
        if now.get_attribute("class").startswith("figure"):
            box = now.locator("img").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 200
        page.keyboard.press("ArrowRight")
    assert page.locator("nav span").inner_text() == f"{count} / {count}"  # there it stays
    page.keyboard.press("ArrowLeft")
    assert page.locator("nav span").inner_text() == f"{count - 1} / {count}"
    page.keyboard.press("Home")
    page.get_by_label("on", exact=True).click()
    assert page.locator("nav span").inner_text() == f"2 / {count}"
    page.goto(f"{deck.as_uri()}#5")
    assert page.locator("nav span").inner_text() == f"5 / {count}"
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()


def test_on_paper_and_without_scripts_all_slides_are_there(deck, chromium):
    shown = "[...document.querySelectorAll('section')].every(slide => slide.offsetHeight > 0)"
    page = chromium.new_page(viewport={"width": 1280, "height": 720})
    page.goto(deck.as_uri())
    assert not page.evaluate(shown)
    page.emulate_media(media="print")
    assert page.evaluate(shown)
    page.close()
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(deck.as_uri())
    boxes = [page.locator("section").nth(n).bounding_box() for n in (0, -1)]
    assert boxes[0]["height"] > 0 and boxes[1]["y"] > boxes[0]["y"] + 2000
    context.close()
