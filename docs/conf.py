"""Sphinx's configuration. Nothing is loaded from the network: formulas become MathML, which browsers draw themselves."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

import fastloss
from docs.generate import exists, home, offered

project = "fastloss"
version = release = fastloss.__version__
copyright = "the fastloss authors"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
html_theme = "furo"
html_title = f"fastloss {release}"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
napoleon_custom_sections = ["Shape", "Shapes", "Source", "Memory", "Errors"]
default_role = "literal"
myst_heading_anchors = 3
# Other packages' pages are not looked up, since that needs the network.
nitpick_ignore_regex = [("py:.*", r"(?!fastloss\b).*")]


def _mathml(text: str, block: bool, node: nodes.Node) -> str:
    text = re.sub(r"\\text\{[^}]*\}", lambda found: found[0].replace(r"\_", "_"), text.replace(r"\dots", r"\ldots"))
    try:
        return tex2mathml(text, as_block=block)
    except Exception as error:
        logging.getLogger(__name__).warning("formula %r has no MathML: %s", text, error, location=node)
        return f"<code>{text}</code>"


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), False, node))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{_mathml(node.astext(), True, node)}</div>')
    raise nodes.SkipNode


def _as_meant(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """What reStructuredText would take for something else: errors that are a sentence ("As ..."), and a letter that starts no list."""
    text = re.sub(r"^(\s+(?:\w+, )*\w+,)\n\s+((?:\w+, )*\w+: )", r"\1 \2", "\n".join(lines), flags=re.MULTILINE)  # names over two lines
    lines[:] = text.split("\n")
    for k, line in enumerate(lines):
        if line == "Raises:" and not re.match(r"\s+[A-Z]\w+(?:, \w+)*: ", lines[k + 1]):
            lines[k] = "Errors:"
        lines[k] = re.sub(r"^(\s+[\w, ]+: )([A-Z])\.$", r"\1``\2``.", lines[k])


def _elsewhere(app: Sphinx, env: BuildEnvironment, node: nodes.Element, shown: nodes.Element) -> nodes.Element | None:
    """A reference by another path that something is offered by, or to something internal, which has no page but must exist."""
    target = node["reftarget"]
    if target in offered() and home(target) != target:
        return env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, "obj", home(target), node, shown)
    return shown if target not in offered() and target.startswith("fastloss.") and exists(target) else None


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", _elsewhere)
    app.connect("autodoc-process-docstring", _as_meant, priority=400)  # before napoleon, at 500
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
