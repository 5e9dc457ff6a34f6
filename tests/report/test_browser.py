"""The three pages in a real browser: nothing is loaded, everything fits, everything can be reached and is named."""

import functools
import http.server
import itertools
import json
import re
import threading

import chromium
import diagnosis_file
import pytest
from bench_folder import METHODS, experiment, make_bench

from crossdistill.report import write_diagnosis, write_league, write_report

pytestmark = pytest.mark.skipif(
    chromium.found() is None, reason="needs Chromium or Chrome (or CROSSDISTILL_BROWSER with its path)"
)
PAGES = ("run", "league", "diagnosis")
DESK, PHONE = 1280, 390
ODD = "<b onclick='x()'>&amp; a_name_that_is_long_and_odd"

FIT = """(() => {
  const wide = innerWidth, out = [];
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    const inside = e.closest(".scroll, .chooser, .skip, pre, svg");
    if (box.width && box.right > wide + 1 && !inside) out.push(e.outerHTML.slice(0, 80));
  }
  const root = document.scrollingElement;
  return {page: root.scrollWidth, window: wide, out};
})()"""
OPEN = 'for (const d of document.querySelectorAll("details")) d.open = true;'
REACHABLE = """(() => {
  const radio = new Set();
  window.number = (e) => e.dataset.number ??= String(window.count = (window.count ?? 0) + 1);
  return [...document.querySelectorAll("a[href], button, summary, input, [tabindex='0']")].filter((e) => {
    if (!e.checkVisibility({visibilityProperty: true})) return false;
    if (e.type !== "radio") return true;
    return e.checked;  // arrows go on from there
  }).map((e) => [number(e), e.outerHTML.slice(0, 90)]);
})()"""
FOCUSED = """(() => {
  const e = document.activeElement;
  if (e === document.body || e === null) return null;
  const seen = (s) => s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 1;
  const of = [e, e.nextElementSibling].filter(Boolean).map((o) => getComputedStyle(o));
  return [number(e), seen(of[0]) || (e.type === "radio" && seen(of[1]))];
})()"""
SCROLLERS = """[...document.querySelectorAll("body *")].filter((e) => {
  const s = getComputedStyle(e);
  return /auto|scroll/.test(s.overflowX) && e.scrollWidth > e.clientWidth + 1 && e.checkVisibility()
    && e.tabIndex < 0 && !e.querySelector("a, button, input");
}).map((e) => e.outerHTML.slice(0, 80))"""
STRUCTURE = """(() => {
  const all = (s) => [...document.querySelectorAll(s)];
  const by = (e) => document.getElementById(e.getAttribute("aria-labelledby"))?.textContent;
  const name = (e) => e.getAttribute("aria-label") || by(e), drawn = (e) => e.getAttribute("role") === "img" && name(e);
  return {
    lang: document.documentElement.lang, title: document.title, h1: all("h1").length,
    levels: all("h1, h2, h3, h4").map((e) => Number(e.tagName[1])),
    sections: all("section").filter((e) => !name(e)).map((e) => e.id),
    headers: all("th").filter((e) => !e.scope).map((e) => e.outerHTML.slice(0, 80)),
    bare: all("table").filter((e) => !e.querySelector("th")).length,
    pictures: all("svg").filter((e) => e.getAttribute("aria-hidden") !== "true" && !drawn(e)).length
      + all("img:not([alt])").length,
    twice: all("[id]").map((e) => e.id).filter((id, i, ids) => ids.indexOf(id) !== i),
  };
})()"""
CONTRAST = """(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || e.closest("svg, script, style, .skip") || !e.checkVisibility({visibilityProperty: true})) continue;
    let below = e, ground = [0, 0, 0, 0];
    for (; below; below = below.parentElement)
      if ((ground = parse(getComputedStyle(below).backgroundColor)).length === 3 || ground[3] === 1) break;
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    const [x, y] = [light(parse(style.color)), light(below ? ground : [255, 255, 255])];
    const ratio = (Math.max(x, y) + .05) / (Math.min(x, y) + .05);
    const large = size >= 24 || (size >= 18.6 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) low.push([ratio.toFixed(2), e.outerHTML.slice(0, 90)]);
  }
  return low;
})()"""
SORTED = """(column) => {
  const table = document.querySelector("table:has(th button)");
  return {sort: table.tHead.rows[0].cells[column].getAttribute("aria-sort"),
          values: [...table.tBodies[0].rows].map((r) => r.cells[column].dataset.v)};
}"""


