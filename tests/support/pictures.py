"""Take the pictures of README.md and docs/ again: ``python -m tests.support.pictures``."""

from __future__ import annotations

import io
import math
import random
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME, TerminalTheme
from rich.text import Text
from tests.terminal import Terminal
from tests.web.planting import put

from ckptdb import Registry
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.core.times import utc
from ckptdb.web.data import take_snapshot
from ckptdb.web.report import write_report

SHOWN = "/data/results"
FOLDER = Path(__file__).parents[2] / "docs/pictures"
_BEGIN = 1_795_000_000.0
_STEP_SECONDS = 5_400
_COLUMNS = 96
_PLOT = ("plot", "--run", "grpo-8b", "--run", "grpo-8b-kl0.1", "--run", "grpo-8b-lr3e-6")
# Every character in a cell of its own: a fallback font's dots are of another width.
_SCREEN = """<!DOCTYPE html>
<style>
  body {{ margin: 0; display: inline-block; background: {background}; color: {foreground}; }}
  pre {{ margin: 0; padding: 18px; font: 14px/1.15 "DejaVu Sans Mono", monospace; }}
  i {{ display: inline-block; width: 1ch; font-style: normal; }}
</style>
<pre>{code}</pre>
"""
_LIGHT = TerminalTheme((255, 255, 255), (36, 41, 47), [(0, 0, 0)] * 8)


def plant(root: Path) -> None:
    """Make a catalog of five runs that look like somebody's week."""
    Registry.init(root)[0].close()
    numbers = random.Random(7)
    database = Database.open(locate(root), create=True)
    with database.write() as connection:
        for run, (name, metric, up, size, saves) in enumerate((
            ("grpo-8b", "val:accuracy", 1, 16_000_000_000, 60),
            ("grpo-8b-kl0.1", "val:accuracy", 1, 16_000_000_000, 44),
            ("grpo-8b-lr3e-6", "val:accuracy", 1, 16_000_000_000, 30),
            ("sft-8b", "val:loss", 0, 16_000_000_000, 24),
            ("sft-1b", "val:loss", 0, 2_400_000_000, 36),
        )):  # fmt: skip
            put(connection, "runs", {
                "id": run, "uuid": f"u{run}", "name": name, "directory": name,
                "metric_name": metric, "higher_is_better": up,
            })  # fmt: skip
            _plant_run(connection, numbers, run, name, up, size, saves)
    database.close()


def _plant_run(connection, numbers, run, name, up, size, saves):
    told = []
    for i in range(1, saves + 1):
        accuracy = 0.44 + 0.02 * run + 0.3 * (1 - math.exp(-i / 14)) + numbers.gauss(0, 0.012)
        loss = 2.2 * math.exp(-i / 12) + 1.1 - 0.1 * run + numbers.gauss(0, 0.02)
        told.append({
            "val:accuracy": accuracy, "val:loss": loss, "train:reward": 2 * accuracy - 0.3,
            "train:kl": 0.004 * i + abs(numbers.gauss(0, 0.004)),
        })  # fmt: skip
    metric = "val:accuracy" if up else "val:loss"
    order = sorted(range(saves), key=lambda i: told[i][metric], reverse=bool(up))
    kept = {*order[:3], saves - 1, saves - 2}
    for i, metrics in enumerate(told):
        row_id, step = run * 1000 + i, 50 * (i + 1)
        at = _BEGIN + run * 70_000 + i * _STEP_SECONDS * (1 + 0.1 * numbers.random())
        way = "max" if up else "min"
        why = f"retention: not best 3 by {metric} {way} ({metrics[metric]:.6g}), not latest 2"
        gone = i not in kept
        put(connection, "checkpoints", {
            "id": row_id, "uuid": f"c{row_id}", "run_id": run, "step": step,
            "path": f"{name}/step_{step}", "created_at": utc(at), "finalized_at": utc(at + 90),
            "size_bytes": size, "file_count": 12, "status": "deleted" if gone else "final",
            "deleted_at": utc(at + 3 * _STEP_SECONDS) if gone else None,
            "deleted_reason": why if gone else None,
        })  # fmt: skip
        for what, value in metrics.items():
            put(connection, "metrics", {
                "checkpoint_id": row_id, "name": what, "run_id": run, "step": step,
                "value": value, "live": int(not gone), "source": "training_info",
                "reported_at": utc(at),
            })  # fmt: skip
    if name == "grpo-8b":
        put(connection, "checkpoints", {
            "id": 999_999, "uuid": "unfinished", "run_id": run, "step": 50 * (saves + 1),
            "path": f"{name}/tmp_step_{50 * (saves + 1)}", "created_at": utc(at + _STEP_SECONDS),
            "status": "tmp",
        })  # fmt: skip


def main() -> None:
    """Write the pictures into `FOLDER`."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "results"
        root.mkdir()
        plant(root)
        with Registry.open(root) as registry:
            snapshot = take_snapshot(registry, now=_BEGIN + 420_000)
        page = Path(scratch) / "report.html"
        page.write_text(write_report(snapshot).replace(str(root), SHOWN), encoding="utf-8")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            for scheme in ("light", "dark"):
                _shoot(browser, page, FOLDER / f"page-{scheme}.webp", scheme)
            said = _say(root, *_PLOT)
            for scheme, theme in (("light", _LIGHT), ("dark", SVG_EXPORT_THEME)):
                page.write_text(_screen(said, theme), encoding="utf-8")
                _shoot_screen(browser, page, FOLDER / f"plot-{scheme}.webp")
            browser.close()


def _shoot(browser, page, file, scheme):
    context = browser.new_context(viewport={"width": 1200, "height": 1120}, color_scheme=scheme)
    shown = context.new_page()
    shown.goto(page.as_uri())
    shown.wait_for_selector("body[data-drawn]")
    shown.screenshot(path=file, type="webp", quality=80)
    _tell(file)
    context.close()


def _say(root, *arguments):
    """Return a command and what it prints on a terminal, escapes for colour included."""
    command = [sys.executable, "-m", "ckptdb", *arguments]
    with Terminal(command, columns=_COLUMNS, env={"TERM": "xterm-256color"}, cwd=root) as terminal:
        if terminal.wait():
            raise SystemExit(terminal.text)
        said = f"$ {shlex.join(('ckptdb', *arguments))}\n\n{terminal.raw}"
        return said.replace("\r", "").replace(str(root), SHOWN)


def _screen(said, theme):
    console = Console(
        record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", legacy_windows=False,
    )  # fmt: skip
    console.print(Text.from_ansi(said))
    page = console.export_html(theme=theme, inline_styles=True, code_format=_SCREEN)
    return re.sub("[\u2000-\u2fff]", lambda match: f"<i>{match[0]}</i>", page)


def _shoot_screen(browser, page, file):
    context = browser.new_context(viewport={"width": 1200, "height": 800}, device_scale_factor=1.5)
    shown = context.new_page()
    shown.goto(page.as_uri())
    shown.locator("body").screenshot(path=file, type="webp", quality=80)
    _tell(file)
    context.close()


def _tell(file):
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
