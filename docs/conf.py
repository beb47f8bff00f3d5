"""The documentation as a site, built by Sphinx: `make docs`.

The pages are plain Markdown and can be read without it. Navigation is taken from the lists of links in docs/index.md,
so that readers of the files and readers of the site see one order. The root of the repository is the source folder,
because pages link to the README, to results and to configs, and those links are checked as well.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

project = "gpg_vl"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "eval/README.md", "benchmarks/results/*.md"]
exclude_patterns = [".*", "build", "runs", "data", "gpg_vl", "tests", "notebooks"]

# A theme without fonts or scripts from elsewhere: the site can be read from a disk, without a network.
html_theme = "furo"
html_title = "gpg_vl"
html_copy_source = False
html_show_sphinx = False

# A link may name a heading, as on GitHub: page.md#heading. One that does not exist is a warning, and `make docs` fails on
# warnings.
myst_heading_anchors = 3

SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n)*)", re.MULTILINE)
PAGE = re.compile(r"^- \[([^\]]+)\]\(([\w./-]+)\.md\)", re.MULTILINE)
TO_INDEX = (
    '<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/index.html">'
    '<title>gpg_vl</title><a href="docs/index.html">gpg_vl</a>\n'
)


def navigation(index: str) -> str:
    """The lists of links of a page, each under its heading, as the hidden tables of contents that Sphinx wants."""
    blocks = []
    for caption, body in SECTION.findall(index):
        entries = [f"{title} <{page}>" for title, page in PAGE.findall(body)]
        if entries:
            lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```"]
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def add_navigation(app: Sphinx, page: str, text: list[str]) -> None:
    if page == root_doc:
        text[0] += "\n" + navigation(text[0]) + "\n"


def lead_to_index(app: Sphinx, error: Exception | None) -> None:
    """index.html at the top of the site, where a web server looks for it."""
    if error is None:
        Path(app.outdir, "index.html").write_text(TO_INDEX, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
    app.connect("build-finished", lead_to_index)
