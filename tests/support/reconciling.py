"""Runs on disk and in an index, for tests of reconciling them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.disk.publish import Publisher
from ckptdb.reconcile.run import reconcile_run
from ckptdb.reconcile.tree import reconcile_tree


def stage(run: Path, step: int, loss: float = 0.5, config: bytes | None = None) -> Path:
    raw = json.dumps({"loss": loss}).encode()
    path = Publisher(run).stage(step, raw, config).checkpoint.path
    (path / "model.pt").write_bytes(b"weights")
    return path


def save(run: Path, step: int, loss: float = 0.5, config: bytes | None = None):
    return Publisher(run).publish(stage(run, step, loss, config)).checkpoint


def seal(run: Path, step: int, loss: float = 0.5) -> str:
    """A tmp whose process died just before the rename."""
    publisher = Publisher(run)
    return publisher._seal(publisher.establish(), stage(run, step, loss), step, None).manifest.uuid


def put(run: Path, name: str, content: str | None = '{"loss": 0.5}', **files: str) -> Path:
    """A directory as NeMo-RL leaves it."""
    path = run / name
    path.mkdir(parents=True)
    if content is not None:
        (path / "training_info.json").write_text(content)
    for file, text in files.items():
        (path / file.replace("_json", ".json")).write_text(text)
    return path


def age(path: Path, seconds: float = 10) -> None:
    then = time.time() - seconds
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            os.utime(os.path.join(folder, name), (then, then), follow_symlinks=False)
        os.utime(folder, (then, then))


def rows(catalog: Catalog, status: str | None = None) -> dict[tuple[str, int], list[str]]:
    found: dict[tuple[str, int], list[str]] = {}
    for c in catalog.checkpoints.list_all(status=status):
        found.setdefault((c.run, c.step), []).append(c.status)
    return found


def live(catalog: Catalog) -> dict[int, str]:
    return {c.step: c.uuid for c in catalog.checkpoints.list_all(status="final")}


def everything(catalog: Catalog):
    runs = [(s.run, s.run.config) for s in catalog.runs.list_all()]
    return runs, [replace(c, fingerprint=None) for c in catalog.checkpoints.list_all()]


def kinds(report) -> list[str]:
    return sorted(action.kind for action in report.actions)


def reconcile(catalog: Catalog, run: Path, **options):
    """Reconcile, and check that doing it again does nothing and that a rebuild agrees."""
    report = reconcile_run(catalog, run, **options)
    after = everything(catalog)
    again = reconcile_run(catalog, run, **options)
    assert not again.has_changes, again.actions
    assert everything(catalog) == after
    if report.blocked is None:
        rebuilt = Catalog(Database.in_memory(base=catalog.database.location.base))
        reconcile_tree(rebuilt, run.parent, depth=options.get("depth", "files"))
        mine = {s.run.uuid for s in rebuilt.runs.list_all()}
        expected = [c for c in after[1] if c.run_uuid in mine]
        assert everything(rebuilt)[1] == expected
        rebuilt.database.close()
    return report
