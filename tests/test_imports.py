"""The package is read from top to bottom: no file imports from further down, none in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import diffusion_course

PACKAGE = Path(diffusion_course.__file__).parent

# A file imports only from the rows above its own, or from further left in its own row.
ROWS = (
    ("paths", "checks", "files"),
    ("process", "parameterization", "denoiser"),
    ("models",),
    ("data",),
    ("losses", "guidance", "samplers", "sampling", "bound", "editing"),
    ("evaluation",),
    ("weights",),
    ("training",),
    ("notebook",),
    ("grading",),
    ("app",),
    ("__main__",),
)
ORDER = [place for row in ROWS for place in row]
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    """Its name inside the package: "training.loop", "data" for data/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in FILES}


def imports(path: Path) -> set[str]:
    """The package's own files that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: imports are absolute"
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in wanted:
            parts = name.split(".")
            if parts[0] != "diffusion_course":
                continue
            # `from a.b import c` means the file a.b.c if there is one, else the file a.b.
            inside = [".".join(parts[1:n]) for n in range(len(parts), 1, -1)]
            found |= set([name for name in inside if name in NAMES][:1])
    return found


def test_every_place_of_the_package_has_its_row():
    places = {name.partition(".")[0] for name in NAMES}
    assert places == set(ORDER) and len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_above_or_from_its_left(path):
    here = name_of(path).partition(".")[0]
    for name in imports(path):
        place = name.partition(".")[0]
        assert ORDER.index(place) <= ORDER.index(here), f"{name_of(path)} imports {name}"


def test_no_files_import_each_other_in_a_circle():
    # A package's __init__ runs before its files do, but they may import it where it is complete
    # by then; what counts is which file needs which.
    graph = {name_of(path): imports(path) - {name_of(path)} for path in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError and names the circle


def test_what_breaks_the_order_is_noticed(tmp_path, monkeypatch):
    file = tmp_path / "process.py"
    file.write_text("def f():\n    from diffusion_course.training import loop\n")
    assert imports(file) == {"training.loop"}
    file.write_text("from diffusion_course import data\nimport diffusion_course.app.cli\n")
    assert imports(file) == {"data", "app.cli"}
