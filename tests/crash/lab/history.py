"""Whether a history of concurrent operations, and what is left after them, can both be true.

In the spirit of Jepsen's and etcd's checks, with our own semantics. An operation has a call and
usually a return; one whose process died in between is *cut*: it may have happened, in part or
altogether, and what it left may be finished by anybody later. The rules:

1.  An acknowledged save is, in the end, either live with exactly its bytes or recorded as gone.
2.  Never both, never twice. Nothing is live or recorded that nobody saved.
3.  A recorded end is explained: *replaced* by another save of that step, one end for each such
    save, and that save was published; *retention* by a prune or gc at that time whose policy
    says exactly these words and allows it: so many better or newer ones may have been there;
    *by hand* by a removal of that step; *discarded* only when the save was not acknowledged,
    and its process had failed or died by then. Nothing *vanished*, for nobody used ``rm``.
4.  What was known to be pinned before a prune began, and was not unpinned, was not pruned.
5.  Pin, tags and late metrics are what the last acknowledged operation said; of concurrent and
    of cut ones, any.
6.  A question was answered by a checkpoint that was live at some time between call and return,
    and no better one (for *latest*: no newer one) was there for all of that time.
7.  A name was missing, or a directory that was being read lost its files, only when something
    at that step ended meanwhile. What was read was whole, all of one save.
8.  An operation failed only in a way that concurrency explains.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

SLACK_SECONDS = 0.005
"""Times in the journal have a millisecond's precision and come from another clock."""
NEVER = math.inf

Kind = Literal["lost", "half_visible", "not_recovered"]
Policy = tuple[int | None, int | None]
"""keep_top_k and ft_keep_latest_k."""


class Violation(NamedTuple):
    """What cannot be true."""

    kind: Kind
    what: str


