"""The report of a depth sweep: drawn in a browser, judged on results that are whole, partial or hopeless."""

import html
import json
import pickle
import re
import shutil
import struct
import subprocess
import unicodedata
import zlib

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
import xarray as xr

from train import rendering, runs
from train.experiment import Finding
from train.experiments.depth_sweep import CELL, DepthSweep
from train.report import write_report

FIGURES = (
    "test_accuracy", "test_accuracy_by_depth", "steps_to_threshold", "jacobian_spectrum", "condition_number",
    "lipschitz_bounds", "gradient_norms", "second_moment", "loss", "inactive_units",
)  # fmt: skip


class Sweep:
    """Which activation trains at which depth?

    More words that are not for the page.
    """

    figures = staticmethod(DepthSweep.figures)
    findings = staticmethod(DepthSweep.findings)
    tables = staticmethod(DepthSweep.tables)


@pytest.fixture(scope="module")
def run_folder(default_depth_sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    path = write_report(default_depth_sweep, Sweep, folder)
    assert path == folder / "report.html"
    return folder


# In a browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium on this machine")


WATCH = """<script>
window.seen = [];
addEventListener("error", (e) => seen.push("error: " + e.message));
addEventListener("unhandledrejection", (e) => seen.push("rejected: " + e.reason));
addEventListener("securitypolicyviolation", (e) => seen.push("blocked: " + e.blockedURI));
for (const kind of ["error", "warn"]) {
  const old = console[kind]; console[kind] = (...a) => { seen.push(kind + ": " + a.join(" ")); old(...a); };
}
</script>"""
PROBE = """<script>
(async () => {
  const until = async (test) => { while (!test()) await new Promise((r) => setTimeout(r, 20)); };
  const root = document.documentElement;
  const count = () => Object.fromEntries([...document.querySelectorAll(".view")].map((place) => [
    place.id.slice(5),
    {
      state: place.dataset.state,
      marks: [...place.querySelectorAll("line area symbol rect".split(" ").map((kind) => `.mark-${kind} path`).join())]
        .filter((path) => path.getAttribute("d")).length,
      text: place.textContent,
      cells: [...place.querySelectorAll("g.role-scope.cell > g")].map((cell) =>
        [...cell.querySelectorAll(".mark-area path, .mark-line path")].filter((p) => p.getAttribute("d")).length),
    },
  ]));
  const rows = () =>
    [...document.querySelectorAll("tbody tr")].filter((r) => r.cells.length > 2 && !r.hidden).length;
  let updates = 0;
  const change = async (act) => {
    act();
    updates += 1;
    await until(() => root.dataset.updates === String(updates));
  };
  const boxes = [...document.querySelectorAll("input[type=checkbox]")];
  const box = (name) => boxes.find((b) => JSON.parse(b.value) === name);
  await until(() => root.dataset.drawn);
  const out = { before: count(), rowsBefore: rows(), seenWhileDrawing: [...window.seen] };
  await change(() => box("tanh").click());
  out.filtered = count();
  out.rowsFiltered = rows();
  const depth = document.querySelector("select[data-parameter=chosen_depth]");
  await change(() => { depth.value = "8"; depth.dispatchEvent(new Event("change", { bubbles: true })); });
  out.depth = count();
  await change(() => document.querySelector("[data-set-all=false]").click());
  out.none = count();
  const cell = () => document.querySelector("table.sortable tbody tr").cells[1].textContent;
  document.querySelectorAll("table.sortable thead th")[1].querySelector("button").click();
  out.first = cell();
  document.querySelectorAll("table.sortable thead th")[1].querySelector("button").click();
  out.last = cell();
  out.errors = window.seen.filter((line) => !line.startsWith("warn"));
  out.resources = performance.getEntriesByType("resource").map((r) => r.name);
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify(out);
  document.body.append(pre);
})();
</script>"""


def open_in(chromium, page, folder, *, probe=PROBE, frame=None, flags=()):
    """What `probe` found on the page, with `WATCH` before its scripts; the page alone or inside `frame`."""
    copy = folder / "probed.html"
    page = page.replace("<head>", f"<head>{WATCH}", 1)
    end = page.rindex("</body>")  # the scripts inside hold that word too
    copy.write_text(f"{page[:end]}{probe}{page[end:]}", encoding="utf-8")
    if frame:
        copy = folder / "frame.html"
        copy.write_text(frame, encoding="utf-8")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", *flags,
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the probe did not finish: {done.stdout[-2000:]}"
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def opened(chromium, run_folder, tmp_path_factory):
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    return open_in(chromium, page, tmp_path_factory.mktemp("browser"))


def test_every_figure_is_drawn_in_a_browser_without_an_error(opened):
    assert list(opened["before"]) == list(FIGURES)
    for name, view in opened["before"].items():
        assert view["state"] == "drawn", name
        assert view["marks"] > 20, name
    assert opened["seenWhileDrawing"] == []


def test_the_page_asks_for_nothing_from_a_network(opened):
    assert opened["resources"] == []


def test_a_filter_acts_on_all_figures_and_tables(opened):
    lines = {name: view for name, view in opened["filtered"].items() if name != "test_accuracy"}
    for name, view in lines.items():  # a heat map has activations as rows, and keeps them
        assert 0 < view["marks"] < opened["before"][name]["marks"], name
    assert opened["rowsBefore"] == 21 + 105
    assert opened["rowsFiltered"] == 18 + 90


def test_a_grid_that_loses_a_row_has_no_empty_or_left_over_cells(opened):
    before, after = (opened[when]["jacobian_spectrum"] for when in ("before", "filtered"))
    assert len(before["cells"]) == 7 * 3
    assert len(after["cells"]) == 6 * 3
    assert min(after["cells"]) > 0
    assert "tanh" in before["text"]
    assert "tanh" not in after["text"]


def test_the_depth_of_layer_figures_can_be_chosen(opened):
    for name in ("gradient_norms", "second_moment", "loss", "inactive_units"):
        assert "depth 64" in opened["before"][name]["text"]
        assert "depth 8" in opened["depth"][name]["text"]


def test_filtering_everything_away_is_no_error(opened):
    assert all(view["state"] == "drawn" for view in opened["none"].values())
    assert opened["errors"] == []


def test_tables_sort_by_a_click(opened):
    assert (opened["first"], opened["last"]) == ("gelu", "tanh")


def test_a_hostile_or_tiny_result_is_drawn_too(chromium, make_depth_sweep, tmp_path):
    unseen = "\x1b]0;evil\x07 \x01 \u2028 \u202e \x9b"
    names = ("tanh", "</script><b>", unseen, *(f"elu({i})" for i in range(7)))
    result = make_depth_sweep(
        activations=names,
        depths=(1, 8),
        blocks=("plain", 'my "own"'),
        num_seeds=1,
        learning_rates=(0.1,),
        num_steps=4,
        num_examples=1,
        num_modes=4,
    )
    result.attrs["command"] = f"run --name '</script><script>alert(1)</script>' {unseen}"
    result.attrs["study"] = f"depth_sweep {unseen}"
    page = write_report(result, Sweep(), tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    drawn = [path.read_text(encoding="utf-8") for path in tmp_path.glob("figures/*.svg")]
    own = page.replace(vl_convert.javascript_bundle(), "")
    for text in (own, *drawn):
        assert not [
            letter for letter in {*text} - {"\n", "\t"} if unicodedata.category(letter) in ("Cc", "Cf", "Zl")
        ]
    shown = r"\x1b]0;evil\x07 \x01 \u2028 \u202e \x9b"
    for place in (f"Depth sweep {shown}", f"{shown}</td>", f">{shown}</"):
        assert place in page
    assert any(shown in text for text in drawn)
    seen = open_in(chromium, page, tmp_path)
    assert {view["state"] for view in seen["before"].values()} == {"drawn"}
    assert seen["seenWhileDrawing"] == []
    assert seen["errors"] == []


# On the reader's screen -----------------------------------------------------------------------------------

ACTIVATIONS, DEPTHS, BLOCKS = (
    ("relu", "tanh", "selu"),
    (4, 16, 64),
    ("plain", "pre-activation", "post-activation"),
)


class Answer:
    """A study that answers with a heat map about as wide as a real one."""

    @staticmethod
    def figures(result):
        """The answer, a grid wider than any telephone, a small chart, two side by side."""
        grid = pd.MultiIndex.from_product(
            [ACTIVATIONS, DEPTHS, BLOCKS], names=["activation", "depth", "block"]
        )
        frame = grid.to_frame(index=False).assign(accuracy=np.linspace(0.1, 0.99, len(grid)))
        base = alt.Chart(frame, width=210, height=280).encode(x="depth:O", y="activation:N")
        boxes, words = base.mark_rect().encode(color="accuracy:Q"), base.mark_text().encode(text="accuracy:Q")
        lines = alt.Chart(frame, width=255, height=80).mark_line().encode(x="depth:Q", y="accuracy:Q")
        small = lines.properties(width=150, height=90)
        return {
            "answer": alt.layer(boxes, words).facet(column="block:N").properties(title="Who trains?"),
            "grid": lines.encode(color="activation:N", column="block:N", row="activation:N"),
            "small": small,
            "pair": alt.hconcat(small, small.properties(width=400)),
        }

    @staticmethod
    def findings(result):
        return [
            "At depth 64 every activation trains in residual blocks, and none in a plain network, whatever its scale.",
            Finding("Plain networks stop at depth 16.", topic="Accuracy"),
            Finding("sigmoid: 1e-12 of it is left.", "Gradients <b>"),
            "A note: of no topic.",
            Finding("Residual blocks do not stop.", topic="Accuracy"),
        ]

    @staticmethod
    def tables(result):
        return {"Wide": pd.DataFrame({f"column {i}": [0.1 * i] for i in range(30)})}


@pytest.fixture(scope="module")
def answer_page(tmp_path_factory):
    config = {
        "optimizer": {"type": "Adam", "b1": 0.9, "b2": None}, "task": {"type": "Digits", "num_train": None},
        "depths": [4, 16], "sigma_w": None, "use_bias": True,
    }  # fmt: skip
    attributes = {"smoke": "true", "run_id": "run-1", "device": "1 x cpu", "config": json.dumps(config)}
    attributes |= {"started": "2026-11-29T00:26:01+00:00", "wall_seconds": 12.34}
    folder = tmp_path_factory.mktemp("answer")
    return write_report(xr.Dataset(attrs=attributes), Answer, folder).read_text(encoding="utf-8")


# A window of Chromium is at least 500 pixels wide; a frame is as narrow as one likes.
FRAMES = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<iframe src="probed.html" width="1400" height="1000"></iframe>
<iframe src="probed.html" width="400" height="800"></iframe>
<script>
const found = {};
addEventListener("message", ({ data }) => {
  found[data.size[0]] = data;
  if (Object.keys(found).length < 2) return;
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify({ wide: found[1400], narrow: found[400] });
  document.body.append(pre);
});
</script>"""
# Lets a probe change what the page is told of the screen, as a reader does who switches to dark.
SCREEN = """<script>
window.queries = {};
const asked = window.matchMedia.bind(window);
window.matchMedia = (query) => (queries[query] ??= Object.assign(new EventTarget(), { matches: asked(query).matches }));
</script>"""
MEASURE = """<script>
(async () => {
  const until = async (test) => { while (!test()) await new Promise((r) => setTimeout(r, 20)); };
  const root = document.documentElement, all = (selector) => [...document.querySelectorAll(selector)];
  const box = (element) => {
    const { left, top, right, bottom, width } = element.getBoundingClientRect();
    return { left, top, right, bottom, width };
  };
  const folds = () => all("section > details").map((fold) => fold.open);
  const colour = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
  const text = () => colour(".answer svg.marks .role-axis-label text", "fill");
  await until(() => root.dataset.drawn);
  const out = {
    size: [innerWidth, innerHeight],
    title: document.title,
    headline: document.querySelector("h1").textContent,
    folds: folds(),
  };
  dispatchEvent(new Event("beforeprint"));
  out.printed = folds();
  dispatchEvent(new Event("afterprint"));
  out.afterwards = folds();
  for (const fold of all("section > details")) fold.open = true;
  Object.assign(out, {
    scrollWidth: root.scrollWidth,
    verdict: box(document.querySelector(".verdict")),
    picture: box(document.querySelector(".answer svg.marks")),
    drawings: Object.fromEntries(all("svg.marks").map((svg) => [
      svg.closest(".view").id.slice(5), { ...box(svg), own: Number(svg.getAttribute("width")) },
    ])),
    legends: all("svg.marks .role-legend").map(box),
    paper: colour("body", "backgroundColor"),
    words: colour("body", "color"),
    text: text(),
  });
  const scheme = queries["(prefers-color-scheme: dark)"];
  scheme.matches = !scheme.matches;
  scheme.dispatchEvent(new Event("change"));
  await until(() => root.dataset.updates === "1");
  out.switched = text();
  const fold = document.getElementById("figure-small").closest("details");
  fold.open = false;
  document.querySelector('nav a[href="#figure-small"]').click();
  out.followed = fold.open;
  out.seen = window.seen;
  parent.postMessage(out, "*");
})();
</script>"""


@pytest.fixture(scope="module")
def screens(chromium, answer_page, tmp_path_factory):
    """Measures of the page at 1400 x 1000 and 400 x 800, under each colour scheme."""
    return {
        scheme: open_in(
            chromium,
            answer_page.replace("<head>", f"<head>{SCREEN}", 1),
            tmp_path_factory.mktemp(scheme),
            probe=MEASURE,
            frame=FRAMES,
            flags=["--window-size=2000,1200", f"--blink-settings=preferredColorScheme={number}"],
        )
        for scheme, number in {"dark": 0, "light": 1}.items()
    }


def test_the_first_screen_holds_the_verdict_and_beside_it_the_picture(screens):
    wide = screens["light"]["wide"]
    assert wide["size"] == [1400, 1000]
    for part in ("verdict", "picture"):
        assert wide[part]["top"] >= 0
        assert wide[part]["bottom"] <= 1000
        assert 0 <= wide[part]["left"] < wide[part]["right"] <= 1400
    assert wide["picture"]["width"] > 700
    assert wide["verdict"]["right"] <= wide["picture"]["left"]
    assert wide["verdict"]["top"] < wide["picture"]["bottom"]


def test_nothing_runs_over_the_side_of_a_telephone(screens):
    narrow = screens["light"]["narrow"]
    assert narrow["size"] == [400, 800]
    assert narrow["scrollWidth"] <= 400
    assert len(narrow["legends"]) == 2
    for legend in narrow["legends"]:
        assert 0 <= legend["left"] < legend["right"] <= 400
    for name in ("answer", "small", "pair"):
        assert narrow["drawings"][name]["right"] <= 400, name
    assert (
        narrow["drawings"]["grid"]["right"] > 400
    )  # scrolls within its own box, for it would not be legible


def test_a_chart_keeps_its_own_size_where_there_is_room(screens):
    drawings = screens["light"]["wide"]["drawings"]
    assert 150 < drawings["small"]["own"] < 300
    for name, drawing in drawings.items():
        assert drawing["width"] == pytest.approx(drawing["own"], abs=0.5), name


def luminance(colour):
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_a_dark_screen_gets_a_dark_page_and_charts_that_can_be_read(screens, size):
    dark, light = screens["dark"][size], screens["light"][size]
    assert luminance(dark["paper"]) < 0.1
    assert luminance(light["paper"]) > 0.9
    for what in ("text", "words"):
        assert luminance(dark[what]) > 0.7
        assert luminance(light[what]) < 0.3


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_charts_follow_a_screen_that_turns_dark_or_light(screens, size):
    assert screens["light"][size]["switched"] == screens["dark"][size]["text"]
    assert screens["dark"][size]["switched"] == screens["light"][size]["text"]


def test_folds_are_closed_on_the_screen_and_open_on_paper(screens):
    seen = screens["light"]["wide"]
    *folds, settings = seen["folds"]
    assert (len(folds), any(folds), settings) == (3 + 3, False, True)
    assert all(seen["printed"])
    assert seen["afterwards"] == seen["folds"]
    assert seen["followed"]  # a link of the list opens the fold that it leads to


def test_the_screens_are_drawn_without_an_error(screens):
    assert [found["seen"] for scheme in screens.values() for found in scheme.values()] == [[]] * 4


def test_a_smoke_run_says_that_its_numbers_mean_nothing(screens, run_folder):
    warning = "SMOKE RUN: numbers mean nothing"
    assert screens["light"]["wide"]["title"] == f"{warning}. Answer"
    assert screens["light"]["wide"]["headline"] == f"Answer {warning}"
    assert "SMOKE RUN" not in (run_folder / "report.html").read_text(encoding="utf-8")


def test_one_line_says_what_was_run(answer_page):
    line = "run-1 &middot; 1 x cpu &middot; 2026-11-29 00:26 UTC &middot; optimizer Adam(b1=0.9)"
    assert f'<p class="origin">{line}</p>' in answer_page


def test_settings_are_said_in_words(answer_page):
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', answer_page))
    assert rows["task"] == "Digits"
    assert rows["depths"] == "4, 16"
    assert rows["sigma w"] == "not set"
    assert rows["use bias"] == "yes"
    assert rows["total time"].startswith("12.3 s")
    assert "null" not in "".join(rows.values())


def test_findings_of_one_topic_stand_together_in_order_of_appearance(answer_page):
    groups = re.findall(
        r"<h3>([^<]*)</h3> <span class=\"peek\">([^<]*)</span>.*?<ul>(.*?)</ul>", answer_page, re.DOTALL
    )
    assert [group[:2] for group in groups] == [
        ("Accuracy (2)", "Plain networks stop at depth 16."),
        ("Gradients &lt;b&gt;", "sigmoid: 1e-12 of it is left."),
        ("Other findings", "A note: of no topic."),
    ]
    assert re.findall("<li>(.*?)</li>", groups[0][2]) == [
        "Plain networks stop at depth 16.",
        "Residual blocks do not stop.",
    ]
    assert 'class="verdict">At depth 64 every activation' in answer_page


def test_a_finding_is_its_sentence_and_keeps_its_topic():
    finding = Finding("It trains.", topic="Accuracy")
    assert finding == "It trains."
    assert f"- {finding}" == "- It trains."
    assert json.dumps([finding]) == '["It trains."]'
    assert pickle.loads(pickle.dumps(finding)).topic == "Accuracy"
    assert Finding("It trains.").topic == ""


# Files ----------------------------------------------------------------------------------------------------


def test_every_figure_is_a_picture_and_a_drawing(run_folder):
    assert sorted(path.name for path in (run_folder / "figures").iterdir()) == sorted(
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
    )
    for name in FIGURES:
        width, height, shades = read_png(run_folder / "figures" / f"{name}.png")
        assert width > 800
        assert height > 300
        assert shades > 50, f"{name}.png is blank"
        assert "<svg" in (run_folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")[:200]


def read_png(path):
    """Width, height and how many different bytes the pixels hold."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    position, packed = 8, b""
    while position < len(content):
        (length,) = struct.unpack(">I", content[position : position + 4])
        if content[position + 4 : position + 8] == b"IDAT":
            packed += content[position + 8 : position + 8 + length]
        position += length + 12
    return width, height, len(np.unique(np.frombuffer(zlib.decompress(packed), np.uint8)))


def test_the_page_holds_everything_it_needs(run_folder):
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 4e6
    assert not re.search(r"""<(script|link|img|iframe)[^>]*\s(src|href)=""", page.split("<script", 1)[0])
    assert not re.search(r"<script[^>]*\ssrc=", page)
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert (
        page.index('id="verdict"')
        < page.index('id="figures"')
        < page.index('id="tables"')
        < page.index('id="making"')
    )
    assert "Which activation trains at which depth?" in page
    assert "More words" not in page


def test_the_page_says_how_it_was_made(run_folder, default_depth_sweep):
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    for words in (
        "python -m train run configs/depth_sweep.py",
        "0123456789abcdef",
        "cpu (2 cores)",
        "0.12.8",
    ):
        assert words in page
    assert "digits &lt;8x8&gt;" in page


def test_the_same_result_stored_and_loaded_gives_the_same_page(
    default_depth_sweep, run_folder, tmp_path, monkeypatch
):
    # Pictures follow from the page's specifications; drawing them again would only take time.
    monkeypatch.setattr(rendering, "drawn", lambda specs, **options: [])
    default_depth_sweep.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    again = write_report(
        xr.load_dataset(tmp_path / "result.nc", engine="h5netcdf"), Sweep, tmp_path / "again"
    )
    assert again.read_bytes() == (run_folder / "report.html").read_bytes()


def test_a_failing_figure_leaves_the_last_report_as_it_was(make_depth_sweep, tmp_path):
    class Broken(Sweep):
        figures = staticmethod(lambda result: {"../escape": None})

    (tmp_path / "report.html").write_text("the last one")
    with pytest.raises(ValueError, match=r"'\.\./escape'.*Rename"):
        write_report(make_depth_sweep(depths=(4,), activations=("relu",)), Broken, tmp_path)
    assert (tmp_path / "report.html").read_text() == "the last one"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_study_without_figures_or_tables_has_a_page(tmp_path):
    class Bare:
        figures = staticmethod(lambda result: {})
        findings = staticmethod(lambda result: ["a < b & c"])
        tables = staticmethod(lambda result: {})

    page = write_report(xr.Dataset(), Bare(), tmp_path).read_text(encoding="utf-8")
    assert "a &lt; b &amp; c" in page
    assert "<h1>Bare</h1>" in page
    for words in ("No figure: the result", "No finding beside the verdict.", "No table: this study"):
        assert words in page
    Bare.findings = staticmethod(lambda result: [])
    page = write_report(xr.Dataset(), Bare(), tmp_path).read_text(encoding="utf-8")
    assert 'class="verdict">No finding: the result holds nothing to judge.</p>' in page


def test_tables_sort_on_a_page_without_figures(chromium, tmp_path):
    class Bare:
        figures = staticmethod(lambda result: {})
        findings = staticmethod(lambda result: [])
        tables = staticmethod(lambda result: {"T": pd.DataFrame({"x": [3.0, 1.0, 2.0]})})

    probe = """<script>(async () => {
      while (!document.documentElement.dataset.drawn) await new Promise((r) => setTimeout(r, 20));
      document.querySelector("th button").click();
      const pre = document.createElement("pre");
      pre.id = "probe";
      pre.textContent = JSON.stringify([...document.querySelectorAll("td.number")].map((cell) => cell.textContent));
      document.body.append(pre);
    })();</script>"""
    page = write_report(xr.Dataset(), Bare, tmp_path).read_text(encoding="utf-8")
    assert open_in(chromium, page, tmp_path, probe=probe) == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["specs", "datasets", "dark", "verdict", "figures"])
def test_a_figure_may_have_any_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr(rendering, "drawn", lambda specs, **options: [])

    class One(Answer):
        figures = staticmethod(lambda result: {name: Answer.figures(result)["small"]})

    page = write_report(xr.Dataset(), One, tmp_path).read_text(encoding="utf-8")
    identities = re.findall(r' id="([^"]*)"', re.sub("(?s)<script>.*", "", page))
    assert len(identities) == len(set(identities))


# Findings -------------------------------------------------------------------------------------------------


def said_about(result, topic):
    """The findings of one topic."""
    return [finding for finding in DepthSweep.findings(result) if getattr(finding, "topic", "") == topic]


def test_the_first_finding_is_the_answer(default_depth_sweep):
    verdict, plain, *_ = DepthSweep.findings(default_depth_sweep)
    assert verdict.startswith("At depth 64, 90 % test accuracy")
    assert "plain networks with 2 of 7 activations (tanh and selu)" in verdict
    assert "all 7 activations" in verdict
    assert plain.topic == "Plain"
    assert "the most accurate at depth 64 is tanh, 0.96" in plain.lower()
    assert "tanh and selu to depth 64" in plain
    assert "sigmoid at no depth" in plain
    assert re.search(r"Below 50 % at depth 64: silu 0\.13, relu 0\.\d\d", plain)


def test_findings_compare_every_block_with_plain_networks(default_depth_sweep):
    accuracy = runs.best(default_depth_sweep, CELL)["final_test_accuracy"].mean(["seed", "activation"])
    deep, shallow = (
        [float(accuracy.sel(block=block, depth=depth)) for block in ("plain", "pre_activation-bn")]
        for depth in (64, 4)
    )
    first, second = said_about(default_depth_sweep, "Mean test accuracy against plain networks")
    assert f"at depth 64 {deep[0]:.2f} becomes {deep[1]:.2f}, most for silu" in first
    assert f"at depth 4 {shallow[0]:.2f} becomes {shallow[1]:.2f}" in first
    assert second.startswith("Post-activation residual + BN")


def test_findings_count_failures(default_depth_sweep):
    diverged = (
        default_depth_sweep["diverged_step"].notnull().sum(["activation", "depth", "learning_rate", "seed"])
    )
    censored = default_depth_sweep["censored"].sum(["activation", "depth", "learning_rate", "seed"])
    [failures] = said_about(default_depth_sweep, "Failures")
    assert (
        f"{int(diverged.sum())} of 945 runs diverged (plain {int(diverged.sel(block='plain'))})" in failures
    )
    never = f"{int(censored.sum())} of 945 runs did not reach 90 % training accuracy within 600 steps"
    assert f"{never} (plain {int(censored.sel(block='plain'))}, pre-activation" in failures


def test_findings_say_what_was_put_in(default_depth_sweep):
    gap = default_depth_sweep["lipschitz_upper_log10"] - default_depth_sweep["lipschitz_lower_log10"]
    plain = float(gap.sel(block="plain", depth=64, phase="trained").median())
    [bounds] = said_about(default_depth_sweep, "How far upper Lipschitz bounds exceed the lower")
    best, textbook = bounds.split("the textbook's product by")
    assert f"plain {plain:.1f};" in textbook
    assert f"plain {plain / 2:.1f};" in best  # the fixture's ellipsoid lies half way
    [theory] = said_about(default_depth_sweep, "Theory")
    assert re.search(r"measured over predicted.*plain (1\.0\d|1|0\.99\d?) ", theory)
    initial, _ = said_about(default_depth_sweep, "Jacobian condition number")
    assert re.search(r"plain .* to singular \(relu\)", initial)  # its Jacobian has exact zeros


def test_the_test_set_has_no_say_in_the_learning_rate(default_depth_sweep):
    chosen = runs.best(default_depth_sweep, CELL)["learning_rate"]
    other = default_depth_sweep.assign(
        test_accuracy=1 - default_depth_sweep["test_accuracy"], test_loss=-default_depth_sweep["test_loss"]
    )
    xr.testing.assert_equal(chosen, runs.best(other, CELL)["learning_rate"])


def test_the_learning_rate_with_the_best_training_accuracy_is_chosen(default_depth_sweep):
    best = runs.best(default_depth_sweep, CELL)
    final = default_depth_sweep["train_accuracy"].isel(step=-1)
    final = final.where(default_depth_sweep["diverged_step"].isnull(), 0.0).mean("seed")
    picked = best["final_train_accuracy"].mean("seed")
    np.testing.assert_array_equal(picked, final.max("learning_rate"))


def test_a_diverged_member_counts_as_zero(make_depth_sweep):
    result = make_depth_sweep(blocks=("plain",), activations=("silu",), depths=(16,), learning_rates=(0.1,))
    assert DepthSweep.tables(result)["Every cell"].loc[0, "test accuracy"] == 0.0
    assert DepthSweep.tables(result)["Every cell"].loc[0, "diverged"] == 3


def test_what_rounding_hides_is_called_singular(make_depth_sweep):
    result = make_depth_sweep(blocks=("plain",), activations=("tanh",), depths=(64,))
    assert "singular" not in " ".join(DepthSweep.findings(result))  # in float64 1e13 is a number
    result["jacobian_condition_number"] = result["jacobian_condition_number"].astype(np.float32)
    assert "plain singular. Singular: above 8e+06" in " ".join(DepthSweep.findings(result))


def hopeless(result):
    """Every member diverged at once, and nothing finite was measured."""
    result = result.copy(deep=True)
    for name, variable in result.data_vars.items():
        if variable.dtype.kind == "f" and name not in ("steps_to_threshold", "diverged_step"):
            result[name] = variable * np.nan
    result["diverged_step"] = result["diverged_step"] * 0 + 0.0
    result["diverged_step"][:] = 0.0
    return result


def empty(result):
    """Only NaN: cells that were never run."""
    result = result.copy(deep=True)
    for name in result.data_vars:
        result[name] = result[name].astype(float) * np.nan
    return result


def with_holes(result):
    """Half of the cells missing, as after combining an unfinished run: booleans have become objects."""
    one = result.isel(activation=[0], depth=[0])
    two = result.isel(activation=[-1], depth=[-1])
    return xr.combine_by_coords([one, two], join="outer", combine_attrs="override")


ONE = {
    "blocks": ("plain",),
    "activations": ("relu",),
    "depths": (4,),
    "learning_rates": (0.1,),
    "num_seeds": 1,
}
SUB_SWEEPS = {
    "one of each": ONE,
    "one residual block": {
        "blocks": ("post_activation-bn",),
        "activations": ("tanh", "relu"),
        "num_seeds": 2,
    },
    "one measured step": {"depths": (4,), "activations": ("tanh",), "num_steps": 1},
}


@pytest.mark.parametrize("arguments", SUB_SWEEPS.values(), ids=SUB_SWEEPS.keys())
def test_any_part_of_a_sweep_can_be_judged(make_depth_sweep, arguments):
    result = make_depth_sweep(**{"num_steps": 5, "num_modes": 4, **arguments})
    assert len(check_views(result)) >= 8


@pytest.mark.parametrize("spoil", [hopeless, empty, with_holes])
def test_spoiled_results_can_be_judged(make_depth_sweep, spoil):
    check_views(
        spoil(make_depth_sweep(depths=(4, 16), activations=("relu", "silu"), num_steps=5, num_modes=4))
    )


def check_views(result):
    findings = DepthSweep.findings(result)
    assert findings
    for finding in findings:
        assert finding == finding.strip()
        assert finding.endswith(".")
        assert "nan" not in finding.lower().split()
        assert "  " not in finding
    charts = DepthSweep.figures(result)
    for chart in charts.values():
        chart.to_dict()
    for table in DepthSweep.tables(result).values():
        assert table.attrs["caption"]
    return charts


def test_a_result_without_a_number_says_so(make_depth_sweep):
    result = empty(make_depth_sweep(depths=(4,), activations=("relu",), num_steps=3))
    assert DepthSweep.figures(result) == {}
    assert DepthSweep.findings(result)[0].startswith("Nothing to conclude")
    assert all(table.empty for table in DepthSweep.tables(result).values())


def test_all_diverged_is_a_result(make_depth_sweep):
    result = hopeless(make_depth_sweep(depths=(4,), activations=("relu",), num_steps=3))
    text = " ".join(DepthSweep.findings(result))
    assert "27 of 27 runs diverged" in text
    assert "relu, 0.00" in text
