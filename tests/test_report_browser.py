"""The report in a real browser: it opens on a phone and on a desk, draws, filters, and runs nothing of what was answered.

Chromium is looked for on the path; where the tests must not pass without it, GPG_VL_NEEDS_BROWSER is set.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import completion, evaluation, group, step, write_run

from gpg_vl.report import page
from gpg_vl.report.folder import read_run
from gpg_vl.report.live import Pages, make_server, stamp

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
if CHROMIUM is None and not os.environ.get("GPG_VL_NEEDS_BROWSER"):
    pytest.skip("no Chromium on the path: install it to test the report", allow_module_level=True)

HOSTILE = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "these tests need Chromium, and there is none on the path"
    with sync_playwright() as playwright:
        # a sandbox inside of a container needs rights that root there does not have
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab whose complaints fail the test, and that reaches nothing but this machine."""
    complaints: list[str] = []
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    tab.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
    tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    tab.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    yield tab
    tab.close()
    assert not complaints, complaints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = {
        1: [group(task="Count"), group(task="Depth", completions=[completion("(A)", 0.0)] * 2)],
        30: [group(task="Depth", prompt="a zebra"), group(completions=[completion(HOSTILE, 1.0)])],
    }
    folder = tmp_path_factory.mktemp("page") / "run"
    metrics = [step(number) for number in range(1, 31)]
    write_run(folder, metrics=metrics, samples=samples)
    page.write_report(folder)
    return folder


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_and_fits(tab: Any, run: Path, width: int, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 800})
    tab.goto((run / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    charts = tab.locator(".chart canvas")
    assert charts.count() >= 5
    assert all(charts.nth(n).bounding_box()["width"] <= width for n in range(charts.count()))
    back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(20, 23, 27)") is (scheme == "dark")


@pytest.mark.parametrize("width", [390, 1400])
def test_names_of_any_length_stay_inside(tab: Any, tmp_path: Path, width: int) -> None:
    """Tasks, rows and rewards are named by others, and need not hold a blank where a line could break."""
    name = "a-name-without-any-blank/" * 12
    reward = f"/home/somebody/{name}mine.py:f"
    answer = {"text": name, "reward": 1.0, f"reward/{reward}": 1.0}
    rows = [group(task=name, id=name, prompt=name, answer=name, completions=[answer] * 3)]
    metrics = [
        step(n, **{f"reward/{reward}": n / 9, "reward_by_task": {name: n / 7, "Count": n / 8}})
        for n in range(1, 5)
    ]
    folder = write_run(tmp_path / name.replace("/", "")[:200], metrics=metrics, samples={1: rows})
    other = write_run(tmp_path / f"o-{name.replace('/', '')[:200]}", metrics=metrics)
    tab.set_viewport_size({"width": width, "height": 800})
    for pair in (None, other):
        tab.goto(page.write_report(folder, pair).as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        legend = tab.locator(".chart", has_text="Reward by task").locator(".u-legend")
        assert "Count" in legend.text_content()


def test_two_runs_have_colours_of_their_own(tab: Any, run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    tab.goto(page.write_report(run, other, tmp_path / "both.html").as_uri())
    for title in ("weighted total", "only groups with"):
        marks = tab.locator(".chart", has_text=title).locator(".u-marker")
        colours = marks.evaluate_all("all => all.slice(1).map(one => one.style.border)")
        assert len(set(colours)) == len(colours) > 1, (title, colours)


def test_the_pointer_reads_a_number_off_a_curve(tab: Any, run: Path) -> None:
    tab.goto((run / "report.html").as_uri())
    chart = tab.locator(".chart", has_text="weighted total")
    over = chart.locator(".u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    tab.mouse.move(box["x"] + box["width"] - 2, box["y"] + 40)
    tab.wait_for_function(
        "document.querySelector('#training-charts .u-legend').textContent.includes('30')"
    )
    # the reward of step 30 as the file has it, in six digits
    assert f"{30 / 7:.6g}" in chart.locator(".u-legend").text_content()


def test_a_score_is_read_off_with_its_interval(tab: Any, tmp_path: Path) -> None:
    tab.goto(page.write_report(write_run(tmp_path / "run")).as_uri())
    chart = tab.locator("#evaluation-charts .chart", has_text="official")
    over = chart.locator(".u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    tab.mouse.move(box["x"] + box["width"] - 2, box["y"] + 40)
    row = chart.locator(".u-legend tr:visible", has_text="real picture")
    # the file has 0.75, and 0.1 to either side
    tab.wait_for_function(
        "document.querySelector('#evaluation-charts .u-legend').textContent.includes('0.75')"
    )
    assert row.count() == 1
    assert row.text_content() == "real picture0.75 [0.65, 0.85]"


def test_the_tables_of_numbers_fit_a_phone(tab: Any, tmp_path: Path) -> None:
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.goto(page.write_report(write_run(tmp_path / "run")).as_uri())
    boxes = tab.locator(".wide:has(.numbers)")
    assert boxes.count() == 2
    over = boxes.evaluate_all("all => all.map(one => one.scrollWidth - one.clientWidth)")
    assert over == [0, 0]


def test_a_single_evaluation_lies_in_the_middle(tab: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics=[evaluation(0, 0.45), step(1)])
    tab.goto(page.write_report(folder).as_uri())
    over = tab.locator("#evaluation-charts .u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    tab.wait_for_function(
        "document.querySelector('#evaluation-charts .u-legend').textContent.includes('0.45')"
    )
    point = tab.locator("#evaluation-charts .u-cursor-pt").first.bounding_box()
    assert abs(point["x"] + point["width"] / 2 - box["x"] - box["width"] / 2) < 2


def test_the_filter_shows_what_fits(tab: Any, run: Path) -> None:
    tab.goto((run / "report.html").as_uri())
    visible = tab.locator(".group:visible")
    assert visible.count() == 4
    for field, value, left in (
        ("text", "ZEBRA", 1),
        ("step", "1", 2),
        ("task", "Depth", 2),
        ("outcome", "mixed", 2),
        ("outcome", "equal low", 1),
        ("least", "0.9", 1),
        ("most", "0.1", 1),
    ):
        control = tab.locator(f"#filter-{field}")
        is_list = control.evaluate("one => one.tagName") == "SELECT"
        control.select_option(value) if is_list else control.fill(value)
        assert visible.count() == left, (field, value)
        assert tab.locator("#filter-count").text_content() == f"{left} of 4 groups"
        control.select_option("") if is_list else control.fill("")
    assert visible.count() == 4


def test_an_answer_that_is_a_script_is_shown_and_not_run(tab: Any, run: Path) -> None:
    tab.goto((run / "report.html").as_uri())
    assert tab.title() == "run · gpg_vl"
    assert tab.locator(".answer .text", has_text=HOSTILE).count() == 1
    assert tab.locator("img[src=x]").count() == 0


def test_a_script_that_got_into_the_page_would_not_run(browser: Any, run: Path) -> None:
    """The second wall: should the escaping ever fail, the page's own policy refuses the script."""
    html = (run / "report.html").read_text().replace("</main>", f"{HOSTILE}</main>")
    broken = run / "broken.html"
    broken.write_text(html)
    tab = browser.new_page()
    tab.goto(broken.as_uri())
    assert tab.title() == "run · gpg_vl"
    assert tab.locator("canvas").count() > 0
    tab.close()
    broken.unlink()


def test_dark_and_light_can_be_chosen(tab: Any, run: Path) -> None:
    tab.emulate_media(color_scheme="light")
    tab.goto((run / "report.html").as_uri())
    tab.locator("#theme").click()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    tab.locator("#theme").click()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 250)"


def test_two_runs_and_broken_ones_open_too(tab: Any, run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    both = page.write_report(run, other, tmp_path / "both.html")
    tab.goto(both.as_uri())
    assert tab.locator(".chart", has_text="reward · other").count() >= 1

    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text("model: {path: x}")
    tab.goto(page.write_report(bare).as_uri())
    assert tab.locator(".chart").count() == 0
    assert "There are no samples" in tab.locator(".notice").first.text_content()


def test_the_live_page_reads_itself_again(tab: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    pages = Pages(lambda: page.render(read_run(folder), live=True), lambda: stamp(folder))
    with make_server(pages, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        with tab.expect_response("**/stamp"):
            tab.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        tab.locator("#filter-text").fill("balls")
        with tab.expect_navigation(timeout=20_000), (folder / "metrics.jsonl").open("a") as out:
            out.write(json.dumps(step(5)) + "\n")
            out.flush()
        data = json.loads(tab.locator("#data").text_content())
        assert data["tables"][0]["steps"][-1] == 5
        assert tab.locator("#filter-text").input_value() == "balls"
        tab.goto("about:blank")
        server.shutdown()
        thread.join()
