"""The study's page in a browser: it fetches nothing, all of it opens, nothing overflows, and every word is legible.

Needs chromium (Debian: apt-get install chromium). Without it these tests are skipped, unless MUXFER_REQUIRE_BROWSER=1.
MUXFER_SCREENSHOTS=FOLDER keeps a picture of each page.
"""

import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from muxfer.analysis.proxy_size import parameters_times_samples, proxy_front
from muxfer.analysis.transferability import judge
from muxfer.report.study_page import write
from tests.synthetic import check_of, front_study, isoflop_study, judged, make_search, points_of, real_study

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = os.environ.get("MUXFER_REQUIRE_BROWSER") == "1"
if not CHROMIUM and not REQUIRED:
    pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)
if not REQUIRED:
    pytest.importorskip("playwright.sync_api", reason="no playwright: pip install muxfer[dev]")

NAMES = ("grid", "search", "isoflop")
WIDTHS = (360, 800, 1400)

UNFOLD = "document.querySelectorAll('details').forEach(e => e.open = true)"

LEGIBLE = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = text => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92
    : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => { for (let e = element; e; e = e.parentElement) {
    const color = rgba(getComputedStyle(e).backgroundColor); if (color[3] > 250) return color; } };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), drawn = element instanceof SVGElement;
    const [a, b] = [luminance(rgba(drawn ? style.fill : style.color)), luminance(ground(element))];
    found.push([element.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}"""
"""Every visible word with its contrast against its background, both as the browser computed them."""

OVERFLOWING = """() => {
  const scrolls = e => e.closest(".scroll, nav");
  const wide = [...document.querySelectorAll("body *")].filter(e => !(e instanceof SVGElement) && !scrolls(e)
    && e.checkVisibility() && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline");
  const outside = [...document.querySelectorAll("main *")].filter(e => !scrolls(e) && e.checkVisibility()
    && e.getBoundingClientRect().right > innerWidth + 1);
  return [...wide, ...outside].map(e => e.tagName + " " + e.textContent.slice(0, 40));
}"""
"""Elements wider than their box or outside the window, without those that scroll inside their own box."""

OVERLAPPING = """() => {
  const hit = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  const found = [];
  const groups = [[...document.querySelectorAll("nav, main")], [...document.querySelectorAll(".tiles > div")],
    [...document.querySelectorAll(".cards > div")], [...document.querySelectorAll("main > *")],
    ...[...document.querySelectorAll("svg")].map(svg => [...svg.querySelectorAll("text")])];
  for (const group of groups) {
    const boxes = group.filter(e => e.checkVisibility()).map(e => [e.textContent.trim(), e.getBoundingClientRect()]);
    boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      if (hit(a, b)) found.push(one.slice(0, 30) + " | " + other.slice(0, 30)); }));
  }
  return found;
}"""
"""Pairs of parts of the page, or of words in one drawing, that cover each other."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind of study; the records of one were really measured."""
    folder = tmp_path_factory.mktemp("studies of mine")
    records, points = real_study()
    isoflop, fit = isoflop_study()
    search = make_search()
    shares = {"base_lr": 0.7, "gradient_clip": 0.25, "warmup_steps": 0.04, "sampler": 0.01}
    everything = {
        "description": "The base learning rate over widths.",
        "points": points,
        "wall_seconds": 1830.0,
        "environment": {"python": "3.11", "torch": "2.15"},
        "command": "muxfer sweep lr-width 'search.width=[32,64,128,256]' search.seeds=3",
        "plan": {"proxy_flops": 3e13, "target_flops": 4e14, "tuning_ratio": 0.055, "tuning_ratio_flops": 0.07},
        "check": check_of(folder / "check"),
        "front": proxy_front(front_study(), hp="base_lr", cost=parameters_times_samples(64)),
    }
    return {
        "grid": write("lr-width", folder / "grid", records, judged(records), context=everything),
        "search": write(
            "mmdit-random",
            folder / "search",
            search,
            judged(search),
            context={"importances": shares, "points": points_of(search)},
        ),
        "isoflop": write(
            "isoflop", folder / "isoflop", isoflop, judge(isoflop, axis="flops", hp="width"), context={"fit": fit}
        ),
    }


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "no chromium, and MUXFER_REQUIRE_BROWSER=1: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture
def opened(browser, pages):
    """Opens a page by name. At the end of the test the browser must have printed nothing and fetched nothing else."""
    messages, requests, contexts = [], [], []

    def open_page(name):
        context = browser.new_context(color_scheme="light", viewport={"width": 1400, "height": 900})
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(pages[name].as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []
    assert {urlsplit(url).scheme for url in requests} <= {"file", "data"}
    assert {Path(unquote(urlsplit(url).path)).suffix for url in requests} <= {".html", ".png", ".svg"}


@pytest.mark.parametrize("name", NAMES)
def test_contents_lead_to_their_sections_and_folds_open(opened, name):
    tab = opened(name)
    links = tab.locator("nav a").all()
    assert len(links) == tab.locator("section").count() + 1
    for link in links:
        link.click()
        anchor = link.get_attribute("href")[1:]
        assert tab.evaluate("location.hash") == f"#{anchor}"
        tab.wait_for_function(
            "anchor => { const box = document.getElementById(anchor).getBoundingClientRect();"
            " return box.top < innerHeight - 20 && box.bottom > 0; }",
            arg=anchor,
        )
    folds = tab.locator("details").all()
    assert folds
    for fold in folds:
        was_open = fold.evaluate("e => e.open")
        for expected in (not was_open, was_open, True)[: 2 if was_open else 3]:
            if fold.evaluate("e => e.open") != expected:
                fold.locator("summary").click()
            assert fold.evaluate("e => e.open") == expected
            assert fold.locator("tr").first.is_visible() == expected
    words = tab.locator("#every-trial").inner_text()
    assert words.count("\n") > 20


@pytest.mark.parametrize("name", NAMES)
def test_every_drawing_links_to_its_png_svg_and_csv(opened, pages, name):
    tab = opened(name)
    figures = tab.locator("figure").all()
    assert len(figures) == len([section for section in tab.locator("svg").all() if section.is_visible()])
    for figure in figures:
        links = {link.inner_text(): link.get_attribute("href") for link in figure.locator("a").all()}
        wanted = {"PNG", "SVG"} if "coordinate-check.png" in links.values() else {"PNG", "SVG", "CSV"}
        assert wanted <= set(links)
        for link in links.values():
            file = pages[name].parent / unquote(link)
            if file.suffix == ".png":
                with Image.open(file) as image:
                    assert min(image.size) > 100
            elif file.suffix == ".svg":
                assert ElementTree.parse(file).getroot().tag.endswith("svg")
            else:
                header, *rows = file.read_text().splitlines()
                assert len(rows) >= 1
                assert "," in header
    first = tab.locator("figure a", has_text="SVG").first
    first.click()
    tab.wait_for_url("**/*.svg")
    assert tab.locator("svg text").count() > 3
    tab.go_back()
    assert tab.locator("h1").is_visible()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overflows_or_overlaps_at_any_width(opened, name):
    tab = opened(name)
    tab.evaluate(UNFOLD)
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(OVERFLOWING) == []
        assert tab.evaluate(OVERLAPPING) == []
        screenshot(tab, f"{name}-{width}")


@pytest.mark.parametrize("name", NAMES)
def test_every_word_is_legible_in_light_and_dark(opened, name, tmp_path):
    tab = opened(name)
    tab.evaluate(UNFOLD)
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        found = tab.evaluate(LEGIBLE)
        assert len(found) > 100
        assert [(words, ratio) for words, ratio in found if ratio < 4.5] == []
        tab.screenshot(path=tmp_path / "seen.png")
        with Image.open(tmp_path / "seen.png") as image:
            pixels = np.asarray(image.convert("L"))
        assert (np.median(pixels) > 200) == (scheme == "light")
        screenshot(tab, f"{name}-{scheme}")


def screenshot(tab, name):
    if folder := os.environ.get("MUXFER_SCREENSHOTS"):
        tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_printed_page_is_light_and_unfolded_without_contents(opened):
    tab = opened("grid")
    tab.emulate_media(media="print", color_scheme="dark")
    assert not tab.locator("nav").is_visible()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(254, 254, 254)"
    assert tab.locator("#every-trial td").first.bounding_box()["height"] > 5
