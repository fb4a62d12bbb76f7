"""The site as it is built, in a browser: no error, no broken link, no page wider than the window, search that finds."""

import json
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from tests.docs.pages import FOLDER
from tests.output.browser import Browser, find_chromium

# Sphinx itself is not imported to find out: BoTorch leaves a folder of that name beside its own, which imports as an
# empty package where Sphinx is missing, and then SciPy, which asks whether Sphinx is loaded, fails at its import.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("myst_nb") is None, reason="the extra docs is not installed"),
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium"),
]

WIDTHS = (1280, 390)
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
WIDE = """[...document.querySelectorAll('.bd-article table')].filter(t => {
    const box = t.closest('.pst-scrollable-table-container') || t;
    return box.getBoundingClientRect().right > window.innerWidth + 1;}).length"""
LINKS = "[...document.querySelectorAll('a[href]')].map(a => a.href)"
UNSEEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with warnings as errors."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(FOLDER), str(out)]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def pages(site):
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_in_a_browser(site, width):
    ids, links = {}, {}
    for path in pages(site):
        name = path.relative_to(site).as_posix()
        with Browser(path, width=width) as browser:
            assert browser.evaluate(OVERFLOW) <= 0, f"{name} is wider than {width} pixels"
            assert browser.evaluate(WIDE) == 0, f"a table of {name} is wider than {width} pixels"
            assert browser.evaluate(UNSEEN) == [], name
            errors = [text for text in browser.messages if json.loads(text).get("type") != "log"]
            assert not errors, f"{name}: {errors}"
            links[name] = browser.evaluate(LINKS)
        ids[path.as_uri()] = set(re.findall(r'\bid="([^"]+)"', path.read_text()))
    for name, targets in links.items():
        for target in targets:
            url, place = urldefrag(urljoin((site / name).as_uri(), target))
            if url.startswith("file:"):
                assert not place or unquote(place) in ids.get(url, {unquote(place)}), f"{name}: {target}"
                assert Path(unquote(url.removeprefix("file://"))).exists(), f"{name}: {target}"


def test_search_finds_khat(site):
    with Browser(site / "search.html", width=1280) as browser:
        browser.evaluate("Search.performSearch('k-hat')")
        for _ in range(100):
            found = browser.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.href)")
            if any("did_it_work" in link for link in found):
                return
            time.sleep(0.1)
    pytest.fail(f"found {found}")
