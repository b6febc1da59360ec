"""The report: what it embeds, and in a real browser what it shows, sorts and filters."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from vlm_eval import compare, exact_match
from vlm_eval.report import Row, Run, page
from vlm_eval.report.thumbnails import thumbnails

NASTY = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> %%DATA%% <!--"


def rows_of(n: int, folder=None) -> list[Row]:
    types = ["number", "yes/no", "other"]
    image = None if folder is None else str(folder / "0.png")
    return [Row(f"row-{i}", [f"answer {i}"], f"question {i}?", image, {"answer_type": types[i % 3]}) for i in range(n)]


def run_of(name: str, rows: list[Row], wrong: set[int], **replaced: str) -> Run:
    said = ["something else" if i in wrong else row.references[0] for i, row in enumerate(rows)]
    for index, text in replaced.items():
        said[int(index.removeprefix("row_"))] = text
    failed = [None if text else "timeout" for text in said]
    return Run(name, said, failed, {"exact_match": exact_match(said, [row.references for row in rows])})


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(3):
        noise = generator.integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    return tmp_path


def test_texts_stay_data(photos):
    rows = rows_of(4, photos)
    text = page(NASTY, rows, [run_of("<b>", rows, set(), row_1=NASTY)])
    assert text.count("<script") == 2 and "<img" not in text and "<!--" not in text
    assert data_of(text)["rows"][1]["said"][0]["text"] == NASTY
    assert data_of(text)["runs"][0]["name"] == "<b>"


def test_a_picture_is_embedded_once_and_nothing_is_loaded(photos):
    rows = rows_of(5, photos)
    text = page("t", rows, [run_of("a", rows, set())])
    assert len(data_of(text)["pictures"]) == 1 and all(row["picture"] == 0 for row in data_of(text)["rows"])
    assert not re.search(r"""(src|href)=["']?(?!x )|@import|url\(|https?:""", text.replace("image.src =", ""))


def test_sections_stand_below_the_scores_as_they_are():
    rows = rows_of(2)
    text = page("t", rows, [run_of("a", rows, set())], sections={"<Curves>": "<p>100 %%DATA%%</p>"})
    section = "<section><h2>&lt;Curves&gt;</h2><p>100 %%DATA%%</p></section>"
    assert text.index('id="scores"') < text.index(section) < text.index('id="types"')


def test_a_row_without_a_picture_names_its_file_beside_the_page(photos):
    rows = rows_of(1) + [Row("r", ["a"], image=str(photos / "missing one.png"))]
    shown = data_of(page("t", rows, [run_of("a", rows, set())], folder=photos / "scores"))["rows"]
    assert "picture" not in shown[0] and "file" not in shown[0]
    assert shown[1]["file"] == "../missing%20one.png"