def write_run(folder, make_run, evidence_arrays):
    return write_report(make_run(folder, evidence=evidence_arrays(points=40, queries=2, depth=3)))


def write_suite(folder):
    folder.mkdir()
    few = experiment("a-x-y", data="a", pairs=100, limit=100)
    names = {name: experiment(name, data=name[0]) for name in ("a-x-y", "a-y-x", "b-x-y")}
    methods = {name: METHODS[name] for name in ("similarity", "rkd", "raw_features", "teacher")}
    make_bench(folder, {**methods, ODD: ("baseline", 0.02)}, {**names, "a-x-y-100": few}, seeds=2, items=60)
    return write_league(folder)


def write_found(folder):
    folder.mkdir()
    (folder / "diagnosis.json").write_text(json.dumps(diagnosis_file.whole()), encoding="utf-8")
    return write_diagnosis(folder)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, make_run, evidence_arrays):
    place = tmp_path_factory.mktemp("pages")
    return {
        "run": write_run(place / "run", make_run, evidence_arrays),
        "league": write_suite(place / "league"),
        "diagnosis": write_found(place / "diagnosis"),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def tab(browser, pages, request):
    opened = browser.open(pages[request.param], width=DESK)
    yield opened
    opened.close()


each_page = pytest.mark.parametrize("tab", PAGES, indirect=True)


@each_page
def test_it_fits_the_screen_and_says_nothing_to_the_console(tab):
    for width in (DESK, PHONE):
        tab.resize(width)
        for opened in (False, True):
            if opened:
                tab.js(OPEN)
            found = tab.js(FIT)
            assert found["page"] <= found["window"] == width
            assert found["out"] == []
        assert tab.js(SCROLLERS) == []
    assert tab.complaints() == []


@each_page
def test_nothing_is_asked_of_the_network(tab):
    asked = {event["request"]["url"].partition(",")[0] for event in tab.seen("Network.requestWillBeSent")}
    assert {address for address in asked if not address.startswith("data:image/")} == {tab.address}


class Quiet(http.server.BaseHTTPRequestHandler):
    def __init__(self, hits, *arguments):
        self.hits = hits
        super().__init__(*arguments)

    def do_GET(self):
        self.hits.append(self.path)
        self.send_error(404)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@each_page
def test_what_is_smuggled_in_neither_runs_nor_loads(tab):
    hits = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, hits))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}"
    try:
        smuggle = f"""(async () => {{
          window.ran = [];
          const refused = [];
          addEventListener("securitypolicyviolation", (e) => refused.push(e.effectiveDirective));
          const add = (name, more) => document.body.append(Object.assign(document.createElement(name), more));
          add("script", {{src: "{home}/script.js"}});
          add("script", {{textContent: "ran.push('inline')"}});
          add("img", {{src: "{home}/picture.png"}});
          add("link", {{rel: "stylesheet", href: "{home}/style.css"}});
          add("iframe", {{src: "{home}/frame"}});
          add("object", {{data: "{home}/object"}});
          add("video", {{src: "{home}/video"}});
          add("style", {{textContent: "body {{ background: url({home}/ground.png) }}"}});
          document.body.insertAdjacentHTML("beforeend", `<b id="trap" onclick="ran.push('click')">x</b>`);
          document.getElementById("trap").click();
          const form = Object.assign(document.createElement("form"), {{action: "{home}/form", method: "post"}});
          document.body.append(form);
          form.submit();
          const fetched = await fetch("{home}/fetch").then(() => "came", () => "refused");
          await new Promise((done) => setTimeout(done, 200));
          return {{ran, fetched, refused: [...new Set(refused)].sort()}};
        }})()"""
        found = tab.js(smuggle)
    finally:
        server.shutdown()
        server.server_close()
    assert hits == []
    assert tab.js("location.href") == tab.address  # a form leads nowhere
    assert found["ran"] == []
    assert found["fetched"] == "refused"
    kinds = {"connect-src", "frame-src", "img-src", "media-src", "script-src-attr",
             "script-src-elem", "style-src-elem"}  # fmt: skip
    assert kinds <= set(found["refused"])


