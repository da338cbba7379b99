"""The course as a site: static pages of everything, which need neither a kernel nor a network.

    python site/build.py                        all of it, into build/site
    python site/build.py 01 05                  the first page, these chapters and the documents
    python site/build.py --repository OWNER/NAME    with links to Colab and to the sources on GitHub

It lays the pages out in OUTPUT-source, runs Sphinx there with warnings as errors, and then checks
every link and picture of what was written (`links.py`).
"""

from __future__ import annotations

import argparse
import ast
import base64
import html
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt

SITE = Path(__file__).resolve().parent
COURSE = SITE.parent
sys.path[:0] = [str(SITE), str(COURSE / "notebooks"), str(COURSE)]

import chapters  # noqa: E402 (notebooks/chapters.py)
import frames  # noqa: E402 (notebooks/frames.py)
import links  # noqa: E402 (site/links.py)

from diffusion_course import paths  # noqa: E402
from diffusion_course.app import words  # noqa: E402
from diffusion_course.grading.places import anchor  # noqa: E402

PACKAGE = COURSE / "diffusion_course"
EXPLORER = "[An interactive explorer stands here when the notebook runs.]"
ON_THE_FIRST_PAGE = "01_forward_process"
FOLDERS = ("notebooks", "exercises", "docs")
MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")

_LINK = re.compile(r"(?<!!)\[([^\]\n]*(?:\n[^\]\n]+)?)\]\(([^)\s]+)\)")
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
_DETAILS = re.compile(r"(<details>\s*<summary>.*?</summary>)(.*?)(</details>)", re.DOTALL)


