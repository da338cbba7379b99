"""The cells of a notebook that one of its cells needs, so that a test can run it alone.

A cell needs another one above it that binds, or changes in place, a name that it uses. This is
read from the text, never from a run; where the text leaves it open, a cell is kept.
"""

import ast
import builtins
import re
from pathlib import Path

import nbformat

# The library's widgets that a reader moves; `live` is an explorer too.
WIDGETS = ("explorer", "live", "mask_editor", "animation")
_WIDGET = re.compile(rf"\bwidgets\.({'|'.join(WIDGETS)})\(")


def explorers(notebook: Path) -> tuple[list[str], list[str]]:
    """The sources of the cells that a notebook's widgets need, and what widgets these are.

    The cell that calls `setup` is among them: a kernel then finds what the notebook has compiled.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    kept = {number for number, source in enumerate(sources) if "course = setup(" in source}
    widgets = []
    for number, source in enumerate(sources):
        if found := _WIDGET.findall(source):
            kept |= set(needed(sources, number))
            widgets += ["explorer" if name == "live" else name for name in found]
    return [sources[number] for number in sorted(kept)], widgets


def needed(sources: list[str], wanted: int) -> list[int]:
    """Numbers of the cells, in order, that cell number `wanted` needs, itself included."""
    cells = [_Names(source) for source in sources[: wanted + 1]]
    kept, open_ = set(), [(wanted, wanted)]
    while open_:
        # Names inside a function may be bound below it, up to the cell in which it is called.
        number, end = open_.pop()
        if number in kept:
            continue
        kept.add(number)
        cell = cells[number]
        for name in cell.used - cell.bound_first:
            for other in _sources_of(name, cells, number):
                open_.append((other, end))
        for name in cell.used_inside:
            for other in _sources_of(name, cells, end + 1):
                open_.append((other, end))
    return sorted(kept)


def _sources_of(name: str, cells: list["_Names"], before: int) -> list[int]:
    """The last cell that binds a name, and those after it that change what it is bound to."""
    found = []
    for number in range(before - 1, -1, -1):
        if name in cells[number].imported:  # calling a module's function does not change it
            return [number]
        if name in cells[number].bound:
            return [*found, number]
        if name in cells[number].changed:
            found.append(number)
    return found


class _Names(ast.NodeVisitor):
    """What a cell binds, changes in place and uses, at its top level and inside functions.

    Attributes:
      bound: names that it binds.
      imported: those among them that are modules, or come from one.
      bound_first: those among them whose first appearance is the binding.
      changed: names on whose objects a method is called as a statement, or parts are assigned.
      used: names that it reads at its top level.
      used_inside: names that are read inside a function, free there.
    """

    def __init__(self, source: str):
        self.bound, self.changed, self.used, self.used_inside = set(), set(), set(), set()
        self.bound_first, self.imported = set(), set()
        lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
        if lines and not any(line.strip() and not line.lstrip().startswith("#") for line in lines):
            return
        for statement in ast.parse("\n".join(lines)).body:
            self.visit(statement)
        self.used -= set(dir(builtins))
        self.used_inside -= set(dir(builtins))

    def _bind(self, name: str) -> None:
        if name not in self.used:
            self.bound_first.add(name)
        self.bound.add(name)

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load):
            self.used.add(node.id)
        else:
            self._bind(node.id)

    def visit_Import(self, node):
        for alias in node.names:
            name = (alias.asname or alias.name).partition(".")[0]
            self._bind(name)
            self.imported.add(name)

    visit_ImportFrom = visit_Import

    def visit_Assign(self, node):  # the value is read before the targets are bound
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AugAssign(self, node):
        if isinstance(node.target, ast.Name):
            self.used.add(node.target.id)  # it is read before it is bound
        self._change(node.target)
        self.generic_visit(node)

    def _comprehension(self, node):
        # Its own variables are bound inside only; what it reads is read here.
        own = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        for name in ast.walk(node):
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load) and name.id not in own:
                self.used.add(name.id)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_FunctionDef(self, node):
        defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        for part in [*node.decorator_list, *defaults]:
            self.visit(part)
        self._bind(node.name)
        self._function(node, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        for part in [*node.decorator_list, *node.bases]:
            self.visit(part)
        self._bind(node.name)
        self._function(node, node.body)

    def visit_Lambda(self, node):
        self._function(node, [node.body])

    def _function(self, node, body):
        local = {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
        names = [n for part in body for n in ast.walk(part) if isinstance(n, ast.Name)]
        local |= {name.id for name in names if not isinstance(name.ctx, ast.Load)}
        self.used_inside |= {name.id for name in names} - local

    def visit_Expr(self, node):
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            self._change(call.func)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        if not isinstance(node.ctx, ast.Load):
            self._change(node)
        self.generic_visit(node)

    def visit_Subscript(self, node):
        if not isinstance(node.ctx, ast.Load):
            self._change(node)
        self.generic_visit(node)

    def _change(self, node) -> None:
        while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
            node = node.func if isinstance(node, ast.Call) else node.value
        if isinstance(node, ast.Name):
            self.changed.add(node.id)
