"""The site: the pages of this folder, the README as its first page, and the API reference.

Build it as CI does, where a broken link or reference is an error:

    .venv/bin/python -m sphinx -W --keep-going docs docs/_build/html
"""

import functools
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]

project = "linseqrec"
author = copyright = "The linseqrec authors"
extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["reading_path.py", "_build", "jupyter_execute", "conf.py", "api/modules.rst"]
html_theme = "sphinx_book_theme"
html_title = project
nitpicky = True

# ---------------------------------------------------------------------------- pages
myst_heading_anchors = 3
# The tutorial is a script, which ruff checks and git shows line by line.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600

# Files of the repository that are pages of the site.
PAGES = {"README.md": "index", "RESULTS.md": "results", "CONTRIBUTING.md": "contributing"} | {
    f"results/{page.name}": f"results/{page.stem}" for page in (ROOT / "results").glob("*.md")
}
_LINK = re.compile(r"(?<!`)(!?\[[^\]]*\])\(([^)\s#]+)(#[^)\s]*)?\)")


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts files of the repository into their pages, and points links to where the site has them.

    Links are written for the repository. A link to a file that the site does not show becomes text.
    A link to a file that does not exist stays, and Sphinx reports it.
    """
    text, folder = source[0], ROOT / "docs"
    for name, page in PAGES.items():
        if docname == page:
            app.env.note_dependency(str(ROOT / name))
            text = (ROOT / name).read_text(encoding="utf-8") + "\n" + text
            folder = (ROOT / name).parent
    source[0] = _LINK.sub(functools.partial(_moved, folder), text)


def _moved(folder: Path, link: re.Match[str]) -> str:
    label, target, anchor = link.groups()
    path = (folder / target).resolve()
    if ":" in target or not path.exists():
        return link[0]
    name = path.relative_to(ROOT).as_posix()
    # Paths from the site's root: pages stand in several folders.
    if name in PAGES:
        return f"{label}(/{PAGES[name]}.md{anchor or ''})"
    if name.startswith("docs/"):
        return f"{label}(/{name.removeprefix('docs/')}{anchor or ''})"
    if label.startswith("!"):
        return f"{label}(/../{name})"
    return label[1:-1]


# ---------------------------------------------------------------------------- API reference
# Every module is found by walking the package: no list of modules can be out of date. A page holds
# the modules of one folder: a page a module would take twice as long to build.
apidoc_modules = [
    {
        "path": "../linseqrec",
        "destination": "api",
        "separate_modules": False,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
# A package's imports from its own modules are described there.
autodoc_default_options = {"ignore-module-all": True}
# Only machines with a GPU have these.
autodoc_mock_imports = ["triton", "jax_triton"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# A docstring's name of a class or function links to one of those that are called so.
suppress_warnings = ["ref.python"]
# Other packages have sites of their own. A type variable has no entry.
nitpick_ignore_regex = [(r"py:.*", r"(?!linseqrec\.).*"), (r"py:class", r"linseqrec\..*\.Tree")]

# Code, bold text, and characters that reStructuredText would read as markup.
_MARKUP = re.compile(r"`([^`]+)`(\w?)|(\*\*[^*]+\*\*)|([\\*|]|_(?!\w))")
# A "Returns:" section whose values have names: "NAME: what it is", one below another.
_RETURNS = re.compile(r"(?<=Returns:\n)((?: +.+\n?)+)")


def read_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Makes reStructuredText of a docstring in Markdown: code, indented blocks, named results."""
    del app, what, name, obj, options
    made: list[str] = []
    code: int | None = None
    before = 0
    for block in re.split(r"\n\s*\n", _RETURNS.sub(_as_list, "\n".join(lines))):
        indent = _indent(block)
        if code is None or indent < code:
            code = indent if made and indent - before >= 4 else None
            if code is not None:
                made.append(" " * (code - 4) + "::")
        if code is None:
            before = _indent(block.split("\n")[-1])
            block = _MARKUP.sub(_escaped, block)
        made.append(block)
    lines[:] = "\n\n".join(made).split("\n")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _escaped(found: re.Match[str]) -> str:
    span, after, bold, character = found.groups()
    if span:
        return f"``{span}``" + (f"\\ {after}" if after else "")
    return bold or f"\\{character}"


def _as_list(section: re.Match[str]) -> str:
    indent = " " * _indent(section[0])
    named = re.compile(rf"^{indent}(?=\w+: )", re.MULTILINE)
    if len(named.findall(section[0])) < 2:
        return section[0]
    return f"{indent}A tuple of\n\n" + named.sub(f"{indent}- ", section[0])


def skip_field(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any) -> bool:
    """Leaves out the fields of named tuples: their class describes them."""
    del app, what, name, options
    return skip or str(getattr(obj, "__doc__", "")).startswith("Alias for field number")


def shorten_types(app: Sphinx, document: nodes.document) -> None:
    """Calls JAX's arrays what the code calls them."""
    del app
    for text in list(document.findall(nodes.Text)):
        if "jaxlib._jax." in text:
            text.parent.replace(text, nodes.Text(text.replace("jaxlib._jax.", "")))


def setup(app: Sphinx) -> None:
    """Registers the functions above."""
    app.connect("source-read", read_page)
    # Before napoleon (500), which turns the sections into fields.
    app.connect("autodoc-process-docstring", read_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("doctree-read", shorten_types)