class Site:
    """What one build lays out.

    Args:
      source: the folder for Sphinx's sources; it is made anew.
      wanted: starts of chapters' file names; all without any.
      modules: the library's modules that the reference has; all without any.
      repository: "owner/name" on GitHub, or "" for no links to it.
      branch: of that repository.
    """

    def __init__(self, source: Path, wanted=(), modules=(), repository="", branch="main"):
        self.source, self.repository, self.branch = source, repository, branch
        self.chapters = _chosen("notebooks", wanted)
        self.exercises = _chosen("exercises", wanted)
        self.documents = sorted((COURSE / "docs").glob("*.md"))
        self.modules = [row for row in modules_in_order() if not modules or row in modules]
        files = [*self.chapters, *self.exercises, *self.documents]
        self.pages = {path.relative_to(COURSE).as_posix() for path in files}
        self.names = {path.stem for path in self.chapters}

    def lay_out(self) -> None:
        """Writes every page's source."""
        shutil.rmtree(self.source, ignore_errors=True)
        static = self.source / "_static"
        shutil.copytree(SITE / "static", static)
        for name in ("conf.py", "docstrings.py"):
            shutil.copy(SITE / name, self.source / name)
        copy_mathjax(static / "mathjax")
        (static / "explorers").mkdir()
        for path in [*self.chapters, *self.exercises]:
            self.notebook(path)
        for path in self.documents:
            self.write(path.relative_to(COURSE), path.read_text(encoding="utf-8"))
        self.exercises_page()
        self.reference()
        self.first_page()

    def write(self, path: Path | str, text: str) -> None:
        """A page of Markdown; its links and pictures are seen to."""
        target = self.source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.linked(text, target.parent), encoding="utf-8")

    def linked(self, text: str, folder: Path) -> str:
        """Markdown of a page in a folder of the sources, fit for the site.

        Links to pages of the site stay. Others lead to the repository, or become plain text if none
        is known. Pictures are copied.
        """
        here = folder.relative_to(self.source)

        def link(found: re.Match) -> str:
            label, target = found.groups()
            if re.match(r"https?:|mailto:|#", target):
                return found[0]
            path = _normal(here / target.partition("#")[0])
            if path in ("README.md", "index.md"):
                return f"[{label}]({os.path.relpath('index.md', here)})"
            if path in self.pages or (self.source / path).is_file() or path in _MADE:
                return found[0]
            if path == "exercises":
                return f"[{label}]({os.path.relpath('exercises/index.md', here)})"
            if self.repository and (COURSE / path).exists():
                return f"[{label}]({self.address('blob', path)})"
            return label

        for target in _PICTURE.findall(text):
            path = _normal(here / target)
            if not re.match(r"https?:", target):
                (self.source / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(COURSE / path, self.source / path)
        return _LINK.sub(link, text)

    def address(self, kind: str, path: str) -> str:
        return f"https://github.com/{self.repository}/{kind}/{self.branch}/{path}"

    # Notebooks

    def notebook(self, path: Path) -> None:
        """A notebook as Sphinx reads it; the file itself is not changed."""
        notebook = nbformat.read(path, as_version=4)
        target = self.source / path.relative_to(COURSE)
        target.parent.mkdir(parents=True, exist_ok=True)
        notebook.metadata["file_format"] = "mystnb"
        explorers = {file.stem: file for file in frames.archives(path.stem)}
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                text = _with_anchors(_open_details(cell.source))
                cell.source = self.linked(text, target.parent)
            elif cell.cell_type == "code":
                self.code(cell, words.alternative(notebook.cells, number), path, explorers)
        title, _, rest = notebook.cells[0].source.partition("\n")
        notebook.cells[0].source = f"{title}\n\n{self.tools(path)}\n{rest}"
        nbformat.write(notebook, target)

    def tools(self, path: Path) -> str:
        """The line below a notebook's title."""
        name, folder = path.name, path.parent.name
        where = [f'<a href="{name}" download>Download the notebook</a>']
        if self.repository:
            colab = f"https://colab.research.google.com/github/{self.repository}"
            address = f"{colab}/blob/{self.branch}/{folder}/{name}"
            where.insert(0, f'<a href="{address}">Open in Colab</a>')
        other = "exercises" if folder == "notebooks" else "notebooks"
        if f"{other}/{name}" in self.pages:
            label = "Exercises" if other == "exercises" else "The chapter"
            where.append(f'<a href="../{other}/{path.stem}.html">{label}</a>')
        return f'<p class="course-tools">{" ".join(where)}</p>\n'

    def code(self, cell, alternative: str, path: Path, explorers: dict[str, Path]) -> None:
        """A code cell: folded if it is folded in JupyterLab, with a player for its explorer."""
        settings = {"image": {"alt": alternative}}
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
            title = re.match(r"# @title (.+)", cell.source)
            if title:
                settings |= dict.fromkeys(("code_prompt_show", "code_prompt_hide"), title[1])
        cell.metadata["mystnb"] = settings
        shown = 0
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if data.get("text/plain") == EXPLORER:
                shown += 1
                name = cell.id if shown == 1 else f"{cell.id}-{shown}"
                text = self.player(explorers[name], alternative, 1) if name in explorers else ""
                output["data"] = {"text/html": text or self.no_player(path)}
            elif "text/html" in data:
                data["text/html"] = words.with_alternatives(data["text/html"], alternative)

    def player(self, archive: Path, alternative: str, depth: int) -> str:
        """What stands in a page, `depth` folders down, for an explorer; its data are written."""
        name = f"{archive.parent.name}-{archive.stem}"
        folder = self.source / "_static" / "explorers"
        explorer = frames.read(archive)
        if not (folder / f"{name}.js").exists():
            told = explorer.index | {
                "pictures": [base64.b64encode(data).decode() for data in explorer.pictures]
            }
            (folder / f"{name}.js").write_text(
                f"(window.courseExplorers ||= {{}})[{json.dumps(name)}] = "
                f"{json.dumps(told, ensure_ascii=False, separators=(',', ':'))};\n",
                encoding="utf-8",
            )
            still = frames.webp(explorer.frame(0, explorer.index["start"]))
            (folder / f"{name}.webp").write_bytes(still)
        width, height = explorer.index["size"]
        start = "../" * depth + f"_static/explorers/{name}"
        series, label = explorer.index["series"], explorer.index["labels"][explorer.index["start"]]
        described = html.escape(f"{alternative} Here: {series[0][0]} {label}".strip())
        return (
            f'<div class="course-explorer" data-name="{name}" data-source="{start}.js">'
            f'<img class="course-still" src="{start}.webp" width="{width}" height="{height}" '
            f'alt="{described}"><noscript><p>This picture moves with a slider where the page may '
            "run scripts.</p></noscript></div>"
        )

    def no_player(self, path: Path) -> str:
        """For what only a kernel can answer, and for explorers without frames yet."""
        where = "the notebook runs"
        if self.repository:
            colab = f"https://colab.research.google.com/github/{self.repository}"
            address = f"{colab}/blob/{self.branch}/notebooks/{path.name}"
            where = f'the notebook runs, for example <a href="{address}">in Colab</a>'
        return f'<p class="course-nokernel">Something to move stands here when {where}.</p>'

    # Pages that are made

    def first_page(self) -> None:
        text = (SITE / "index.md").read_text(encoding="utf-8")
        readme = (COURSE / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"\{\{ README: (.+?) \}\}", lambda m: _section(readme, m[1]), text)
        text = text.replace("{{ map }}", self.map()).replace("{{ explorer }}", self.shown_first())
        for found in re.findall(r'<a [^>]*href="notebooks/(\w+)\.html">.*?</a>\n', text):
            if found not in self.names:  # the site holds a part of the course
                text = re.sub(rf'<a [^>]*href="notebooks/{found}\.html">.*?</a>\n', "", text)
        guide, reference = [], []
        for path in self.documents:
            (reference if path.stem in _REFERENCE else guide).append(f"docs/{path.stem}")
        trees = {
            "The course": [f"notebooks/{path.stem}" for path in self.chapters],
            "Practice": ["exercises/index"],
            "Look up": [*reference, "api/index"],
            "Use it": guide,
        }
        for caption, entries in trees.items():
            if entries:
                listed = "\n".join(entries)
                text += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"
        self.write("index.md", text)

    def shown_first(self) -> str:
        archives = frames.archives(ON_THE_FIRST_PAGE)
        if not archives:
            return ""
        alternative = "Noisy digits, the histogram of their pixels, and the log-SNR over time."
        return self.player(archives[0], alternative, 0)

    def map(self) -> str:
        """The chapters as cards, part by part."""
        inline = MarkdownIt().renderInline
        text = []
        table = chapters.read(COURSE).chapters
        for part, rows in groupby(table, key=lambda chapter: chapter.part):
            text += [f"### {part}", "", '<ul class="course-map">']
            for row in rows:
                number = f"{row.number} · " if row.number.isdigit() else ""
                card = (
                    f"<b>{number}{html.escape(row.title)}</b>"
                    f'<span class="course-insight">{inline(row.insight)}</span>'
                )
                if row.file in self.names:
                    text.append(f'<li><a href="notebooks/{row.file}.html">{card}</a></li>')
                else:
                    text.append(f'<li><span class="course-later">{card}</span></li>')
            text += ["</ul>", ""]
        return "\n".join(text)

    def exercises_page(self) -> None:
        titles = {row.file: row for row in chapters.read(COURSE).chapters}
        listed = [
            f"- [{titles[path.stem].number} · {titles[path.stem].title}]({path.name})"
            for path in self.exercises
        ]
        names = "\n".join(path.stem for path in self.exercises)
        self.write("exercises/index.md", _EXERCISES.format(listed="\n".join(listed), names=names))

    def reference(self) -> None:
        """A page for each module, in the library's reading order."""
        listed = []
        for module in self.modules:
            page = f"{module.replace('.', '_')}.md"
            listed.append(f"- [`{module}`]({page}): {_first_line(module)}")
            full = f"diffusion_course.{module}"
            self.write(f"api/{page}", _MODULE.format(module=module, full=full))
        self.write("api/index.md", _REFERENCE_PAGE.format(listed="\n".join(listed)))


_MADE = {"exercises/index.md", "api/index.md"}
_REFERENCE = ("glossary", "notation", "bibliography", "ledger", "benchmarks", "library")
_EXERCISES = """# Exercises

Each chapter has some, from a warm-up to a stretch. In a notebook that runs, `check(...)` says at
once whether a function is right, and if not, which mistake it looks like. Here you can read them.

{listed}

```{{toctree}}
:hidden:

{names}
```
"""
_MODULE = """---
orphan: true
---
# `{module}`

[The library's reference](index.md)

```{{eval-rst}}
.. automodule:: {full}
```
"""
_REFERENCE_PAGE = """# The library's reference

Every public function and class, from the docstrings, in the order in which the library is read:
nothing is used before you have met it. [What lives where](../docs/library.md) gives a line to each
file.

{listed}
"""


def _chosen(folder: str, wanted: Iterable[str]) -> list[Path]:
    found = paths.chapters(COURSE / folder)
    return [path for path in found if not wanted or path.name.startswith(tuple(wanted))]


def _normal(path: Path | str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def _open_details(text: str) -> str:
    """Blank lines around what a fold hides, so that it is read as Markdown, formulas and all."""
    return _DETAILS.sub(lambda m: f"{m[1]}\n\n{m[2].strip()}\n\n{m[3]}", text)


def _with_anchors(text: str) -> str:
    """Before each numbered section the id that its heading has in JupyterLab.

    Sphinx makes ids of its own; links to sections are made for both.
    """
    return re.sub(
        r"(?m)^## (\d+ · .+)$",
        lambda m: f'<span class="course-anchor" id="{html.escape(anchor(m[1]))}"></span>\n\n{m[0]}',
        text,
    )


def _section(text: str, heading: str) -> str:
    """A section of a page, with its heading."""
    found = re.search(rf"(?ms)^## {re.escape(heading)}\n.*?(?=^## |^!\[|\Z)", text)
    if not found:
        raise SystemExit(f"README.md has no section {heading!r}, which site/index.md names")
    return found[0].rstrip()


def modules_in_order() -> list[str]:
    """The library's public modules, as docs/library.md orders them: "process", "models.unet"."""
    text = (COURSE / "docs" / "library.md").read_text(encoding="utf-8")
    table = re.search(r"^\| place \|.*\n\|---\|---\|\n((?:\|.*\n)+)", text, re.MULTILINE)[1]
    found = []
    for line in table.splitlines():
        for place in re.findall(r"`(.+?)`", line.split("|")[1]):
            if place.endswith("/"):
                inside = sorted((PACKAGE / place).glob("*.py"))
                parts = [p.stem for p in inside if not p.stem.startswith("_")]
                if _documented(PACKAGE / place / "__init__.py"):
                    found.append(place[:-1])
                found += [f"{place[:-1]}.{part}" for part in parts]
            elif not place.startswith("_"):
                found.append(place.removesuffix(".py"))
    return found


def _first_line(module: str) -> str:
    """The first sentence of a module's docstring."""
    file = PACKAGE.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _documented(file: Path) -> bool:
    """Whether a package's own file defines something public."""
    return bool(re.search(r"(?m)^(def|class) [a-z]", file.read_text(encoding="utf-8")))


def copy_mathjax(target: Path) -> None:
    """MathJax's files from the installed package that carries them."""
    import importlib.util

    found = importlib.util.find_spec("mathjax")
    folder = found and Path(found.submodule_search_locations[0], "static", "mathjax", "es5")
    if not folder or not folder.exists():
        raise SystemExit('MathJax is missing: pip install -c constraints.txt -e ".[site]"')
    for name in MATHJAX:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
        copy(folder / name, target / name)


def build(output: Path, jobs: int = 1, **choices) -> list[str]:
    """Lays out, builds and checks a site; returns what is wrong with it, one line each."""
    from sphinx.cmd.build import build_main

    site = Site(output.with_name(f"{output.name}-source"), **choices)
    site.lay_out()
    shutil.rmtree(output, ignore_errors=True)
    doctrees = output.with_name(f"{output.name}-doctrees")
    command = ["-q", "-W", "--keep-going", "-j", str(jobs), "-b", "html", "-d", str(doctrees)]
    if build_main([*command, str(site.source), str(output)]):
        return ["Sphinx warns; see above"]
    for path in [*site.chapters, *site.exercises]:
        shutil.copy(path, output / path.relative_to(COURSE))
    (output / ".nojekyll").touch()  # else GitHub leaves out folders that begin with _
    return links.problems(output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*", help="starts of file names; all without")
    parser.add_argument("--output", type=Path, default=COURSE / "build" / "site")
    parser.add_argument("--repository", default="", help="OWNER/NAME on GitHub")
    parser.add_argument("--branch", default="main")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", given.repository):
        parser.error(f"--repository must be OWNER/NAME, got {given.repository!r}")
    start = time.perf_counter()
    wrong = build(
        given.output.resolve(),
        given.jobs,
        wanted=tuple(given.chapters),
        repository=given.repository,
        branch=given.branch,
    )
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        return 1
    files = [path for path in given.output.rglob("*") if path.is_file()]
    pages = sum(path.suffix == ".html" for path in files)
    size = sum(path.stat().st_size for path in files) / 1e6
    seconds = time.perf_counter() - start
    print(f"{given.output}: {pages} pages, {size:.0f} MB, {seconds:.0f} s; open index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
