"""What every committed notebook keeps to, and the script that writes them."""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest

from diffusion_course import paths

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))
import build  # noqa: E402 (notebooks/build.py)

FOLDERS = [COURSE / "notebooks", COURSE / "solutions"]
CHAPTERS = paths.chapters(COURSE / "notebooks")
COMMITTED = sorted(path for folder in FOLDERS for path in folder.glob("*.ipynb"))
SOURCES = sorted(path for folder in FOLDERS for path in (folder / "source").glob("*.py"))

MACHINE_PATH = re.compile(
    r"(?<![\w.~])/(home|root|tmp|Users|var/folders|private/var)/|\b[A-Z]:\\(Users|Windows|Temp)\b"
)
MAX_BYTES = 1_000_000
MAX_CODE_LINES = 24
MAX_WORDS = 180


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda p: f"{p.parent.name}/{p.stem}")


def read(path):
    return nbformat.read(path, as_version=4)


def source_cells(path):
    """The cells of a chapter's source, without running anything."""
    return build.read_source(path.parent / "source" / f"{path.stem}.py").cells


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def words(text):
    """How many words a reader reads: no formulas, code, addresses or marks of Markdown."""
    for unread in (r"(?s)```.*?```", r"(?s)\$\$.*?\$\$", r"\$[^$\n]+\$", r"`[^`]*`", r"<[^>]+>"):
        text = re.sub(unread, " ", text)
    text = re.sub(r"\]\([^)]*\)|https?://\S+", " ", text)
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def texts(value):
    """Every string in the outputs except pictures, which are base64."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not key.startswith("image/") or key == "image/svg+xml":
                yield from texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts(part)
    elif isinstance(value, str):
        yield value


def test_the_first_chapters_are_there():
    numbers = {path.name[:2] for path in CHAPTERS}
    assert {f"{n:02}" for n in range(9)} <= numbers


def test_every_source_has_its_notebook_and_the_other_way_round():
    from_sources = {path.parent.parent / f"{path.stem}.ipynb" for path in SOURCES}
    assert from_sources == set(COMMITTED)


@each(COMMITTED)
def test_source_and_notebook_agree_cell_by_cell(path):
    expected = build.read_source(path.parent / "source" / f"{path.stem}.py").cells
    found = read(path).cells
    assert [(c.cell_type, c.source) for c in found] == [(c.cell_type, c.source) for c in expected]
    assert [c.id for c in found] == [c.id for c in expected]
    assert [c.metadata for c in found] == [c.metadata for c in expected]


@each(COMMITTED)
def test_every_code_cell_was_run_in_order_and_none_failed(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]


@each(COMMITTED)
def test_a_notebook_is_at_most_one_megabyte(path):
    assert path.stat().st_size <= MAX_BYTES


@each(COMMITTED)
def test_nothing_of_the_machine_or_the_moment_is_in_it(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    assert set(notebook.metadata) == {"jupytext", "kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert "execution" not in cell.metadata
        for text in texts(cell.get("outputs", [])):
            assert not MACHINE_PATH.search(text), text[:300]
        for output in cell.get("outputs", []):
            assert build.WIDGET not in output.get("data", {})
            assert output.get("name") != "stderr"


@each(COMMITTED + SOURCES)
def test_the_text_names_no_folder_of_a_machine(path):
    if path.suffix == ".py":
        text = path.read_text(encoding="utf-8")
    else:
        text = "\n".join(cell.source for cell in read(path).cells)
    found = MACHINE_PATH.search(text)
    assert not found, text[found.start() - 40 : found.end() + 40]


@each(COMMITTED)
def test_cells_are_short(path):
    cells = read(path).cells
    code = [
        (sum(bool(line.strip()) for line in cell.source.split("\n")), cell.source)
        for cell in cells
        if cell.cell_type == "code"
    ]
    text = [(words(c.source), c.source) for c in cells if c.cell_type == "markdown"]
    assert not [(n, source) for n, source in code if n > MAX_CODE_LINES]
    assert not [(n, source) for n, source in text if n > MAX_WORDS]


def test_the_first_code_cell_is_the_same_everywhere():
    # But for chapter 00, which shows that calls return at once (elsewhere a CPU's do not), and for
    # chapter 22, which needs several devices.
    own = {"00": "setup(wait=False)", "22": 'setup("cpu", devices=8)'}
    first = {
        code_cells(path)[0].source.replace(own.get(path.name[:2], "setup()"), "setup()")
        for path in COMMITTED
    }
    assert len(first) <= 1
    for source in first:
        assert "%pip install --quiet --no-deps diffusion-course" in source
        assert "course = setup()" in source


@each(CHAPTERS)
def test_a_chapter_closes_with_a_recap(path):
    cells = read(path).cells
    headings = [
        index
        for index, cell in enumerate(cells)
        if cell.cell_type == "markdown" and re.search(r"(?im)^#+ .*\brecap\b", cell.source)
    ]
    assert headings, "no heading with the word recap"
    assert headings[-1] >= len(cells) * 2 // 3
    assert all(cell.cell_type == "markdown" for cell in cells[headings[-1] :])


# Cells that can be run again, and claims that stand apart.


def parsed(source):
    """The syntax tree of a code cell; a magic is no Python and becomes `pass`."""
    return ast.parse(re.sub(r"(?m)^(\s*)%.*$", r"\1pass", source))


def assertions(source):
    """Lines with an assert statement or a call of assert_allclose and its like."""
    for node in ast.walk(parsed(source)):
        name = getattr(getattr(node, "func", None), "attr", "")
        if isinstance(node, ast.Assert) or name.startswith("assert_"):
            yield node.lineno


def tags(cell):
    return set(cell.metadata.get("tags", []))


@each(CHAPTERS)
def test_assertions_stand_in_claims_cells_or_in_comparisons(path):
    # The claims are folded. A comparison teaches: the algorithm written out equals the library.
    cells = [cell for cell in source_cells(path) if cell.cell_type == "code"]
    for cell in cells:
        apart = bool(tags(cell) & {"claims", "comparison"})
        assert apart == bool(list(assertions(cell.source))), cell.source


@each(CHAPTERS)
def test_claims_cells_are_folded_and_draw_nothing(path):
    for cell in code_cells(path):
        if "claims" in tags(cell):
            assert cell.metadata["jupyter"] == {"source_hidden": True}, cell.source
            assert cell.metadata["cellView"] == "form", cell.source
            assert re.match(r"# @title \S", cell.source), cell.source
        if tags(cell) & {"claims", "comparison"}:
            assert not [o for o in cell.outputs if "image/png" in o.get("data", {})], cell.source


HANDLES = {"fig", "ax", "axes", "i", "n", "_"}


def bindings(source):
    """The names that a cell binds: those of its own statements, and those only of its loops."""
    own, looped = set(), set()

    def visit(node, names):
        if isinstance(
            node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
        ):
            return  # scopes of their own
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        inner = looped if isinstance(node, ast.For | ast.While) else names
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(parsed(source), own)
    return own - HANDLES, looped - own - HANDLES


def sections(cells):
    """The code of each section (from one heading of second order to the next), joined."""
    title, code = "start", {"start": ""}
    for cell in cells:
        if cell.cell_type == "code":
            code[title] += cell.source + "\n"
        elif found := re.findall(r"(?m)^## (.+)$", cell.source):
            title = found[-1]
            code[title] = ""
    return code


def bound_again(cells):
    """Name -> the sections that bind it, for data that a later section would overwrite."""
    found = {}
    names = {title: bindings(code) for title, code in sections(cells).items()}
    data = set().union(*(own for own, _ in names.values()))
    for title, (own, looped) in names.items():
        for name in (own | looped) & data:  # names of loops alone may recur
            found.setdefault(name, []).append(title)
    return {name: titles for name, titles in sorted(found.items()) if len(titles) > 1}


@each(CHAPTERS)
def test_no_data_name_is_bound_in_two_sections(path):
    # So that a section's cells can be run again after a later one's.
    assert bound_again(source_cells(path)) == {}


def test_a_name_bound_in_two_sections_is_found_and_loops_may_share_theirs():
    code = [
        "a = 1\nfor k in range(3):\n    b = k\n",
        "c, d = 1, 2\nfor k in range(3):\n    b = [a for a in (1,)]\n",
        "def c():\n    d = 3\nfor i in range(2):\n    fig = d = 4\n",
    ]
    cells = []
    for title, source in zip("ABC", code, strict=True):
        cells += [nbformat.v4.new_markdown_cell(f"## {title}\ntext")]
        cells += [nbformat.v4.new_code_cell(source)]
    assert bound_again(cells) == {"c": ["B", "C"], "d": ["B", "C"]}


# The script that writes them.

TINY = """\
# %% [markdown]
# # Tiny

