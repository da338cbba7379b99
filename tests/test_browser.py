"""The explorers work in JupyterLab, in a real browser, without the network.

Of a chapter only those cells run here that its explorers need: all of them run in the tests of the
notebooks.
"""

import re
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest

from diffusion_course import paths
from diffusion_course.grading.places import anchor

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))
import slices  # noqa: E402 (notebooks/slices.py)

CHAPTERS = paths.chapters(COURSE / "notebooks")

SET_SOURCE = """([gradeId, source]) => {
  const cells = Array.from(window.jupyterapp.shell.currentWidget.content.model.cells);
  const cell = cells.find(cell => cell.getMetadata('nbgrader')?.grade_id === gradeId);
  cell.sharedModel.setSource(source);
}"""

# What a student writes: nothing yet, the root forgotten, the roots in place.
ANSWERS = {
    None: "✗ 01.1 One step of noise: 0 of 2 points",
    "jnp.sqrt(1 - beta) * x + beta * eps": "β is a variance",
    "jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * eps": "✓ 01.1 One step of noise: 2 of 2 points",
}

TINY = """
import matplotlib.pyplot as plt

from diffusion_course.notebook import widgets


def bar(level):
    figure, axes = plt.subplots(figsize=(2, 1), dpi=72)
    axes.bar([0], [level])
    axes.set_ylim(0, 10)
    return figure


frames = widgets.render(bar, range(11))
widgets.explorer(frames, [f"level {level}" for level in range(11)], start=3)
"""


def open_code(lab, name, *sources):
    """A page with a notebook of these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, lab.folder / name)
    return lab.open(name)


def assert_every_cell_ran(cells):
    assert cells
    for cell in cells:
        assert isinstance(cell["count"], int), cell["source"]
        assert cell["errors"] == [], cell["source"]


def outputs_with(page, css):
    """The outputs of the page's cells in which there is such an element."""
    return page.locator(".jp-OutputArea-output", has=page.locator(css)).all()


def assert_arrow_keys_move_the_explorer(page, output, presses=2):
    """Focus its first slider, press an arrow key: text, picture and what is seen change."""
    handle = output.locator(".course-slider .noUi-handle").first
    readout, frame = output.locator(".course-readout"), output.locator(".course-frame")
    frame.scroll_into_view_if_needed()
    elements = [readout.element_handle(), frame.element_handle()]
    page.wait_for_function("([_, frame]) => frame.naturalWidth > 0", arg=elements)
    text, source, seen = readout.inner_text(), frame.get_attribute("src"), frame.screenshot()
    handle.focus()
    at_the_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
    for _ in range(presses):
        handle.press("ArrowLeft" if at_the_end else "ArrowRight")
    page.wait_for_function(
        "([readout, frame, text, source]) => readout.innerText !== text"
        " && frame.src !== source && frame.complete && frame.naturalWidth > 0",
        arg=[*elements, text, source],
        timeout=60_000,
    )
    assert readout.inner_text() != text
    assert frame.get_attribute("src") != source
    assert frame.screenshot() != seen


def assert_the_player_goes_on_by_a_frame(output):
    picture = output.locator("img[id^=_anim_img]")
    output.get_by_title("Pause").click()
    shown = picture.get_attribute("src")
    output.get_by_title("Next frame").click()
    assert picture.get_attribute("src") != shown


def test_a_slider_moves_its_picture_in_a_tiny_notebook(lab):
    page = open_code(lab, "tiny.ipynb", TINY.strip())
    assert_every_cell_ran(lab.run_all(page))
    (explorer,) = outputs_with(page, ".course-slider")
    assert_arrow_keys_move_the_explorer(page, explorer)
    assert page.locator(".course-readout").inner_text() == "level 5"
    lab.close(page)
    assert lab.outside == []


EDITOR = """
import matplotlib.pyplot as plt

from diffusion_course.notebook import plots, widgets


def show(hidden):
    figure, axes = plt.subplots(figsize=(2, 1), dpi=72)
    axes.imshow(hidden)
    return f"{hidden.sum()} hidden", plots.to_png(figure)


widgets.mask_editor(show, [[True, False], [False, False]])
"""


def assert_a_drawn_mask_is_filled_in(page, editor):
    """Click the first field that is shown, then the button: text and picture change."""
    editor.scroll_into_view_if_needed()
    readout, frame = editor.locator(".course-readout"), editor.locator(".course-frame")
    field = editor.locator(".course-field:not(.mod-active)").first
    text, source = readout.inner_text(), frame.get_attribute("src")
    before = field.evaluate("field => getComputedStyle(field).backgroundColor")
    handle = field.element_handle()  # the locator finds another one once this one is active
    handle.click()
    page.wait_for_function("field => field.classList.contains('mod-active')", arg=handle)
    page.mouse.move(0, 0)  # a field under the mouse has a colour of its own
    page.wait_for_function(
        "([field, before]) => getComputedStyle(field).backgroundColor !== before",
        arg=[handle, before],
        timeout=20_000,
    )
    assert readout.inner_text() == text
    editor.locator(".course-action").click()
    page.wait_for_function(
        "([readout, text]) => readout.innerText !== text",
        arg=[readout.element_handle(), text],
        timeout=60_000,
    )
    page.wait_for_function(
        "([frame, source]) => frame.src !== source && frame.naturalWidth > 0",
        arg=[frame.element_handle(), source],
        timeout=20_000,
    )


