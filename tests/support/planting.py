"""Trees to look at."""

import os
import random

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.core.times import utc
from ckptdb.web.data import take_snapshot
from ckptdb.web.report import write_report

HOSTILE_RUNS = (
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(2)>',
    "javascript:alert(3)",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egpj.exe",
    "=HYPERLINK(1)",
    "2024-01-01",
    "two\nlines",
)
HOSTILE_METRICS = (
    "</script><script>alert(4)</script>",
    "<a href='javascript:alert(5)'>loss</a>",
    "%{x}<br>$y$",
    "__proto__",
    "\u2028\u202e&lt;&",
)


def save(directory, step, metrics, *, size=1000, **options):
    """Save one checkpoint the way a loop does."""
    if "metric_name" in options:
        options.setdefault("higher_is_better", False)
    config = {"checkpoint_dir": directory, "durability": "none", **options}
    with CheckpointManager(config) as manager:
        with manager.save(step, metrics) as folder, (folder / "model.bin").open("wb") as file:
            file.truncate(size)
        return folder.with_name(f"step_{step}")


def plant(root):
    """Make a root with two runs that disagree about what is better, and one without a metric.

    ``up`` wants accuracy high and has kept steps 2 (0.9, the best) and 4 of four; ``down`` wants
    the loss low and has kept 10 (the best), 20 and 30, and an unfinished 40; ``plain`` has 5.
    """
    root.mkdir(parents=True)
    Registry.init(root)[0].close()
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.6), (4, 0.7)):
        metrics = {"val:acc": accuracy, "val:loss": 1 - accuracy}
        how = {"metric_name": "val:acc", "higher_is_better": True, "keep_top_k": 1}
        save(root / "up", step, metrics, size=5000, **how)
    for step, loss in ((10, 0.2), (20, 0.4), (30, 0.3)):
        save(root / "down", step, {"val:loss": loss}, metric_name="val:loss")
    CheckpointManager({"checkpoint_dir": root / "down"}).init_tmp_checkpoint(40, {"val:loss": 0.1})
    save(root / "plain", 5, {"note": "no numbers"})
    with Registry.open(root) as registry:
        registry.reconcile()
    return root


def plant_hostile(root):
    """Make a root in which every name tries to be more than a name."""
    root.mkdir(parents=True)
    Registry.init(root)[0].close()
    metrics = {name: 0.5 + i for i, name in enumerate(HOSTILE_METRICS)}
    directories = [*HOSTILE_RUNS, os.fsdecode(b"not-utf8-\xff")]
    for i, name in enumerate(directories):
        metric = HOSTILE_METRICS[i % len(HOSTILE_METRICS)]
        for step in (1, 2, 3):
            told = {key: value * step for key, value in metrics.items()}
            save(root / name, step, told, metric_name=metric, keep_top_k=1)
    with Registry.open(root) as registry:
        registry.reconcile()
    return root


def fill(root, *, count, runs=1, live=5, names=("val:loss", "a", "b", "c")):
    """Put that many checkpoints of each run into a catalog, most of them deleted; no files."""
    root.mkdir()
    Registry.init(root)[0].close()
    numbers = random.Random(3)
    database = Database.open(locate(root), create=True)
    with database.write() as connection:
        for run in range(1, runs + 1):
            put(connection, "runs", {
                "id": run, "uuid": f"u{run}", "name": f"run-{run}", "directory": f"run-{run}",
                "metric_name": names[0],
            })  # fmt: skip
            for step in range(count):
                row_id = run * 10_000_000 + step
                gone = step < count - live
                at = utc(1_767_225_600 + step * 420)
                why = f"retention: not best 3 by {names[0]} min ({step})"
                put(connection, "checkpoints", {
                    "id": row_id, "uuid": f"c{row_id}", "run_id": run, "step": step * 10,
                    "path": f"run-{run}/step_{step * 10}", "created_at": at, "finalized_at": at,
                    "size_bytes": 16_000_000_000, "file_count": 9,
                    "status": "deleted" if gone else "final",
                    "deleted_at": at if gone else None, "deleted_reason": why if gone else None,
                })  # fmt: skip
                for name in names:
                    put(connection, "metrics", {
                        "checkpoint_id": row_id, "name": name, "run_id": run, "step": step * 10,
                        "value": 1e6 if step == 7 else numbers.random(), "live": int(not gone),
                        "source": "training_info", "reported_at": at,
                    })  # fmt: skip
    database.close()
    return root


def put(connection, table, row):
    """Put a row into a catalog."""
    # By the driver itself: there are hundreds of thousands.
    raw = connection.connection.dbapi_connection
    marks = ", ".join("?" * len(row))
    raw.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


def write(tree, file):
    """Write the report of a tree; return its address."""
    with Registry.open(tree) as registry:
        file.write_text(write_report(take_snapshot(registry)), encoding="utf-8")
    return file.as_uri()
