"""The page is well-formed, says everything, asks for nothing from outside, and takes no text for markup."""

import json
from base64 import b64decode
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import pytest

from pyro_hypernet.output.page import FILE_NAME, render, report_from, write_report
from tests.output.records import CONTENT, EMPTY, NASTY, PICTURES, SVG

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page; an error where a tag is not closed in its place."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def check_self_contained(html):
    """The law of every report: one file, no script, no address, pictures inside and described, headings in order."""
    page = Page(html)
    assert not page.all("script")
    assert not page.all("link")
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1
    for image in page.all("img"):
        assert image["src"].startswith("data:image/svg+xml;base64,")
        assert image["alt"].strip()
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all("scope" in attributes for attributes in page.all("th"))
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identities)) == len(identities)
    labels = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert labels <= set(identities)
    return page


def test_the_page_is_one_file_that_says_everything():
    page = check_self_contained(render(CONTENT, ["guide.safetensors", NASTY]))
    nasty = " ".join(NASTY.split())
    for text in ("Refine it", "K-hat", "k-hat is 0.80.", "What to do:", "Use refine(model, *args).", "Train longer."):
        assert text in page.text
    for text in ("x: 3 × 2", "noise floor", "[0.5, 1.5]", "guide.safetensors", "1 May 2026", "2 of 12 bins"):
        assert text in page.text
    assert page.text.count(nasty) >= 9
    assert len([row for row in page.all("tr") if row.get("class") == "floor"]) == 1


def test_every_picture_is_there_with_its_words():
    page = check_self_contained(render(CONTENT))
    images = page.all("img")
    assert len(images) == len(PICTURES)
    assert all(b64decode(image["src"].partition("base64,")[2]).decode() == SVG for image in images)
    alts = [image["alt"] for image in images]
    assert alts[0] == f"Line plot of {NASTY} against {NASTY}: medians and 90 % bands of {NASTY}."
    assert alts[-1] == "k-hat of leaving out each of 3 data; 2 are above 0.7, the largest is inf."
    assert len(set(alts)) == len(alts)
    assert min(map(len, alts)) > 30


@pytest.mark.parametrize(
    ("source", "bad", "texts"),
    [
        ("guide", 2, ("corrected for the guide not being the posterior", "Draws of refine or nuts tell one from")),
        ("posterior", 2, ("PSIS-LOO as usual: the draws are taken for draws of the posterior.", "outliers.")),
        ("moved", 0, ("which they are not quite", "0 of 3 data are above 0.7. All together")),
    ],
)
def test_leaving_out_is_explained(source, bad, texts):
    loo = PICTURES["loo"] | {"source": source, "bad": bad}
    shown = Page(render(EMPTY | {"pictures": {"loo": loo}})).text
    assert all(text in shown for text in texts)
    assert ("there the figure is not to be believed" in shown) == (bad > 0)


@pytest.mark.parametrize(
    ("verdict", "shown", "level"),
    [
        ("use it", "Use it", "good"),
        ("refine it", "Refine it", "doubtful"),
        ("do not trust it", "Do not trust it", "bad"),
        ("", "No verdict", None),
    ],
)
def test_the_verdict_is_in_words_and_in_colour(verdict, shown, level):
    page = Page(render(CONTENT | {"verdict": verdict}))
    assert shown in page.text
    (section,) = [a for a in page.all("section") if "verdict" in a.get("class", "")]
    assert section["class"] == (f"verdict {level}" if level else "verdict")


def test_mended_draws_are_told_from_the_guide_that_was_judged():
    assert "mended" not in Page(render(CONTENT)).text
    text = Page(render(CONTENT | {"verdict": "use it"})).text
    assert "on which the verdict was “refine it”. The draws of this report have been mended since." in text


def test_what_is_not_there_leaves_no_heading():
    text = check_self_contained(render(EMPTY)).text
    for heading in ("What was looked at", "How good it is", "More pictures", "What was done", "Files beside"):
        assert heading not in text


@pytest.mark.parametrize("content", [CONTENT, EMPTY], ids=["full", "empty"])
def test_the_folder_alone_makes_the_page_again(tmp_path, content):
    page = write_report(content, tmp_path / "new")
    text = (tmp_path / "new" / FILE_NAME).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    before = page.read_bytes()
    page.unlink()
    assert report_from(tmp_path / "new").read_bytes() == before


def test_a_bad_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        report_from(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no report\.json"):
        report_from(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "is cut short or no JSON"),
        (lambda text: "[]", "must hold a report"),
        (lambda text: text.replace('"version": 2', '"version": 1'), "must hold a report.*'version': 2.*'version': 1"),
        (lambda text: text.replace('"title"', '"titel"'), "is damaged: 'title' is undefined"),
        (lambda text: text.replace('"level": "bad"', '"level": "worse"'), "is damaged: .*worse"),
        (lambda text: text.replace('"verdict": "refine it"', '"verdict": "maybe"'), "is damaged: .*maybe"),
        (lambda text: text.replace('"svg"', '"png"'), "is damaged: .*svg"),
        (lambda text: text.replace('"rows": [', '"rows": ["a", 3, '), "is damaged: .*"),
    ],
)
def test_a_bad_file_is_named(tmp_path, change, message):
    page = write_report(CONTENT, tmp_path)
    before = page.read_bytes()
    (tmp_path / FILE_NAME).write_text(change((tmp_path / FILE_NAME).read_text()))
    with pytest.raises(ValueError, match=message):
        report_from(tmp_path)
    assert page.read_bytes() == before


def test_templates_and_style_come_with_the_package():
    folder = resources.files("pyro_hypernet.output")
    assert all(folder.joinpath(name).is_file() for name in ("page.html", "pictures.html", "page.css"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_background(scheme):
    """Contrast of at least 4.5 by WCAG 2.1, section 1.4.3."""
    style = render(EMPTY)
    light = style[style.index(":root") :]
    block = light if scheme == "light" else light[light.index("(prefers-color-scheme: dark)") :]
    colors = dict(
        part.strip().split(": ") for part in block[block.index("--") : block.index("}")].split(";") if ":" in part
    )
    pairs = [("--ink", "--paper"), ("--soft", "--paper"), ("--soft", "--shade"), ("--link", "--paper")]
    pairs += [(f"--{level}", f"--{level}-back") for level in ("good", "doubtful", "bad")]
    pairs += [("--ink", f"--{level}-back") for level in ("good", "doubtful", "bad")]
    for ink, paper in pairs:
        bright, dim = sorted((_luminance(colors[ink]), _luminance(colors[paper])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, paper)


def _luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
