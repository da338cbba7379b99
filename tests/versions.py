"""Which tests other versions of JAX and its companions could break.

A file of tests depends on versions if it, or a file of the package that it imports, uses Flax,
Optax, orbax, ipywidgets or datasets, or a part of JAX beyond the stable core. The rest is run with
other versions as well, where the notebooks are.
"""

import ast
from functools import cache
from pathlib import Path

from test_imports import PACKAGE, imports

# Sphinx builds the site and MathJax sets the slides' formulas: the environment with Colab's
# versions has neither.
OURS = {"test_site.py", "test_slides.py"}
COMPANIONS = {"flax", "optax", "orbax", "ipywidgets", "datasets"}
# What code written for any JAX of the last years uses.
STABLE = {
    *("Array", "numpy", "random", "nn", "lax", "tree", "jit", "vmap", "grad", "value_and_grad"),
    *("jvp", "vjp", "jacfwd", "jacrev", "eval_shape", "ShapeDtypeStruct", "block_until_ready"),
    *("hessian", "scipy", "image", "debug", "effects_barrier", "disable_jit"),
}


def depends_on_versions(test: Path) -> bool:
    """Whether a file of tests must run on other versions of the libraries too."""
    if test.name in OURS:
        return False
    files = [test, *(_file(name) for name in imports(test))]
    return any(_uses_more_than_the_core(file) for file in files)


def _file(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _uses_more_than_the_core(file: Path) -> bool:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"] if node.value.id == "jax" else []
        else:
            continue
        for name in names:
            root, _, rest = name.partition(".")
            if root in COMPANIONS or (root == "jax" and rest and _part(rest) not in STABLE):
                return True
    return False


def _part(name: str) -> str:
    return name.partition(".")[0]
