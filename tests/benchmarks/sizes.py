"""How much is measured: as the targets ask, or as little as still means something."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The sizes of every line.

    Attributes:
        kept: Checkpoints of a run, for questions.
        history: Deleted ones beside five that live.
        saved: Checkpoints kept, for saves.
        rounds: How often each way is taken in turn, at least.
        seconds: How long the turns of one comparison may go on.
        files: Small files of one checkpoint.
        shard_bytes: Size of each of eight large files of one checkpoint.
        tree: Checkpoints that are reconciled.
        slow: Checkpoints that are reconciled on a slow file system.
        catalog: Checkpoints of the large catalog.
        runs: Runs of the large catalog.
        peers: Checkpoints that other libraries keep.
        shown_runs: Runs of the catalog that is looked at.
        shown_each: Checkpoints of each of them.
    """

    name: str
    kept: tuple[int, ...]
    history: int
    saved: tuple[int, ...]
    rounds: int
    seconds: float
    files: int
    shard_bytes: int
    tree: int
    slow: int
    catalog: int
    runs: int
    peers: int
    shown_runs: int
    shown_each: int


FULL = Size(
    name="full",
    kept=(10, 100, 1_000, 10_000, 100_000),
    history=100_000,
    saved=(4, 50, 1_000, 10_000),
    rounds=5,
    seconds=6.0,
    files=1_000,
    shard_bytes=128 << 20,
    tree=100_000,
    slow=1000,
    catalog=1_000_000,
    runs=500,
    peers=100,
    shown_runs=60,
    shown_each=1_000,
)

QUICK = Size(
    name="quick",
    kept=(10, 100, 1_000),
    history=2_000,
    saved=(4, 50, 500),
    rounds=3,
    seconds=0.4,
    files=100,
    shard_bytes=1 << 20,
    tree=1_000,
    slow=50,
    catalog=10_000,
    runs=50,
    peers=10,
    shown_runs=6,
    shown_each=100,
)