@dataclass(slots=True)
class Op:
    """One operation of one process.

    Attributes:
        kind: ``save``, ``prune``, ``gc``, ``rm``, ``pin``, ``unpin``, ``tag``, ``untag``,
            ``metric``, ``best``, ``top`` (a registry's best), ``latest``, ``get``, ``list``,
            ``open`` or anything else.
        acked: When it was known to have succeeded; `NEVER` when it was not.
        ended: When nothing of it could happen any more: its return, or when its process was known
            to be dead.
        alive_until: Until when its process is sure to have lived, when that died in between.
        token: Of a save, what it wrote; of an annotation, what it was about, when that is known.
        error: Name of what it raised; ``cut`` when its process died. Of ``open``: ``missing``
            (no such name), ``emptied`` (files were, in a directory that had lost its name
            meanwhile) or ``half``.
        answer: A token, a list of them, or a step; what went wrong, in words.
    """

    id: str
    kind: str
    run: str = ""
    step: int | None = None
    called: float = 0.0
    acked: float = NEVER
    ended: float = NEVER
    alive_until: float | None = None
    token: str | None = None
    loss: float | None = None
    publishes: bool = True
    policy: Policy | None = None
    key: str = ""
    value: Any = None
    error: str | None = None
    answer: Any = None

    def covers(self, moment: float) -> bool:
        """Whether it may have done something at that moment."""
        return self.called - SLACK_SECONDS <= moment <= self.ended + SLACK_SECONDS


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint as the index has it in the end.

    Attributes:
        ended: When its end was recorded, by the clock of the history.
    """

    run: str
    step: int
    token: str | None
    status: str
    reason: str | None = None
    ended: float = NEVER
    pinned: bool = False
    tags: frozenset[str] = frozenset()
    late: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """What is left.

    Attributes:
        live: By run and step, the token of each published directory; something that says
            ``half`` when its files are not those of one save.
    """

    found: Sequence[Found]
    live: Mapping[tuple[str, int], str]


def check(ops: Iterable[Op], state: State) -> list[Violation]:
    """Return everything that cannot be true."""
    return list(_History(list(ops), state).violations())


def rank(loss: float | None, step: int) -> tuple[bool, float, int]:
    """Sort key of the ranking, written once more: the smallest loss first, ties to the newer."""
    unranked = loss is None or not math.isfinite(loss)
    return (unranked, 0.0 if unranked else loss, -step)


def retention_reason(policy: Policy, loss: float | None) -> str:
    """Return the words in which a policy lets a checkpoint go."""
    top, newest = policy
    reasons = []
    if top is not None:
        shown = f"{loss:.6g}" if loss is not None and math.isfinite(loss) else "no value"
        reasons.append(f"not best {top} by loss min ({shown})")
    if newest is not None:
        reasons.append(f"not latest {newest}")
    return "retention: " + ", ".join(reasons)


class _History:
    def __init__(self, ops: list[Op], state: State) -> None:
        self.ops = ops
        self.state = state
        self.saves = {op.token: op for op in ops if op.kind == "save" and op.token}
        self.rows = {row.token: row for row in state.found if row.token}
        self.by_run: dict[str, list[Op]] = defaultdict(list)
        self.by_step: dict[tuple[str, int | None], list[Op]] = defaultdict(list)
        self.saves_of_run: dict[str, list[Op]] = defaultdict(list)
        for op in ops:
            self.by_run[op.run].append(op)
            self.by_step[op.run, op.step].append(op)
            if op.kind == "save":
                self.saves_of_run[op.run].append(op)
        self._gone_by: dict[str, float] = {}

    def violations(self) -> Iterator[Violation]:
        yield from self._failures()
        yield from self._saves()
        yield from self._strangers()
        yield from self._ends()
        yield from self._replacements()
        yield from self._annotations()
        yield from self._answers()

    # --- what is left -------------------------------------------------------------------

    def _saves(self) -> Iterator[Violation]:
        for token, save in self.saves.items():
            row = self.rows.get(token)
            live = self.state.live.get((save.run, save.step or 0)) == token
            if live and not save.publishes:
                yield Violation("half_visible", f"{token} is live and was never to be published")
            if live and row is not None and row.status != "final":
                yield Violation("lost", f"{token} is live and recorded as {row.status}")
            if live and row is None:
                yield Violation("lost", f"{token} is live and not in the index")
            if save.acked < NEVER and not live and (row is None or row.status != "deleted"):
                where = "nowhere" if row is None else f"recorded as {row.status}, not there"
                yield Violation("lost", f"acknowledged {_named(save)} is {where}")

    def _strangers(self) -> Iterator[Violation]:
        for (run, step), token in self.state.live.items():
            save = self.saves.get(token)
            if save is None or (save.run, save.step) != (run, step):
                yield Violation("half_visible", f"{run}/step_{step} holds {token}")
        seen: set[str | None] = set()
        for row in self.state.found:
            if row.token is None and self._died_at_once(row):
                continue
            save = self.saves.get(row.token or "")
            if save is None or (save.run, save.step) != (row.run, row.step):
                yield Violation("not_recovered", f"nobody saved the recorded {row}")
            if row.token in seen:
                yield Violation("not_recovered", f"{row.token} is recorded twice")
            seen.add(row.token)

    def _died_at_once(self, row: Found) -> bool:
        """Whether it may be the directory of a save that died before its first file was whole."""
        unfinished = row.status == "tmp" or _is(row, "discarded: left unfinished")
        saves = (op for op in self.by_step[row.run, row.step] if op.kind == "save" and op.error)
        return unfinished and any(op.called <= row.ended for op in saves)

    # --- ends ---------------------------------------------------------------------------

    def _ends(self) -> Iterator[Violation]:
        for row in self._gone:
            save = self.saves.get(row.token or "")
            if save is None or _is(row, "replaced"):
                continue  # a stranger; or matched below, all of a step together
            if not self._explanations(row, save):
                yield Violation("lost", f"the end of {_named(save)} is not explained: {row}")

    @cached_property
    def _gone(self) -> list[Found]:
        return [row for row in self.state.found if row.status == "deleted"]

    def _explanations(self, row: Found, save: Op) -> list[Op]:
        at = row.ended
        if _is(row, "replaced"):
            return [op for op in self._replacers(row) if op.covers(at)]
        if _is(row, "retention"):
            return [op for op in self.by_run[row.run] if self._pruned(op, row, save)]
        if row.reason == "by hand":
            removals = (op for op in self.by_step[row.run, row.step] if op.kind == "rm")
            return [op for op in removals if op.covers(at)]
        if _is(row, "discarded") and save.acked == NEVER:
            return [op for op in self._discarders(row, save) if op.covers(at)]
        return []

    def _replacers(self, row: Found) -> Iterator[Op]:
        for op in self.by_step[row.run, row.step]:
            if op.kind == "save" and op.publishes and op.token != row.token:
                end = self.rows.get(op.token or "")
                if end and (end.status == "final" or not _is(end, "discarded")):
                    # What is left of a cut one may be published by anybody later.
                    yield op if op.acked < NEVER else _open_ended(op)

    def _discarders(self, row: Found, save: Op) -> Iterator[Op]:
        if row.reason == "discarded: the save raised an error":
            if not save.publishes or save.error:
                yield save
            return
        alive_until = save.ended if save.alive_until is None else save.alive_until
        if alive_until > row.ended + SLACK_SECONDS:
            return
        again = row.reason == "discarded: left unfinished, the step was saved again"
        removed = row.reason == "discarded: left unfinished, removed by gc"
        for op in self.by_run[row.run]:
            if (again and op.kind == "save" and op.step == row.step) or (
                removed and op.kind == "gc"
            ):
                yield op

    def _pruned(self, op: Op, row: Found, save: Op) -> bool:
        if op.policy is None or (op.kind == "save" and not op.publishes):
            return False
        if op.kind not in ("save", "prune", "gc") or not op.covers(row.ended):
            return False
        if row.reason != retention_reason(op.policy, save.loss):
            return False
        return self._allows(op, row, save) and not self._was_pinned(op, row)

    def _allows(self, op: Op, row: Found, save: Op) -> bool:
        top, newest = op.policy or (None, None)
        better, newer = set(), set()
        for other in self.saves_of_run[row.run]:
            if other.step == row.step or not other.publishes or other.called > row.ended:
                continue
            if self.gone_by(other) < op.called:
                continue
            if rank(other.loss, other.step or 0) < rank(save.loss, row.step):
                better.add(other.step)
            if (other.step or 0) > row.step:
                newer.add(other.step)
        return len(better) >= (top or 0) and len(newer) >= max(newest or 0, 1)

    def _was_pinned(self, op: Op, row: Found) -> bool:
        """Whether it was known to be pinned before the operation began, and stayed so."""
        marks = [o for o in self.by_step[row.run, row.step] if o.kind in ("pin", "unpin")]
        pins = [o for o in marks if o.kind == "pin" and o.token == row.token]
        last = max((o for o in pins if o.acked < op.called), key=_acked, default=None)
        if last is None:
            return False
        return not any(
            o.kind == "unpin" and o.ended > last.called and o.called < row.ended for o in marks
        )

    def _replacements(self) -> Iterator[Violation]:
        groups: dict[tuple[str, int], list[Found]] = defaultdict(list)
        for row in self._gone:
            if _is(row, "replaced") and row.token in self.saves:
                groups[row.run, row.step].append(row)
        for rows in groups.values():
            for row in _unmatched(rows, {id(r): self._tokens(r) for r in rows}):
                named = _named(self.saves[row.token or ""])
                yield Violation("lost", f"nobody replaced {named}: {row}")

    def _tokens(self, row: Found) -> list[str]:
        return [op.token or "" for op in self._replacers(row) if op.covers(row.ended)]

    def gone_by(self, save: Op) -> float:
        """When a save's checkpoint was certainly not there any more."""
        token = save.token or ""
        if token not in self._gone_by:
            self._gone_by[token] = self._find_gone_by(save)
        return self._gone_by[token]

    def _find_gone_by(self, save: Op) -> float:
        row = self.rows.get(save.token or "")
        if row is None or row.status != "deleted":
            return NEVER
        # Whoever recorded it, also one that finished what another had begun, did so in one of
        # these, and has been through with it when that ended.
        return max(
            (op.ended for op in self.by_run[row.run] + self.by_run[""] if op.covers(row.ended)),
            default=NEVER,
        )

    # --- annotations --------------------------------------------------------------------

    def _annotations(self) -> Iterator[Violation]:
        for row in self.state.found:
            for key, now in self._annotated(row).items():
                said = self._sayings(row, key)
                last = max((op.called for op in said if op.acked < NEVER), default=-NEVER)
                sure = [op for op in said if op.acked < NEVER]
                values = {op.value for op in said if not _superseded(op, sure)}
                if last == -NEVER:
                    values.add(None)
                if now not in values:
                    what = f"{key} of {row.token} is {now!r}, and should be one of {values}"
                    yield Violation("lost", what)

    def _annotated(self, row: Found) -> dict[str, Any]:
        keys = {op.key for op in self.by_step[row.run, row.step] if op.key}
        told: dict[str, Any] = {"pin": True if row.pinned else None}
        told |= {f"tag {name}": True for name in row.tags}
        told |= {f"metric {name}": value for name, value in row.late.items()}
        return {key: told.get(key) for key in keys | set(told)}

    def _sayings(self, row: Found, key: str) -> list[Op]:
        ops = self.by_step[row.run, row.step]
        return [op for op in ops if op.key == key and op.token in (row.token, None)]

    # --- answers ------------------------------------------------------------------------

    def _answers(self) -> Iterator[Violation]:
        for op in self.ops:
            if op.kind == "open":
                yield from self._opened(op)
            elif op.kind in _QUESTIONS and op.acked < NEVER:
                yield from self._question(op)

    def _question(self, op: Op) -> Iterator[Violation]:
        if isinstance(op.answer, int):
            tokens = self._standing(op, op.answer)
            if not tokens:
                what = f"{op.kind} of {op.run} ({op.id}) answered step {op.answer}, never live then"
                yield Violation("half_visible", what)
                return
        else:
            tokens = op.answer if isinstance(op.answer, list) else [op.answer] * bool(op.answer)
            for token in tokens:
                yield from self._was_live(op, token)
        missing = self._missing(op, tokens)
        if missing:
            there = ", ".join(sorted(map(str, missing)))
            what = f"{op.kind} of {op.run} ({op.id}) answered {op.answer}, though there was {there}"
            yield Violation("not_recovered", what)

    def _standing(self, op: Op, step: int) -> list[str]:
        """Whatever may have stood at a step during an operation."""
        return [
            save.token or ""
            for save in self.by_step[op.run, step]
            if save.kind == "save" and save.publishes and save.called <= op.acked
            if self.gone_by(save) + SLACK_SECONDS >= op.called
        ]

    def _missing(self, op: Op, tokens: Sequence[str]) -> set[str | None]:
        """What should have been answered, or among it."""
        there = self._there(op)
        if op.kind == "top":
            there = [save for save in there if save.loss is not None and math.isfinite(save.loss)]
        if op.kind == "list" or not tokens:
            return {save.token for save in there} - set(tokens)
        answers = [self.saves[token] for token in tokens if token in self.saves]
        # Which of those that stood at the answered step was meant is not known: any will do.
        beaten = [{s.token for s in there if _beats(op.kind, s, answer)} for answer in answers]
        return min(beaten, key=len, default=set())

    def _was_live(self, op: Op, token: str) -> Iterator[Violation]:
        save = self.saves.get(token)
        if save is None or not save.publishes or save.called > op.acked:
            yield Violation("half_visible", f"{op.kind} ({op.id}) answered {token}, never live")
        elif (save.run, save.step) != (op.run, save.step if op.step is None else op.step):
            yield Violation("half_visible", f"{op.kind} ({op.id}) of {op.run} answered {token}")
        elif self.gone_by(save) + SLACK_SECONDS < op.called:
            what = f"{op.kind} ({op.id}) answered {token}, which was gone before it was asked"
            yield Violation("half_visible", what)

    def _there(self, op: Op) -> list[Op]:
        """The checkpoints that were there for the whole of an operation."""
        return [
            save
            for save in self.saves_of_run[op.run]
            if save.acked < op.called and self._gone_from(save) > op.acked
            if op.step is None or save.step == op.step
        ]

    def _gone_from(self, save: Op) -> float:
        """Until when a save's checkpoint was certainly there."""
        row = self.rows.get(save.token or "")
        return row.ended - SLACK_SECONDS if row and row.status == "deleted" else NEVER

    def _opened(self, op: Op) -> Iterator[Violation]:
        if op.error == "half":
            what = f"{op.run}/step_{op.step} ({op.id}) was not whole: {op.answer}"
            yield Violation("half_visible", what)
        elif op.error == "missing" and self._name_stayed(op):
            yield Violation("lost", f"{op.run}/step_{op.step} was missing ({op.id})")
        elif op.error == "emptied" and not self._something_ended(op):
            what = f"{op.run}/step_{op.step} lost files ({op.id}): {op.answer}"
            yield Violation("half_visible", what)
        elif op.error is None and op.answer:
            yield from self._was_live(op, op.answer)

    def _something_ended(self, op: Op) -> bool:
        return any(
            row.ended <= op.ended + SLACK_SECONDS
            and self.gone_by(self.saves[row.token or ""]) >= op.called - SLACK_SECONDS
            for row in self._gone_at[op.run, op.step]
        )

    def _name_stayed(self, op: Op) -> bool:
        """Whether the name was certainly there for the whole of an operation.

        One step in place of another leaves no gap.
        """
        ends = [row for row in self._gone_at[op.run, op.step] if not _is(row, "replaced")]
        for save in self.by_step[op.run, op.step]:
            if save.kind == "save" and save.acked < op.called and not any(
                self.gone_by(self.saves[row.token or ""]) >= save.called
                and row.ended <= op.ended + SLACK_SECONDS
                for row in ends
            ):  # fmt: skip
                return True
        return False

    @cached_property
    def _gone_at(self) -> dict[tuple[str, int | None], list[Found]]:
        groups: dict[tuple[str, int | None], list[Found]] = defaultdict(list)
        for row in self._gone:
            if row.token in self.saves:
                groups[row.run, row.step].append(row)
        return groups

    # --- failures -----------------------------------------------------------------------

    def _failures(self) -> Iterator[Violation]:
        # Until then there may be nothing at all to ask.
        first = min((save.acked for save in self.saves.values()), default=NEVER)
        for op in self.ops:
            if op.error in (
                None,
                "cut",
                "half",
                "missing",
                "emptied",
                *_EXPLAINED.get(op.kind, ()),
            ):
                continue
            if op.kind == "save" and op.error == "NoCheckpointHere" and self._overtaken(op):
                continue
            if op.error == "CatalogMissing" and op.called < first:
                continue
            if op.kind == "pin" and op.error == "CheckpointGone" and not self._name_stayed(op):
                continue
            yield Violation("not_recovered", f"{_named(op)} raised {op.error}: {op.answer}")

    def _overtaken(self, save: Op) -> bool:
        """Whether another process published it, and it was gone again before ours looked."""
        row = self.rows.get(save.token or "")
        return row is not None and row.status == "deleted" and not _is(row, "discarded")


