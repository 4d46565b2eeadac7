"""Types of what the files of a run say: identity, manifest, leftovers, observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ckptdb.core import process
from ckptdb.core.facts import Facts
from ckptdb.core.process import Life, Process
from ckptdb.core.ranking import RankedBy
from ckptdb.core.records import Checkpoint, Run
from ckptdb.core.stamp import Stamp


@dataclass(frozen=True, slots=True)
class KnownFingerprints:
    """Facts about a run that the caller knows, and that need not be read again.

    Attributes:
        finals: Uuid and fingerprint of each published checkpoint, by step.
        journal_bytes: Size of the journal that has been read; None to read it again.
        config: True if the run's configuration is known as long as no checkpoint is new or gone.
        configless: True if it is known that no checkpoint has a configuration.
    """

    finals: Mapping[int, tuple[str, str | None]] = field(default_factory=dict)
    journal_bytes: int | None = None
    config: bool = False
    configless: bool = False


@dataclass(frozen=True, slots=True)
class Tmp:
    """A ``tmp_step_N`` directory.

    Attributes:
        published_uuid: Uuid that the checkpoint has, or had, under its final name.
        manifest: Its presence says that all bytes are durable and only the name is missing.
        writer: Process that stages it, if recorded.
        fate: ``publish`` it under its final name, put it in the ``trash`` because it holds what
            has been replaced, or None: it is not ours to move.
        life: State of its writer, as far as it is known.
        blocked: It is complete, and its final name is taken by what is no checkpoint of this run:
            a file, or a symlink.
        abandoned: Nobody will continue it: its writer is dead, or cannot be asked and has not
            touched it for `liveness.UNTOUCHED_SECONDS`.
    """

    checkpoint: Checkpoint
    published_uuid: str
    manifest: Manifest | None
    writer: Writer | None
    fate: Literal["publish", "trash"] | None
    life: Life = "unknown"
    abandoned: bool = False
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Leftover:
    """A directory that a crash left between two steps of ours.

    Attributes:
        recorded: False when it was retired on a disk too full for the line in the journal, or
            when nobody knows whether it was.
        until: Until when it can be undeleted, in seconds since the epoch.
        identified: False when it may be anything: no file of it says that it is a checkpoint.
    """

    path: Path
    step: int
    uuid: str
    recorded: bool = True
    until: int | None = None
    identified: bool = True

    def is_due(self, now: float) -> bool:
        """Tell whether the time in which it could be undeleted is over."""
        return self.until is not None and self.until <= now


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Contents of a run directory.

    Attributes:
        finals: Published checkpoints by step; None for one that has not changed.
        config: Of the highest step that has one, empty when none has; None when the caller
            knows it.
        trash: What is retired, except for what can be undeleted yet; also what could not be moved
            into the trash, and is being deleted where it stands.
        facts: What the journal says, and the trash on its behalf; None when it has not grown
            since the caller read it.
        foreign: Names that look like ours and are not (``step_007``, a file ``step_5``).
        unreadable: By name, why a directory could not be read that is there. Which checkpoint
            it is cannot be told, so nothing of its step may be taken for deleted.
        leased: uuids in the trash whose bytes an evaluator is still using.
        unsure: Something could not be read now, and may be readable at the next look without
            anything having moved the stamp.
        doubts: By step, why files could not be compared with a manifest, if that was asked.
        errors: What else could not be read, in words; while there are any, nothing at all that
            is missing may be taken for deleted.
    """

    identity: Identity
    stamp: Stamp
    settled: bool
    finals: Mapping[int, Checkpoint | None]
    tmps: Mapping[int, Tmp]
    olds: tuple[Leftover, ...]
    trash: tuple[Leftover, ...]
    foreign: tuple[str, ...]
    facts: Facts | None
    config: Mapping[str, Any] | None
    errors: tuple[str, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    leased: frozenset[str] = frozenset()
    unsure: bool = False
    doubts: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Identity:
    """A run as recorded in its directory.

    Attributes:
        origin: uuid of the first run in the chain of copies; checkpoints without a manifest
            derive theirs from it, so that a copy keeps them.
        recorded: run.json is there and speaks of this directory.
        marked: run.json is there, perhaps copied from elsewhere.
        pruned_by: By what the last prune ranked, when that is not the run's own metric as it is
            recorded by now; until a prune has gone by the new one, it protects what it keeps.
        problem: Why run.json cannot be trusted, or None.
    """

    run: Run
    origin: str
    recorded: bool
    marked: bool
    pruned_by: RankedBy | None = None
    problem: str | None = None

    @property
    def ranked_by(self) -> RankedBy | None:
        """By what the run has been ranked until now, None when that is not recorded."""
        known = self.run.ranked_by if self.run.metric_name is not None else None
        return self.pruned_by or known


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Contents of manifest.json.

    Attributes:
        parent: uuid of the checkpoint that training continued from.
        replaces: uuid of the published checkpoint that this one takes the place of.
        files: Size in bytes by path below the checkpoint, POSIX style; the manifest itself
            is not among them.
        checksums: By the same names, ``algorithm:hexadecimal digits``; of none when nobody wanted
            them, or whoever did has not come to it.
        targets: Of the files that are links to a file, by the same names, the size in bytes of
            what they lead to.
    """

    uuid: str
    step: int
    created_at: str
    finalized_at: str
    parent: str | None
    replaces: str | None
    files: Mapping[str, int]
    checksums: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, int] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Sum over the listed files."""
        return sum(self.files.values())


class Locked(NamedTuple):
    """A locked file, as its process saw it.

    Attributes:
        system: Kind of the file system, as the kernel numbers them.
    """

    system: int
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Writer(Process):
    """The process that stages a checkpoint.

    Attributes:
        lock: On which file it holds the lock as long as it stages; None where it holds none.
        has_write_lock: True if it also holds a write lock, which nobody can take who may only
            read the file.
    """

    uuid: str
    created_at: str
    lock: Locked | None = None
    has_write_lock: bool = False

    @classmethod
    def this_process(cls, checkpoint_uuid: str, created_at: str) -> Writer:
        """Describe the calling process."""
        return cls(checkpoint_uuid, created_at, **process.this_process())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"