# %%
print("no picture")
if False:
    print("magic")
    # %pip list

# %%
import sys

print("warned", file=sys.stderr)
print(f"{__import__('os').getcwd()}/data and {__import__('pathlib').Path.home()}/x")
print("10 %\\r20 %")
object()

# %%
import ipywidgets

ipywidgets.IntSlider()

# %%
from tqdm.auto import tqdm

for _ in tqdm(range(3)):
    pass
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A chapter built twice: its path, its notebook and the bytes of both."""
    source = tmp_path_factory.mktemp("a course") / "notebooks" / "source" / "09_tiny.py"
    source.parent.mkdir(parents=True)
    source.write_text(TINY, encoding="utf-8")
    target = source.parent.parent / "09_tiny.ipynb"
    contents = []
    for _ in range(2):
        build.build(source, timeout=60)
        contents.append(target.read_bytes())
    return source, read(target), contents


def outputs(notebook, number):
    return [c for c in notebook.cells if c.cell_type == "code"][number - 1].outputs


def test_building_twice_gives_the_same_bytes(built):
    first, second = built[2]
    assert first == second
    assert first.endswith(b"}\n")


def test_claims_are_folded_in_jupyter_and_on_colab_and_nothing_else_is(tmp_path):
    source = tmp_path / "09_claims.py"
    cells = '# %%\nx = 1\n\n# %% tags=["claims"]\n# @title Checked: x\nassert x == 1\n'
    source.write_text(cells, encoding="utf-8")
    plain, claims = build.read_source(source).cells
    assert plain.metadata == {}
    folded = {"tags": ["claims"], "jupyter": {"source_hidden": True}, "cellView": "form"}
    assert claims.metadata == folded


def test_a_commented_magic_in_the_source_is_a_magic_in_the_notebook(built):
    assert "\n    %pip list" in built[1].cells[1].source


def test_the_build_leaves_out_paths_stderr_addresses_and_progress(built):
    notebook = built[1]
    printed, value = outputs(notebook, 2)
    assert printed.text == "notebooks/data and ~/x\n20 %\n"
    assert value.data["text/plain"] == "<object>"
    assert outputs(notebook, 4) == []


def test_a_widget_leaves_a_line_of_text(built):
    (shown,) = outputs(built[1], 3)
    assert shown.data == {"text/plain": build.EXPLORER}
    assert "widgets" not in built[1].metadata


def test_a_widget_with_a_picture_leaves_the_picture():
    data = {build.WIDGET: {"model_id": "1"}, "image/png": "AAAA", "text/plain": "Box()"}
    output = nbformat.v4.new_output("display_data", data)
    cell = nbformat.v4.new_code_cell("x", outputs=[output])
    build.clean(nbformat.v4.new_notebook(cells=[cell]), Path("notebooks"))
    assert cell.outputs[0].data == {"image/png": "AAAA"}


def test_ids_survive_a_cell_put_in_between_and_equal_cells_differ():
    cells = [nbformat.v4.new_code_cell(text) for text in ("a", "b", "b")]
    ids = build.cell_ids(cells)
    assert len(set(ids)) == 3
    assert build.cell_ids([cells[0], nbformat.v4.new_code_cell("c"), *cells[1:]])[2:] == ids[1:]
    assert build.cell_ids([nbformat.v4.new_markdown_cell("a")]) != ids[:1]


def test_new_text_keeps_the_outputs_and_new_code_is_refused(built, tmp_path):
    source = tmp_path / "notebooks" / "source" / "09_tiny.py"
    source.parent.mkdir(parents=True)
    source.write_text(TINY.replace("# # Tiny", "# # Small"), encoding="utf-8")
    target = tmp_path / "notebooks" / "09_tiny.ipynb"
    target.write_bytes(built[2][0])
    build.build(source, text_only=True)
    assert read(target).cells[0].source == "# Small"
    assert outputs(read(target), 2) == outputs(built[1], 2)

    source.write_text(TINY.replace("no picture", "another"), encoding="utf-8")
    with pytest.raises(SystemExit, match="code has changed"):
        build.build(source, text_only=True)


def test_a_failing_cell_leaves_the_committed_notebook_alone(tmp_path):
    source = tmp_path / "notebooks" / "source" / "09_bad.py"
    source.parent.mkdir(parents=True)
    source.write_text("# %%\n1 / 0\n", encoding="utf-8")
    with pytest.raises(build.runner.CellFailed, match="ZeroDivisionError"):
        build.build(source, timeout=60)
    assert not (tmp_path / "notebooks" / "09_bad.ipynb").exists()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Two words", 2),
        ("The noise level $\\sigma_t = 1$ grows", 4),
        ("$$\na = b + c\n$$\nfour words stand here", 4),
        ("[the paper](https://arxiv.org/abs/2006.11239) says so", 4),
        ("| a | - |\n## Heading", 2),
    ],
)
def test_words_are_those_that_a_reader_reads(text, count):
    assert words(text) == count


@pytest.mark.parametrize("text", ["/home/ann/x", "see /tmp/y.", r"C:\Users\ann", "/root/.cache"])
def test_a_path_of_a_machine_is_found(text):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize(
    "text", ["~/.cache/x", "https://x.org/home/y", "notebooks/tmp/x", r"$T:\alpha$"]
)
def test_other_paths_are_allowed(text):
    assert not MACHINE_PATH.search(text)
