"""The report and the page in a real browser: what is drawn, what is said, what is copied."""

import re
import sys

import pytest
from axe_playwright_python.sync_playwright import Axe
from tests.support.planting import HOSTILE_METRICS, fill, write

from ckptdb import CheckpointManager

CURVES, OTHER, DISK, SAVES = "#chart-metric", "#chart-other", "#chart-disk", "#chart-saves"


@pytest.fixture(scope="session")
def report(tree, tmp_path_factory):
    return write(tree, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(params=["file", "server"])
def address(request):
    """The report as a file, and the page from a server."""
    if request.param == "file":
        return request.getfixturevalue("report")
    return request.getfixturevalue("server").address


def marks(look, chart):
    """How many points a chart shows, and how many curves and bars."""
    return look.page.evaluate(
        """chart => ({
            points: document.querySelectorAll(`${chart} .scatterlayer .point`).length,
            lines: document.querySelectorAll(`${chart} .scatterlayer .js-line`).length,
            bars: document.querySelectorAll(`${chart} .barlayer .point path`).length,
        })""",
        chart,
    )


def hover(look, chart, curve, point):
    """Let Plotly show what it says about one point; return its lines."""
    step = look.page.evaluate(
        """([chart, meta, point]) => {
            const graph = document.querySelector(chart);
            const curveNumber = graph.data.findIndex((trace) => trace.meta === meta);
            Plotly.Fx.hover(graph, [{ curveNumber, pointNumber: point }]);
            return graph.data[curveNumber].x[point];
        }""",
        [chart, curve, point],
    )
    label = look.page.locator(f"{chart} .hovertext text.nums").filter(has_text=f"step {step} ")
    label.wait_for()
    return label.locator("tspan.line").all_text_contents()


def place(look, chart, curve, point):
    """Where a point is on the screen."""
    look.page.locator(chart).scroll_into_view_if_needed()
    return look.page.evaluate(
        """([chart, meta, point]) => {
            const graph = document.querySelector(chart);
            const traces = [...graph._fullData].filter((trace) => trace.visible === true);
            const index = traces.findIndex((trace) => trace.meta === meta);
            const group = graph.querySelectorAll(".scatterlayer .trace")[index];
            const box = group.querySelectorAll(".point")[point].getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        [chart, curve, point],
    )


def test_every_figure_is_drawn_with_all_its_marks(address, look):
    seen = look(address)

    assert marks(seen, CURVES) == {"points": 4, "lines": 1, "bars": 0}  # val:acc: only `up`
    assert marks(seen, OTHER) == {"points": 8, "lines": 2, "bars": 0}  # val:loss: 4 of each
    assert marks(seen, DISK)["bars"] == 3
    assert seen.page.evaluate(
        "document.querySelector('#chart-saves').data.map((t) => t.y.reduce((a, b) => a + b, 0))"
    ) == [6, 2]
    assert marks(seen, SAVES)["bars"] >= 2


def test_kept_ones_stand_out_and_deleted_ones_are_faint(address, look):
    seen = look(address)
    looks = seen.page.evaluate(
        """() => Object.fromEntries(document.querySelector("#chart-metric").data
            .filter((trace) => trace.meta !== "line")
            .map(({ meta, x, marker }) => [meta, [x, marker.size, marker.opacity ?? 1]]))"""
    )

    assert looks == {"faint": [[1, 3], 5, 0.45], "kept": [[4], 10, 1], "best": [[2], 17, 1]}


def test_hovering_says_everything_about_a_checkpoint(address, look, tree):
    seen = look(address)
    lines = hover(seen, CURVES, "best", 0)

    assert lines[:4] == ["up", "step 2 · on disk · best", "val:acc: 0.9", "val:loss: 0.1"]
    assert re.fullmatch(r"5\.\d kB", lines[4])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", lines[5])
    assert lines[6:] == [f"{tree}/up/step_2"]
    assert hover(seen, CURVES, "faint", 1)[-2] == "retention: not best 1 by val:acc max (0.6)"


@pytest.mark.parametrize(("curve", "name"), [("best", "step_2"), ("faint", "step_1")])
def test_a_click_on_a_point_copies_its_path(address, look, tree, curve, name):
    seen = look(address)
    x, y = place(seen, CURVES, curve, 0)
    seen.page.mouse.move(x, y)
    seen.page.wait_for_selector(f"{CURVES} .hovertext")
    seen.page.mouse.click(x, y)

    assert seen.said() == f"Copied {tree}/up/{name}"
    assert seen.clipboard() == f"{tree}/up/{name}"


def test_paths_are_copied_from_the_keyboard_too(address, look, tree):
    seen = look(address)
    button = seen.page.get_by_role("button", name=f"Copy the path {tree}/down/step_10")
    button.focus()
    seen.page.keyboard.press("Enter")

    assert seen.said() == f"Copied {tree}/down/step_10"
    assert seen.clipboard() == f"{tree}/down/step_10"


def test_without_a_clipboard_paths_are_copied_the_old_way(report, look, tree):
    seen = look(report)
    seen.page.evaluate("delete Navigator.prototype.clipboard")
    seen.page.get_by_role("button", name=f"{tree}/up/step_2").first.click()

    assert seen.said() == f"Copied {tree}/up/step_2"


def test_runs_are_hidden_and_shown_from_the_keyboard(address, look):
    seen = look(address)
    chip = seen.page.get_by_role("button", name="down", exact=True)
    chip.focus()
    seen.page.keyboard.press("Space")

    assert marks(seen, OTHER)["points"] == 4
    assert chip.get_attribute("aria-pressed") == "false"
    assert seen.page.evaluate("document.activeElement.textContent") == "down"
    seen.page.get_by_role("button", name="Show all 3").click()
    assert marks(seen, OTHER)["points"] == 8


def test_another_metric_is_drawn_when_it_is_chosen_with_what_the_runs_say_of_it(address, look):
    seen = look(address)
    assert seen.page.inner_text("#metric-says") == "higher is better"
    seen.page.select_option("#metric", label="val:loss")

    assert marks(seen, CURVES)["points"] == 8
    assert seen.page.inner_text("#metric-says") == "lower is better"


def test_nothing_offers_to_send_anything_anywhere(address, look):
    seen = look(address)

    assert seen.page.locator(".modebar").count() == 0
    assert (
        seen.page.evaluate(
            """() => [...document.querySelectorAll(".js-plotly-plot")].map((graph) =>
            [graph._context.showSendToCloud, graph._context.plotlyServerURL])"""
        )
        == [[False, ""]] * 4
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_and_axe_finds_nothing_serious(address, look, width, scheme):
    seen = look(address, width=width, scheme=scheme)
    found = Axe().run(seen.page).response["violations"]

    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    assert [(v["id"], v["help"]) for v in found if v["impact"] in ("serious", "critical")] == []


def test_colours_follow_the_system_while_the_page_is_open(report, look):
    seen = look(report)
    seen.page.locator(f"{CURVES} .xtick text[style*='rgb(90, 98, 107)']").first.wait_for()
    seen.page.emulate_media(color_scheme="dark")

    seen.page.locator(f"{CURVES} .xtick text[style*='rgb(162, 171, 180)']").first.wait_for()


def test_nothing_moves_for_who_wants_no_motion(report, look):
    seen = look(report, reduced_motion="reduce")

    assert (
        seen.page.eval_on_selector("#said", "e => getComputedStyle(e).transitionDuration") == "0s"
    )


def test_without_javascript_the_tables_say_it_all(report, look, tree):
    seen = look(report, drawn=False, java_script_enabled=False)

    assert seen.page.locator("td .copy").count() == 6
    assert seen.page.locator("noscript p").is_visible()


def test_hostile_names_are_text_and_nothing_else(hostile, look, tmp_path):
    seen = look(write(hostile, tmp_path / "hostile.html"))
    page = seen.page
    for metric in range(len(HOSTILE_METRICS)):
        page.select_option("#metric", str(metric))
        assert marks(seen, CURVES)["points"] == 27
        hover(seen, CURVES, "best", 0)

    assert page.evaluate("document.scripts.length") == 4  # data, Plotly twice, ours
    assert page.locator("main img, main iframe, main a, [onerror], [onload]").count() == 0
    assert page.locator(f"{DISK} .ytick").filter(has_text="<img src=x onerror").count() == 1
    titles = [
        page.select_option("#metric", str(m)) and page.text_content(f"{CURVES} .ytitle")
        for m in range(len(HOSTILE_METRICS))
    ]
    assert "%{x}<br>$y$" in titles
    assert "</script><script>alert(4)</script>" in titles
    assert "\\u2028\\u202e&lt;&" in titles


def test_what_a_terminal_would_obey_is_copied_quoted(hostile, look, tmp_path):
    seen = look(write(hostile, tmp_path / "hostile.html"))
    seen.page.get_by_role("button", name="two\\nlines/step_1").first.click()

    assert seen.said().startswith("Copied $'")
    assert seen.clipboard() == f"$'{hostile}/two\\x0alines/step_1'"


def test_many_runs_begin_with_those_that_were_active_last(look, tmp_path):
    seen = look(write(fill(tmp_path / "root", count=100, runs=14), tmp_path / "many.html"))

    assert seen.page.locator(".chip[aria-pressed=true]").count() == 12
    assert marks(seen, CURVES)["lines"] == 12
    assert marks(seen, DISK)["bars"] == 12
    assert seen.page.inner_text("#disk-rest") == "2 more take 160.0 GB together"


def test_a_place_without_runs_says_so(look, tmp_path):
    from ckptdb import Registry

    (tmp_path / "root").mkdir()
    Registry.init(tmp_path / "root")[0].close()
    seen = look(write(tmp_path / "root", tmp_path / "empty.html"), drawn=False)

    assert seen.page.get_by_text("No run yet").is_visible()


def save_all(run, values):
    config = {
        "checkpoint_dir": run, "metric_name": "loss", "higher_is_better": False,
        "durability": "none",
    }  # fmt: skip
    with CheckpointManager(config) as manager:
        for step, value in values.items():
            with manager.save(step, {"loss": value}):
                pass


def labels(seen):
    return seen.page.locator(f"{CURVES} .xtick text").all_text_contents()


def test_steps_that_a_script_cannot_count_are_shown_exactly(look, tmp_path):
    first = 2**53 + 1
    steps = [first, first + 1, first + 2]
    save_all(tmp_path / "run", {step: 1 / (n + 1) for n, step in enumerate(steps)})
    seen = look(write(tmp_path / "run", tmp_path / "report.html"))

    drawn = seen.page.evaluate(
        "document.querySelector('#chart-metric').data.find((t) => t.meta === 'line').x"
    )
    assert drawn == [0, 1, 2]
    assert labels(seen) == [str(step) for step in steps]
    seen.page.evaluate("Plotly.Fx.hover('chart-metric', [{ curveNumber: 1, pointNumber: 1 }])")
    label = seen.page.locator(f"{CURVES} .hovertext text.nums").filter(has_text=str(steps[1]))
    label.wait_for()
    said = label.locator("tspan.line").all_text_contents()
    assert said[1] == f"step {steps[1]} · on disk"
    assert said[-1].endswith(f"/step_{steps[1]}")
    row = seen.page.locator("table").first.inner_text()
    assert row.count(str(steps[2])) >= 1


def test_a_run_from_0_to_the_highest_step_there_is_has_both_at_its_ends(look, tmp_path):
    save_all(tmp_path / "run", {0: 1.0, 2**63 - 1: 0.5})
    seen = look(write(tmp_path / "run", tmp_path / "report.html"))
    assert labels(seen)[0] == "0"
    assert labels(seen)[-1] == str(2**63 - 1)


def test_values_up_to_the_largest_number_there_is_are_drawn(look, tmp_path):
    largest = sys.float_info.max
    save_all(tmp_path / "run", {1: largest, 2: 1.0, 3: -largest})
    seen = look(write(tmp_path / "run", tmp_path / "report.html"))
    assert marks(seen, CURVES)["points"] == 3
    assert marks(seen, CURVES)["lines"] == 1