@each_page
def test_every_control_is_reached_by_tab_and_its_focus_is_seen(tab):
    tab.js(OPEN)
    wanted = dict(tab.js(REACHABLE))
    reached = {}
    for _ in range(2 * len(wanted) + 10):
        tab.press("Tab")
        found = tab.js(FOCUSED)
        if found is None or found[0] in reached:
            break
        reached[found[0]] = found[1]
    assert [text for number, text in wanted.items() if number not in reached] == []
    assert [wanted.get(number, number) for number, seen in reached.items() if not seen] == []
    assert len(wanted) > 10


@pytest.mark.parametrize("tab", ["run", "league"], indirect=True)
def test_tables_are_sorted_from_the_keyboard(tab):
    before = tab.js(f"({SORTED})(0)")
    assert before["sort"] is None
    tab.js('document.querySelector("th button").focus()')
    orders = []
    for key, text, way in (("Enter", "\r", "descending"), (" ", " ", "ascending")):
        tab.press(key, text)
        found = tab.js(f"({SORTED})(0)")
        assert found["sort"] == way
        assert (
            tab.js('document.querySelectorAll("table:has(th button)")[0].querySelectorAll("[aria-sort]").length') == 1
        )
        orders.append(found["values"])
    assert orders[0] == orders[1][::-1] != before["values"]
    assert sorted(orders[0]) == sorted(before["values"])


@pytest.mark.parametrize("tab", ["league"], indirect=True)
def test_the_view_is_chosen_from_the_keyboard(tab):
    shown = '[...document.querySelectorAll(".view")].filter((v) => v.checkVisibility()).map((v) => v.dataset.view)'
    tab.js('document.querySelector(".chooser fieldset:not([hidden]) input:checked").focus()')
    before = tab.js(shown)
    tab.press("ArrowRight")
    after = tab.js(shown)
    assert before
    assert after
    assert set(before) != set(after)


@each_page
def test_a_screen_reader_finds_its_way(tab):
    found = tab.js(STRUCTURE)
    assert found["lang"] == "en"
    assert re.search(r"\w.* · crossdistill report", found["title"])
    assert found["h1"] == 1
    levels = found["levels"]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for part in ("sections", "headers", "twice"):
        assert found[part] == []
    assert found["bare"] == found["pictures"] == 0
    tree = tab.tree()
    roles = [role for role, _, _ in tree]
    for role in ("banner", "main", "contentinfo", "navigation"):
        assert roles.count(role) == 1, role
    named = ("link", "button", "image", "radio", "region", "navigation", "form", "heading", "columnheader", "rowheader")
    assert [role for role, name, _ in tree if role in named and not name.strip()] == []
    assert sum(role == "region" for role in roles) > 5


@each_page
def test_it_can_be_read_in_the_dark_and_in_the_light(tab):
    tab.js(OPEN)
    grounds = []
    for scheme in ("light", "dark"):
        tab.media(prefers_color_scheme=scheme)
        grounds.append(tab.js("getComputedStyle(document.body).backgroundColor"))
        assert tab.js(CONTRAST) == [], scheme
    assert grounds[0] != grounds[1]


@each_page
def test_it_prints(tab):
    document = tab.printed()
    assert document.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", document)) <= 30
    tab.resize(718)  # A4 less its margins, in pixels of CSS
    tab.media("print", prefers_color_scheme="dark")
    hidden = '[...document.querySelectorAll("nav, .chooser, .skip")].every((e) => !e.checkVisibility())'
    assert tab.js(hidden)
    assert tab.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    found = tab.js(FIT)
    assert found["page"] <= found["window"] == 718