def test_thumbnails_keep_to_their_budget_and_leave_out_what_is_no_picture(photos):
    (photos / "broken.png").write_bytes(b"<html>")
    paths = [str(photos / name) for name in ("0.png", "broken.png", "1.png", "2.png")]
    whole = thumbnails(paths)
    assert list(whole) == [paths[0], *paths[2:]]
    smaller = thumbnails(paths, sum(map(len, whole.values())) // 2)
    assert len(smaller) == 3 and sum(map(len, smaller.values())) <= sum(map(len, whole.values())) / 2
    assert list(thumbnails(paths, len(smaller[paths[0]]) // 4)) == []


def test_tables_hold_the_means_of_each_type():
    rows = rows_of(30)
    (table,) = data_of(page("t", rows, [run_of("a", rows, {0, 3, 6, 1})]))["types"].values()
    values = {entry["label"]: (entry["n"], entry["runs"][0]["exact_match"]["value"]) for entry in table}
    assert values == {"number": (10, 0.7), "yes/no": (10, 0.9), "other": (10, 1.0)}


def test_runs_that_do_not_fit_are_refused():
    rows = rows_of(3)
    run = run_of("a", rows, set())
    with pytest.raises(ValueError, match="0 runs"):
        page("t", rows, [])
    with pytest.raises(ValueError, match="run a: give 2 predictions"):
        page("t", rows[:2], [run])


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, photos):
    """Open a report from disk; at the end nothing may have failed, nor been asked of a network."""
    troubles, contexts = [], []

    def go(text: str, width: int = 1200, scheme: str = "light"):
        (photos / "report.html").write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        tab = contexts[-1].new_page()
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("request", lambda request: request.url.startswith("http") and troubles.append(request.url))
        tab.goto((photos / "report.html").as_uri())
        return tab

    yield go
    for context in contexts:
        context.close()
    assert troubles == []


def ids(tab) -> list[str]:
    return tab.locator(".card .identity").all_text_contents()


def test_a_browser_shows_sorts_filters_and_pages(opened, photos):
    rows = rows_of(60, photos)
    run = run_of("a", rows, {7, 31}, row_10="", row_11=NASTY)
    tab = opened(page("A title", rows, [run]))
    assert tab.title() == "A title"
    assert "1 without a prediction" in tab.locator("#about").text_content()
    assert tab.locator("#scores .value").text_content() == f"{56 / 60:.3f}"
    assert ids(tab)[:4] == ["row-7", "row-10", "row-11", "row-31"] and len(ids(tab)) == 48
    assert tab.locator(".card").nth(1).locator(".failed").text_content() == "failed: timeout"
    assert tab.locator(".card").nth(2).locator(".clip").first.text_content() == NASTY
    assert tab.locator(".card img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100

    tab.click("#next")
    assert len(ids(tab)) == 12 and tab.locator("#page").text_content() == "2 of 2"
    tab.select_option("[name=order]", "best")
    assert len(ids(tab)) == 48 and "row-7" not in ids(tab)
    tab.select_option("[name=sort]", "given")
    assert ids(tab)[:3] == ["row-0", "row-1", "row-2"]
    tab.select_option("[name=show]", label="number (20)")
    assert ids(tab) == [f"row-{i}" for i in range(0, 60, 3)]
    tab.fill("[name=text]", "QUESTION 3")
    assert ids(tab) == ["row-3", "row-30", "row-33", "row-36", "row-39"]
    assert tab.locator("#count").text_content() == "5 of 60 rows"
    tab.select_option("[name=show]", "failed")
    tab.fill("[name=text]", "")
    assert ids(tab) == ["row-10"]


def test_a_browser_shows_texts_that_nothing_is_known_to_compare_with(opened, photos):
    rows = [Row(f"row-{i}", [], image=str(photos / "0.png")) for i in range(2001)]
    tab = opened(page("Captions", rows, [Run("a", ["a text"] * len(rows), [None] * len(rows), {})]))
    assert not tab.locator("#scores").is_visible() and not tab.locator("#distributions").is_visible()
    assert tab.locator(".card").first.text_content().count("a text") == 1
    assert tab.locator(".references").count() == 0


def test_a_browser_shows_two_runs_and_what_changed(opened):
    rows = rows_of(9)
    runs = [run_of("first", rows, {2, 4}), run_of("second", rows, {4, 5, 8})]
    comparison = compare(*(run.scores["exact_match"] for run in runs))
    tab = opened(page("t", rows, runs, {"exact_match": comparison}))
    assert tab.locator("#scores .value").all_text_contents() == ["0.778", "0.667"]
    assert "higher in 2 rows, equal in 6, lower in 1" in tab.locator(".difference").text_content()
    for show, expected in (
        ("better", ["row-5", "row-8"]),
        ("worse", ["row-2"]),
        ("texts", ["row-2", "row-5", "row-8"]),
    ):
        tab.select_option("[name=show]", show)
        assert sorted(ids(tab)) == expected
    tab.select_option("[name=show]", "")
    tab.select_option("[name=sort]", label="change of exact match")
    assert ids(tab)[0] == "row-2"
    assert tab.locator(".card").first.locator(".answer .clip").all_text_contents() == ["something else", "answer 2"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways_and_dark_is_dark(opened, photos, scheme):
    rows = [Row("x" * 80, ["y" * 300], "z" * 200, str(photos / "1.png"), {"type": "t" * 60}), *rows_of(3)]
    run = run_of("name" * 20, rows, {1})
    tab = opened(page("title" * 30, rows, [run, run]), width=360, scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(light) > 600) == (scheme == "light")