def test_a_mask_is_drawn_and_filled_in_a_tiny_notebook(lab):
    page = open_code(lab, "editor.ipynb", EDITOR.strip())
    assert_every_cell_ran(lab.run_all(page))
    page.locator(".course-readout").get_by_text("1 hidden").wait_for(timeout=20_000)
    (editor,) = outputs_with(page, ".course-action")
    assert_a_drawn_mask_is_filled_in(page, editor)
    assert page.locator(".course-readout").inner_text() == "2 hidden"
    lab.close(page)
    assert lab.outside == []


STUDY = """
import io

from PIL import Image

from diffusion_course.evaluation import judgements
from diffusion_course.notebook import widgets


def grey(level):
    file = io.BytesIO()
    Image.new("L", (40, 40), level).save(file, "PNG")
    return file.getvalue()


dealt = judgements.deal([3, 3], rounds=3)  # no picture comes twice
study = widgets.judging([[*map(grey, (0, 40, 80))], [*map(grey, (160, 200, 240))]], dealt)
study
"""


def test_a_person_judges_three_pairs_in_a_tiny_notebook(lab):
    page = open_code(lab, "study.ipynb", STUDY.strip())
    assert_every_cell_ran(lab.run_all(page))
    (study,) = outputs_with(page, ".course-judge")
    pictures = study.locator("img.course-left, img.course-right")
    assert pictures.count() == 2 and study.locator("button.course-judge").count() == 3
    readout, left = study.locator(".course-readout"), pictures.first.element_handle()
    readout.get_by_text("0 of 3 judged").wait_for(timeout=20_000)
    for done, answer in enumerate(("the left one", "neither", "the right one"), start=1):
        before = pictures.first.get_attribute("src")
        study.get_by_role("button", name=answer).click()
        readout.get_by_text(f"{done} of 3 judged").wait_for(timeout=20_000)
        if done < 3:
            page.wait_for_function(
                "([picture, before]) => picture.src !== before && picture.naturalWidth > 0",
                arg=[left, before],
                timeout=20_000,
            )
    page.wait_for_function(
        "() => document.querySelectorAll('button.course-judge:disabled').length === 3"
    )
    lab.close(page)
    assert lab.outside == []


def test_a_failing_cell_would_be_seen(lab):
    page = open_code(lab, "bad.ipynb", "1 / 0")
    (cell,) = lab.run_all(page)
    assert cell["errors"][0]["ename"] == "ZeroDivisionError"
    lab.close(page)


@pytest.mark.in_turn
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_explorer_of_a_chapter_moves(lab, chapter):
    sources, widgets = slices.explorers(chapter)
    assert widgets, f"{chapter.name} has no explorer"
    page = open_code(lab, f"notebooks/{chapter.stem}_explorers.ipynb", *sources)
    assert_every_cell_ran(lab.run_all(page, timeout=900))
    sliders = outputs_with(page, ".course-slider")
    editors = outputs_with(page, ".course-action")
    players = outputs_with(page, "img[id^=_anim_img]")
    found = {"explorer": len(sliders), "mask_editor": len(editors), "animation": len(players)}
    assert found == {name: widgets.count(name) for name in found}
    for output in sliders:
        assert_arrow_keys_move_the_explorer(page, output)
    for output in editors:
        assert_a_drawn_mask_is_filled_in(page, output)
    for output in players:
        assert_the_player_goes_on_by_a_frame(output)
    lab.close(page)
    assert lab.outside == []


def test_a_student_goes_from_the_stub_over_a_mistake_to_the_right_answer(lab):
    name = "01_forward_process.ipynb"
    (lab.folder / "exercises").mkdir(exist_ok=True)
    shutil.copy(COURSE / "exercises" / name, lab.folder / "exercises")
    page = lab.open(f"exercises/{name}")
    for answer, expected in ANSWERS.items():
        if answer is not None:
            source = f"def noise_step(x, beta, eps):\n    return {answer}"
            page.evaluate(SET_SOURCE, ["answer-01-1", source])
        assert_every_cell_ran(lab.run_all(page))
        output = page.locator(".jp-OutputArea-output", has_text="01.1 One step of noise").first
        output.get_by_text(expected).wait_for(timeout=20_000)
        points = 2 if "✓" in expected else 0
        assert f"Chapter 01 so far: {points} of" in output.inner_text()
    assert lab.outside == []
    lab.close(page)


def test_a_link_to_a_section_opens_its_chapter_in_jupyterlab_where_headings_have_the_same_ids(lab):
    cells = nbformat.read(COURSE / "notebooks" / "01_forward_process.ipynb", as_version=4).cells
    texts = [cell for cell in cells if cell.cell_type == "markdown"]
    headings = re.findall(r"(?m)^## (\d+ · .+)$", "\n".join(cell.source for cell in texts))
    wanted = headings[3]
    link = nbformat.v4.new_markdown_cell(f"[there](texts.ipynb#{quote(anchor(wanted))})")
    for name, some in (("texts.ipynb", texts), ("link.ipynb", [link])):
        notebook = nbformat.v4.new_notebook(cells=some)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, lab.folder / name)
    page = lab.open("link.ipynb")
    page.get_by_role("link", name="there").click()
    page.locator("h2", has_text=wanted).wait_for(timeout=60_000)
    found = page.evaluate(
        "[...document.querySelectorAll('h2')].map(h => h.id || h.dataset.jupyterId)"
    )
    # A formula has another id there, which nothing in the course links to.
    assert {anchor(each) for each in headings if "$" not in each} <= set(found)
    page.close()
