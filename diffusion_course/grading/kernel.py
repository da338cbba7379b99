"""What a notebook does with its cells, where there is no Jupyter: magics, `display`, `await`.

A cell runs statement by statement, and goes on behind one that fails: what fails here may work in
the student's notebook, such as Colab's own imports at the head of a cell.
"""

from __future__ import annotations
import __future__ as futures

import ast
import asyncio
import importlib
import inspect
import linecache
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Cell magics whose text is not Python, or does not run in the notebook's own names.
_ELSEWHERE = {
    *("!", "bash", "sh", "script", "system", "sx", "cmd", "perl", "ruby", "pypy"),
    *("python", "python2", "python3", "timeit", "writefile", "file"),
    *("html", "HTML", "svg", "SVG", "js", "javascript", "latex", "markdown"),
}


class Notebook:
    """Names that cells define, one after the other.

    Attributes:
      module: ``__main__``, as the cells see it.
      space: its names.
    """

    def __init__(self) -> None:
        self.module = types.ModuleType("__main__")
        self.space = vars(self.module)
        self._shell = _Shell(self)
        self.space |= {"get_ipython": self._shell, "display": NOTHING, "In": [], "Out": {}}
        self._flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._loop: asyncio.AbstractEventLoop | None = None
        self.name = ""

    def run(self, source: str, name: str) -> None:
        """Runs a cell, all its statements; then raises what the first that failed has raised.

        Args:
          source: of the cell.
          name: of the cell, by which tracebacks know it.
        """
        self.name = name
        if "IPython" in source:
            self._replace_ipython()
        tree = _parsed(source, name)
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        in_loop = "await" in source or "async" in source
        first = None
        for statement in tree.body:
            try:
                self._execute(ast.Module([statement], []), "exec", in_loop)
            except Exception as error:
                first = first or error
        if first is not None:
            raise first

    def value(self, source: str) -> Any:
        """Runs one line; returns the value of its last expression."""
        tree = _parsed(source, self.name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        self._execute(tree, "exec", False)
        return None if last is None else self._execute(ast.Expression(last.value), "eval", False)

    def _execute(self, tree: ast.AST, mode: str, in_loop: bool) -> Any:
        code = compile(tree, self.name, mode, flags=self._flags, dont_inherit=True)
        for statement in getattr(tree, "body", ()) if mode == "exec" else ():
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                for alias in statement.names:  # it holds for the cells below, too
                    self._flags |= getattr(futures, alias.name).compiler_flag
        if not in_loop:
            return eval(code, self.space)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(self._awaited(code))

    async def _awaited(self, code: types.CodeType) -> Any:
        value = eval(code, self.space)
        return await value if inspect.iscoroutine(value) else value

    def _replace_ipython(self) -> None:
        """Has IPython's own `get_ipython` give what stands in for a shell, too."""
        import IPython

        IPython.get_ipython = IPython.core.getipython.get_ipython = self._shell


def _parsed(source: str, name: str) -> ast.Module:
    try:
        return ast.parse(source, name)
    except SyntaxError:
        # Magics and shell lines; the rest of the cell still counts.
        from IPython.core.inputtransformer2 import TransformerManager

        return ast.parse(TransformerManager().transform_cell(source), name)


class _Nothing:
    """Stands in for what has no meaning here: it can be called, asked, entered, and looped over."""

    __module__ = "IPython"  # so that it counts as the notebook's, and not as the course's

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **options: Any) -> _Nothing:
        return self

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __getitem__(self, key: Any) -> _Nothing:
        return self

    def __repr__(self) -> str:
        return ""


NOTHING = _Nothing()


class _Shell(_Nothing):
    """Stands in for IPython, and for `get_ipython`, which gives it.

    Shell commands, hooks and most magics do nothing here.
    """

    __module__ = "IPython"

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self.user_ns = notebook.space

    def run_cell_magic(self, name: str, line: str, cell: str) -> Any:
        """Runs what stands below ``%%time``, ``%%capture`` and others like them."""
        last = (line.split() or [""])[-1]
        if name in ("writefile", "file") and last:
            with Path(last).open("a" if "-a" in line.split() else "w", encoding="utf-8") as file:
                file.write(cell)
            importlib.invalidate_caches()  # it may be a module
        if name == "capture" and last.isidentifier():
            self.user_ns[last] = NOTHING
        if name not in _ELSEWHERE:
            # The magic's own line is the first: lines keep their numbers.
            self._notebook.run(f"\n{cell}", self._notebook.name)
        return NOTHING

    def run_line_magic(self, name: str, line: str, *others: Any, **options: Any) -> Any:
        """Runs what stands behind ``%time``; everything else does nothing."""
        return self._notebook.value(line) if name in ("time", "prun") else NOTHING

    def run_cell(self, source: str, *others: Any, **options: Any) -> Any:
        """Runs a text as if it were a cell."""
        self._notebook.run(source, self._notebook.name)
        return NOTHING
