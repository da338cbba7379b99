"""Sphinx's settings; `build.py` lays the pages out and runs it."""

import docstrings  # site/docstrings.py, beside which build.py puts this file
from docutils import nodes

project = "Diffusion models, running"
author = "the authors of diffusion-course"
html_title = "diffusion-course"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
# A type in a signature may have several meanings: then it is no link.
suppress_warnings = ["config.cache", "ref.python"]
exclude_patterns = ["_build"]

# The committed outputs are shown; nothing is executed.
nb_execution_mode = "off"
nb_merge_streams = True
# "Show code" of folded cells; build.py puts the cell's own title in its place.
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 4

# MathJax lies beside the pages (build.py copies it), so formulas need no network.
mathjax_path = "mathjax/tex-chtml.js"
mathjax4_config = None
mathjax3_config = {"options": {"processHtmlClass": "math", "ignoreHtmlClass": ".*"}}
myst_update_mathjax = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_js_files = [("explorer.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1f5f8b",
        "color-brand-content": "#1f5f8b",
        "color-brand-visited": "#1f5f8b",
        "font-stack": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7fc1ea",
        "color-brand-content": "#7fc1ea",
        "color-brand-visited": "#7fc1ea",
    },
}
pygments_style = "default"
pygments_dark_style = "monokai"

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "ignore-module-all": True}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"


def _restructured(app, what, name, obj, options, lines):
    lines[:] = docstrings.restructured(lines)


def _skipped(app, what, name, obj, skip, options):
    """A named tuple's fields have no docstrings of their own: "Alias for field number 0"."""
    return True if (getattr(obj, "__doc__", "") or "").startswith("Alias for field") else None


def _whole_formulas(app, doctree):
    r"""A formula is given to MathJax as it stands: Sphinx's \begin{split} forbids \tag."""
    for node in doctree.findall(nodes.math_block):
        node["no-wrap"] = node["nowrap"] = True
        node.children = [nodes.Text(f"\\[{node.astext()}\\]")]


def setup(app):
    app.connect("autodoc-process-docstring", _restructured)
    app.connect("autodoc-skip-member", _skipped)
    app.connect("doctree-read", _whole_formulas)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