_QUESTIONS = ("best", "top", "latest", "get", "list")
_LOCKED = ("CatalogLocked",)
_EXPLAINED = {
    "save": ("StepInUse", "Interrupted", "Deliberate"),
    "rm": ("UnknownCheckpoint", "PinnedCheckpoint", "UnknownRun", *_LOCKED),
    # Where all that is left lacks a finite value, there are no best ones.
    "gc": ("UnknownRun", "UnknownMetric", "NothingFinite", *_LOCKED),
    "reconcile": _LOCKED,
    "query": _LOCKED,
    "top": ("UnknownRun", "UnknownMetric", "NothingFinite", "UnknownDirection", *_LOCKED),
    **dict.fromkeys(("latest", "list"), ("UnknownRun", *_LOCKED)),
    **dict.fromkeys(
        ("get", "pin", "unpin", "tag", "untag", "metric"),
        ("UnknownRun", "UnknownCheckpoint", *_LOCKED),
    ),
}


def _is(row: Found, what: str) -> bool:
    return (row.reason or "").startswith(what)


def _acked(op: Op) -> float:
    return op.acked


def _open_ended(op: Op) -> Op:
    return Op(op.id, op.kind, op.run, op.step, op.called, token=op.token)


def _named(op: Op) -> str:
    return f"{op.kind} {op.id} of {op.run}/step_{op.step} ({op.token or op.key})"


def _superseded(op: Op, sure: Sequence[Op]) -> bool:
    return any(later.called > op.ended for later in sure)


def _beats(kind: str, one: Op, other: Op) -> bool:
    if kind in ("best", "top"):
        return rank(one.loss, one.step or 0) < rank(other.loss, other.step or 0)
    return kind == "latest" and (one.step or 0) > (other.step or 0)


def _unmatched(rows: Sequence[Found], options: Mapping[int, Sequence[str]]) -> Iterator[Found]:
    """Yield what is left when as many ends as possible get an explanation of their own."""
    taken: dict[str, Found] = {}

    def settle(row: Found, tried: set[str]) -> bool:
        for token in options[id(row)]:
            if token not in tried:
                tried.add(token)
                if token not in taken or settle(taken[token], tried):
                    taken[token] = row
                    return True
        return False

    for row in rows:
        if not settle(row, set()):
            yield row
