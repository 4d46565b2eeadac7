import json
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.planting import HOSTILE_METRICS, fill, plant, save, write

from ckptdb import Registry
from ckptdb.web.data import take_snapshot
from ckptdb.web.report import drawn, embed_json, write_report

CKPTDB = Path(sys.executable).with_name("ckptdb")


def run(*command, **options):
    return subprocess.run(
        [CKPTDB, *command], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.slow
@given(st.recursive(st.text() | st.integers(), st.lists))
def test_embedded_json_cannot_leave_its_element_and_means_the_same(content):
    embedded = str(embed_json(content))

    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == content


@pytest.mark.slow
def test_the_report_is_one_file_that_names_no_other(tree, tmp_path):
    written = run("-C", tree, "report", "-o", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()

    assert (written.returncode, written.stderr) == (0, "")
    assert written.stdout == f"{tmp_path}/r.html shows 3 run(s); open it in a browser.\n"
    assert re.findall(r"""(?:src|href|action)=["'](?!#)(.*?)["']""", text) == ["data:,"]
    assert "url(" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.slow
def test_what_is_no_file_is_written_to_and_not_replaced(tree, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen([CKPTDB, "-C", tree, "report", "-o", tmp_path / "pipe"]) as process:
        assert (tmp_path / "pipe").read_text().startswith("<!doctype html>")
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.slow
def test_a_link_is_followed(tree, tmp_path):
    (tmp_path / "report.html").symlink_to(tmp_path / "elsewhere.html")

    assert run("-C", tree, "report", "-o", tmp_path / "report.html").returncode == 0
    assert (tmp_path / "report.html").is_symlink()
    assert (tmp_path / "elsewhere.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_report_goes_to_standard_output_too(tree):
    assert run("-C", tree, "report", "-o", "-").stdout.startswith("<!doctype html>")


@pytest.mark.slow
def test_the_report_of_a_run_shows_what_has_just_been_put_into_it(tmp_path):
    run_directory = plant(tmp_path / "results") / "plain"
    copytree(run_directory / "step_5", run_directory / "step_7")

    assert f"{run_directory}/step_7" in run("-C", run_directory, "report", "-o", "-").stdout


def test_the_same_catalog_gives_the_same_report(tree):
    with Registry.open(tree) as registry:
        first, second = (write_report(take_snapshot(registry, now=1e9)) for _ in range(2))

    assert first == second


def test_names_are_text_wherever_they_stand(hostile, tmp_path):
    write(hostile, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    page = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)

    assert re.findall(r"<(?:img|svg|script|a href=.javascript)\b", page) == []
    assert not {"\x1b", "\x07", "\u202e", "\u2028"} & set(text)
    assert "\\x1b[31mred" in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert len(re.findall(r"</script", text)) == 3  # data, Plotly and ours


def test_what_is_drawn_is_written_in_columns(tree):
    with Registry.open(tree) as registry:
        content = drawn(take_snapshot(registry))
    down, plain, up = content["runs"]

    assert content["metrics"] == ["val:acc", "val:loss"]
    assert content["directions"] == ["higher is better", "lower is better"]
    assert (up["step"], up["status"], up["best"], up["latest"]) == ([1, 2, 3, 4], "dfdf", 1, 3)
    assert up["value"][0] == [0.5, 0.9, 0.6, 0.7]
    assert (down["value"][0], down["status"], down["mode"]) == (None, "ffft", "min")
    assert (plain["metric"], plain["value"]) == (None, [None, None])
    assert up["directory"] == str(tree / "up")
    assert "paths" not in up


@pytest.mark.slow
def test_a_metric_that_runs_disagree_about_has_no_direction(tmp_path):
    Registry.init(tmp_path)[0].close()
    for name, higher in (("a", True), ("b", False)):
        save(tmp_path / name, 1, {"x": 1.0}, metric_name="x", higher_is_better=higher)
    with Registry.open(tmp_path) as registry:
        content = drawn(take_snapshot(registry))

    assert content["directions"] == ["some runs want it low, some high"]


@pytest.mark.slow
def test_a_metric_that_no_run_is_judged_by_has_no_direction(hostile):
    with Registry.open(hostile) as registry:
        snapshot = take_snapshot(registry)
    judged_by = {shown.run.metric_name for shown in snapshot.runs}

    assert judged_by == set(HOSTILE_METRICS)
    assert set(drawn(snapshot)["directions"]) == {"lower is better"}


@pytest.mark.slow
@pytest.mark.parametrize("live", [5, 1_000], ids=["mostly deleted", "all kept"])
def test_sixty_runs_of_a_thousand_stay_below_five_megabytes(tmp_path, live):
    root = fill(tmp_path / "root", count=1_000, runs=60, live=live)
    with Registry.open(root) as registry:
        text = write_report(take_snapshot(registry))

    assert text.count('"label":') == 60
    assert len(text.encode()) < 5_000_000


@pytest.mark.slow
def test_without_the_libraries_one_sentence_says_what_to_install(tree, tmp_path):
    script = (
        "import sys; sys.modules[sys.argv[1]] = None; from ckptdb.cli.main import main;"
        "main(sys.argv[2:])"
    )
    for missing, command, extra in (
        ("jinja2", "report", "report"),
        ("plotly", "report", "report"),
        ("jinja2", "serve", "web"),
        ("datasette", "serve", "web"),
        ("uvicorn", "serve", "web"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, missing, "-C", tree, command],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.stderr == (
            f"ckptdb: `ckptdb {command}` needs {missing}, not installed here: "
            f"`pip install 'ckptdb[{extra}]'`.\n"
        )
        assert (done.returncode, done.stdout) == (1, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nobody_else_loads_what_only_the_page_needs(tree):
    heavy = {"datasette", "jinja2", "plotly", "uvicorn"}
    script = (
        "import sys\nfrom ckptdb.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    for command in (["ls"], ["--help"], ["sql", "SELECT 1"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "-C", tree, *command],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert not heavy & set(done.stderr.split()), command


@pytest.mark.slow
def test_a_place_without_checkpoints_ends_with_a_sentence(tmp_path):
    done = run("-C", tmp_path, "report", "-o", "-")

    assert done.returncode == 10
    assert done.stderr.startswith("ckptdb: No catalog and no checkpoints at ")
