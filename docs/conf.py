"""How Sphinx builds the site: `make docs`."""

import base64
import re
from pathlib import Path

import nbformat
from sphinx.application import Sphinx

project = "pyro_hypernet"
author = "the pyro_hypernet authors"
copyright = "2026, the pyro_hypernet authors"

extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["notebooks/README.md", "**/.ipynb_checkpoints"]
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"

autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = "pyro_hypernet"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_use_index = html_domain_indices = False  # the API is by topic, and there is a search
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
# The other pages of a folder beside its pages; the top level stands in the bar above.
html_sidebars = {path.stem: [] for path in Path(__file__).parent.glob("*.md")}

_OF_A_DOCTEST = re.compile(r"^\s*>>>")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)| ?\{cite:.\}`\w+`")


def _as_restructured_text(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """The package's docstrings are plain text in which backticks hold code: to reST, stars and bars mean nothing."""
    in_example = in_code = False
    for number, line in enumerate(lines):
        in_example = bool(_OF_A_DOCTEST.match(line)) or (in_example and bool(line.strip()))
        if in_example:
            continue
        parts = line.split("`")
        for place in range(in_code, len(parts), 2):
            escaped = re.sub(r"([*|]|_(?=\W|$))", r"\\\1", parts[place])
            parts[place] = r"\ " + escaped if place > 0 and re.match(r"\w", escaped) else escaped  # `param`s
        lines[number] = "``".join(parts)
        in_code ^= len(parts) % 2 == 0  # code may go on in the next line


def _hand_out_results(app: Sphinx, name: str, source: list[str]) -> None:
    """Result files are no pages: links to them, which work where the sources are read, become downloads."""
    source[0] = source[0].replace("](../benchmarks/results/", "](path:../benchmarks/results/")


def _draw_thumbnails(app: Sphinx) -> None:
    """The picture on every tutorial's card: one of its own, that of the cell marked as `thumbnail`, or the last."""
    folder = Path(app.srcdir).parent / "build" / "thumbnails"
    folder.mkdir(parents=True, exist_ok=True)
    for path in Path(app.srcdir, "notebooks").glob("*.ipynb"):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        cells.sort(key=lambda cell: cell.metadata.get("thumbnail", False))  # as they were, but for one put last
        data = [output.get("data", {}) for cell in cells for output in cell.outputs]
        picture = [each["image/png"] for each in data if "image/png" in each][-1]
        (folder / path.name).with_suffix(".png").write_bytes(base64.b64decode(picture))


def _write_llms(app: Sphinx, error: Exception | None) -> None:
    """`llms.txt`: every page with its first paragraph, for programs that read."""
    if error is not None or app.builder.name != "html":
        return
    lines = ["# pyro_hypernet", ""]
    for name in ["index", *sorted(app.env.found_docs - {"index"})]:
        source = Path(app.env.doc2path(name))
        if source.suffix == ".md":
            paragraphs = re.sub(r"^(:::|```).*?^(:::|```)$", "", source.read_text(), flags=re.S | re.M).split("\n\n")
            plain = [p.strip() for p in paragraphs if p.strip() and p.strip()[0] not in "#|{!"]
            first = _LINK.sub(r"\1", " ".join(next(iter(plain), "").split()))
            lines.append(f"- [{app.env.titles[name].astext()}]({name}.html): {first}")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines) + "\n")


def setup(app: Sphinx) -> None:
    """Connects the functions above."""
    app.connect("builder-inited", _draw_thumbnails)
    app.connect("source-read", _hand_out_results)
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)
    app.connect("build-finished", _write_llms)
