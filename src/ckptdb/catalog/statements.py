"""The catalog's SQL, built once.

Building a statement costs more than answering it, and SQLAlchemy remembers what it has compiled
by the object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    text,
    union_all,
    update,
)

from ckptdb.catalog import trust
from ckptdb.catalog.schema import checkpoints, metrics, resumes, runs, tags, version
from ckptdb.core.metrics import TRAINING_INFO
from ckptdb.core.ranking import Mode
from ckptdb.core.records import Status

_T = TypeVar("_T")
_CHUNK = 500
"""Rows per IN list; every engine takes that many parameters."""

# Literals, not parameters: only then does the planner use the partial indexes.
FINAL = text("checkpoints.status = 'final'")
TRUSTED = text(trust.trusted("checkpoints"))
UNDOUBTED = text(trust.undoubted("checkpoints"))
NOT_DELETED = text("checkpoints.status <> 'deleted'")
DELETED = text("checkpoints.status = 'deleted'")
TMP = text("checkpoints.status = 'tmp'")
LATE = text("metrics.source <> 'training_info'")
RANKED = text("metrics.live = 1 AND metrics.value IS NOT NULL")
BY_STATUS = {"final": FINAL, "tmp": TMP, "deleted": DELETED}


def _any(name: str) -> Any:
    """Stand for the values of an IN list, any number of them."""
    return bindparam(name, expanding=True)


# In the text, because there may be more runs than a statement can have parameters.
_AMONG = bindparam("among", type_=Integer, expanding=True, literal_execute=True)


REVISION = select(version.c.version_num)

# --- runs -----------------------------------------------------------------------------------

RUNS = select(runs).order_by(runs.c.name, runs.c.directory)

RUN_BY_UUID = select(runs).where(runs.c.uuid == bindparam("uuid"))

# Where each run is, without its configuration.
PLACES = select(runs.c.id, runs.c.directory).order_by(runs.c.id)

# What may lead out of a root: few, if any.
PLACES_OUTSIDE = PLACES.where(or_(runs.c.directory.like("/%"), runs.c.directory.like("%..%")))

RUNS_AMONG = RUNS.where(runs.c.id.in_(_AMONG))

# What a person may call a run, without reading all of them with their configurations.
RUNS_CALLED = (
    select(runs)
    .where(or_(runs.c.directory.in_(_any("places")), runs.c.name == bindparam("name")))
    .order_by(runs.c.name, runs.c.directory)
)

OWN_METRICS = (
    select(runs.c.metric_name, runs.c.higher_is_better)
    .where(runs.c.metric_name.is_not(None))
    .distinct()
)

OWN_METRICS_AMONG = OWN_METRICS.where(runs.c.id.in_(_AMONG))

RUNS_AT = select(runs).where(runs.c.directory == bindparam("at")).order_by(runs.c.id.desc())

INSERT_RUN = insert(runs)

# What is set must not have the name of a parameter: hence `row_id` and `of_run`.
UPDATE_RUN = update(runs).where(runs.c.id == bindparam("row_id"))

DELETE_RUN = delete(runs).where(runs.c.id == bindparam("row_id"))

COUNTS = select(
    select(func.count()).select_from(runs).scalar_subquery().label("runs"),
    select(func.count()).select_from(checkpoints).scalar_subquery().label("checkpoints"),
)

# --- questions ------------------------------------------------------------------------------

_OF_RUN = checkpoints.c.run_id == bindparam("run_id")

_OF_RUNS = checkpoints.c.run_id.in_(_AMONG)

LATEST_STEP = (
    select(checkpoints.c.step)
    .where(_OF_RUN, TRUSTED)
    .order_by(checkpoints.c.step.desc())
    .limit(literal_column("1"))
)

COUNT_LIVE = select(func.count()).where(_OF_RUN, TRUSTED)

_RANKED_OF_RUN = and_(
    metrics.c.run_id == bindparam("run_id"), metrics.c.name == bindparam("name"), RANKED
)

COUNT_RANKED = select(func.count()).where(_RANKED_OF_RUN)

NEWEST_STEPS = (
    select(checkpoints.c.step)
    .where(_OF_RUN, TRUSTED)
    .order_by(checkpoints.c.step.desc())
    .limit(bindparam("count"))
)

# Those that lack a metric, and those that have it without a finite value.
UNRANKED = (
    select(
        checkpoints.c.step,
        exists().where(
            metrics.c.checkpoint_id == checkpoints.c.id, metrics.c.name == bindparam("name")
        ),
    )
    .where(_OF_RUN, TRUSTED)
    .where(
        ~exists().where(
            metrics.c.checkpoint_id == checkpoints.c.id,
            metrics.c.name == bindparam("name"),
            metrics.c.value.is_not(None),
        )
    )
    .order_by(checkpoints.c.step)
)

_CANDIDATE = (
    checkpoints.c.id, checkpoints.c.step, checkpoints.c.uuid, checkpoints.c.pinned,
    checkpoints.c.size_bytes, checkpoints.c.finalized_at,
)  # fmt: skip

CANDIDATES = select(*_CANDIDATE).where(_OF_RUN, TRUSTED).order_by(checkpoints.c.step)

_VALUES = select(metrics.c.checkpoint_id, metrics.c.name, metrics.c.value, metrics.c.source).where(
    metrics.c.run_id == bindparam("run_id"), metrics.c.name.in_(_any("names"))
)

# What is finite, and what came later, finite or not; each has an index. Some are both.
VALUES = union_all(_VALUES.where(RANKED), _VALUES.where(LATE, metrics.c.live == 1))

LIVE_TAGS = (
    select(tags.c.checkpoint_id, tags.c.name).join_from(checkpoints, tags).where(_OF_RUN, TRUSTED)
)

PINNED_GONE = select(checkpoints.c.uuid).where(_OF_RUN, checkpoints.c.pinned == 1, DELETED)

METRIC_NAMES = select(metrics.c.name).distinct().order_by(metrics.c.name)

METRIC_NAMES_OF_RUN = METRIC_NAMES.where(
    metrics.c.checkpoint_id.in_(select(checkpoints.c.id).where(_OF_RUN))
)

METRIC_NAMES_AMONG = METRIC_NAMES.where(
    metrics.c.checkpoint_id.in_(select(checkpoints.c.id).where(_OF_RUNS))
)

EVER_FINITE_OF_RUN = select(
    exists()
    .where(metrics.c.checkpoint_id == checkpoints.c.id, metrics.c.name == bindparam("name"))
    .where(_OF_RUN, metrics.c.value.is_not(None))
)

# First where it is found at once, if it is there at all.
HAS_METRIC = select(
    or_(
        exists().where(metrics.c.name == bindparam("name"), RANKED),
        exists().where(metrics.c.name == bindparam("name")),
    )
)

HAS_METRIC_OF_RUN = select(
    or_(
        exists().where(_RANKED_OF_RUN),
        exists()
        .where(metrics.c.checkpoint_id == checkpoints.c.id, metrics.c.name == bindparam("name"))
        .where(_OF_RUN),
    )
)

HAS_METRIC_AMONG = select(
    or_(
        exists().where(metrics.c.run_id.in_(_AMONG), metrics.c.name == bindparam("name"), RANKED),
        exists()
        .where(metrics.c.checkpoint_id == checkpoints.c.id, metrics.c.name == bindparam("name"))
        .where(_OF_RUNS),
    )
)


def _best_step(mode: Mode) -> Select[Any]:
    # The value first, at one end of the index, then the highest step with it at another: in one
    # ORDER BY the lowest of many equal values would cost a look at all of them.
    best = func.min(metrics.c.value) if mode == "min" else func.max(metrics.c.value)
    value = select(best).where(_RANKED_OF_RUN).scalar_subquery()
    return (
        select(metrics.c.step)
        .where(_RANKED_OF_RUN, metrics.c.value == value)
        .order_by(metrics.c.step.desc())
        .limit(literal_column("1"))
    )


def _top_steps(mode: Mode) -> Select[Any]:
    return (
        select(metrics.c.step)
        .where(_RANKED_OF_RUN)
        .order_by(metrics.c.value if mode == "min" else metrics.c.value.desc())
        .order_by(metrics.c.step.desc())
        .limit(bindparam("count"))
    )


def _below(mode: Mode) -> Select[Any]:
    value = metrics.c.value.desc() if mode == "min" else metrics.c.value
    # Counted in an index that holds nothing else, and then read from its worse end.
    ranked, best = COUNT_RANKED.scalar_subquery(), bindparam("best", type_=Integer)
    return (
        select(*_CANDIDATE, metrics.c.value, metrics.c.source)
        .join_from(metrics, checkpoints, checkpoints.c.id == metrics.c.checkpoint_id)
        .where(_RANKED_OF_RUN)
        .order_by(value, metrics.c.step)
        .limit(case((ranked > best, ranked - best), else_=literal_column("0")))
    )


BELOW = {"min": _below("min"), "max": _below("max")}

TOP_STEPS = {"min": _top_steps("min"), "max": _top_steps("max")}

BEST_STEP = {"min": _best_step("min"), "max": _best_step("max")}

# --- whole records --------------------------------------------------------------------------

_PARENTS = checkpoints.alias("parents")

_LATEST = checkpoints.alias("latest")

_LATEST_ID = (
    select(_LATEST.c.id)
    .where(_LATEST.c.run_id == runs.c.id)
    .where(text(trust.trusted("latest")))
    .order_by(_LATEST.c.step.desc())
    .limit(literal_column("1"))
    .correlate(runs)
    .scalar_subquery()
)

_WHOLE = select(
    checkpoints,
    runs.c.name.label("run"),
    runs.c.uuid.label("run_uuid"),
    runs.c.directory.label("run_directory"),
    select(_PARENTS.c.uuid)
    .where(_PARENTS.c.id == checkpoints.c.parent_id)
    .scalar_subquery()
    .label("parent"),
).join_from(checkpoints, runs)


@cache
def ranking(mode: Mode, *, of_run: bool = False, among: bool = False) -> Select[Any]:
    """Select whole live checkpoints by a metric, best first, of one run, of some or of all."""
    ranked = select(metrics.c.checkpoint_id, metrics.c.value, metrics.c.step).where(
        metrics.c.name == bindparam("name"), RANKED
    )
    if of_run:
        ranked = ranked.where(metrics.c.run_id == bindparam("run_id"))
    if among:
        ranked = ranked.where(metrics.c.run_id.in_(_AMONG))
    # First the few that are asked for, from the index alone; then their rows.
    best = ranked.order_by(*best_first(metrics, mode)).limit(bindparam("count")).subquery("best")
    return _WHOLE.join(best, best.c.checkpoint_id == checkpoints.c.id).order_by(
        *best_first(best, mode)
    )


def best_first(
    ranked: FromClause, mode: Mode | None, tie_mode: Mode | None = None
) -> tuple[ColumnElement[Any], ...]:
    """Order by ``value``, then by ``tie`` where there is one, as `rank_key` does.

    Args:
        ranked: Has these columns, ``step`` and ``checkpoint_id``.
        mode: None to order by step alone.
        tie_mode: None for no tie.
    """
    tie = () if tie_mode is None else (ranked.c.tie.is_(None), _directed(ranked.c.tie, tie_mode))
    value = () if mode is None else (_directed(ranked.c.value, mode), *tie)
    return *value, ranked.c.step.desc(), ranked.c.checkpoint_id.desc()


def _directed(value: ColumnElement[Any], mode: Mode) -> ColumnElement[Any]:
    return value if mode == "min" else value.desc()


@cache
def best_of_runs(mode: Mode | None, *, of_metric: bool, among: bool = False) -> Select[Any]:
    """Select whole the best live checkpoint of each run, by the run's name.

    By a given metric, or by the run's own; in a given direction, or in the run's own. Of a run
    without a metric the best is the latest.
    """
    name = bindparam("name") if of_metric else runs.c.metric_name

    def best(of_mode: Mode) -> Any:
        return (
            select(metrics.c.checkpoint_id)
            .where(metrics.c.run_id == runs.c.id, metrics.c.name == name, RANKED)
            .order_by(*best_first(metrics, of_mode))
            .limit(literal_column("1"))
            .correlate(runs)
            .scalar_subquery()
        )

    found = (
        best(mode) if mode else case((runs.c.higher_is_better == 1, best("max")), else_=best("min"))
    )
    if not of_metric:
        found = case((runs.c.metric_name.is_(None), _LATEST_ID), else_=found)
    best_ones = _WHOLE.where(checkpoints.c.id == found).order_by(runs.c.name, runs.c.directory)
    return best_ones.where(runs.c.id.in_(_AMONG)) if among else best_ones


BY_ID = _WHOLE.where(checkpoints.c.id.in_(_any("ids")))

LIVE_AT_STEPS = _WHOLE.where(_OF_RUN, NOT_DELETED, checkpoints.c.step.in_(_any("steps")))

GONE_BY_UUID = _WHOLE.where(_OF_RUN, DELETED, checkpoints.c.uuid.in_(_any("uuids")))

# Metrics and, without a source, tags.
BELONGINGS = union_all(
    select(
        metrics.c.checkpoint_id, metrics.c.name, metrics.c.value, metrics.c.source,
        metrics.c.reported_at,
    ).where(metrics.c.checkpoint_id.in_(_any("ids"))),
    select(tags.c.checkpoint_id, tags.c.name, null(), null(), tags.c.created_at).where(
        tags.c.checkpoint_id.in_(_any("ids"))
    ),
).order_by("name")  # fmt: skip


@cache
def listing(
    status: Status | None, *, of_run: bool, at_steps: bool, limited: bool, among: bool = False
) -> Select[Any]:
    """Select whole checkpoints, the newest of each run first."""
    found = _WHOLE.order_by(
        runs.c.name, checkpoints.c.run_id, checkpoints.c.step.desc(), checkpoints.c.id.desc()
    )
    if of_run:
        found = found.where(_OF_RUN)
    if among:
        found = found.where(_OF_RUNS)
    if status is not None:
        found = found.where(BY_STATUS[status])
    if at_steps:
        found = found.where(checkpoints.c.step.in_(_any("steps")))
    return found.limit(bindparam("count")) if limited else found


NEWEST = _WHOLE.where(TRUSTED).order_by(checkpoints.c.finalized_at.desc()).limit(bindparam("count"))

# First the few that are asked for, then their rows: all of these runs may have to be sorted.
_NEWEST_IDS = (
    select(checkpoints.c.id)
    .where(_OF_RUNS, TRUSTED)
    .order_by(checkpoints.c.finalized_at.desc())
    .limit(bindparam("count"))
)

NEWEST_AMONG = _WHOLE.where(checkpoints.c.id.in_(_NEWEST_IDS)).order_by(
    checkpoints.c.finalized_at.desc()
)

NEWEST_OF_RUN = (
    _WHOLE.where(_OF_RUN, TRUSTED).order_by(checkpoints.c.step.desc()).limit(bindparam("count"))
)

# --- lineage --------------------------------------------------------------------------------

RESUMED = (
    select(checkpoints.c.uuid, resumes.c.resumed_at)
    .join_from(resumes, checkpoints, checkpoints.c.id == resumes.c.checkpoint_id)
    .where(resumes.c.run_id == bindparam("run_id"))
    .order_by(resumes.c.resumed_at, resumes.c.checkpoint_id)
)


def _with_ancestors(first: Select[Any], *more: ColumnElement[Any]) -> Any:
    """Begin with the ids of some checkpoints; add those of all ancestors, each once.

    UNION, not UNION ALL: it visits what many descend from once, and ends where manifests that
    other hands have written make a circle. What else of a checkpoint is added stands beside the
    id of its parent.
    """
    line = first.cte("line", recursive=True)
    parents = select(checkpoints.c.parent_id, *more).join_from(
        line, checkpoints, checkpoints.c.id == line.c.id
    )
    return line.union(parents.where(checkpoints.c.parent_id.is_not(None)))


_LINE = _with_ancestors(
    select(checkpoints.c.id.label("id"), cast(null(), Text).label("child_created_at")).where(
        _OF_RUN, checkpoints.c.uuid == bindparam("uuid")
    ),
    checkpoints.c.created_at,
)

LINE = select(
    checkpoints.c.id, checkpoints.c.parent_id, checkpoints.c.uuid, checkpoints.c.step,
    checkpoints.c.status, checkpoints.c.created_at, checkpoints.c.finalized_at,
    checkpoints.c.deleted_at, checkpoints.c.deleted_reason, checkpoints.c.deleted_kind,
    select(func.max(resumes.c.resumed_at))
    .where(
        resumes.c.checkpoint_id == checkpoints.c.id,
        or_(
            _LINE.c.child_created_at.is_(None),
            resumes.c.resumed_at <= _LINE.c.child_created_at,
        ),
    )
    .scalar_subquery()
    .label("resumed_at"),
).join_from(_LINE, checkpoints, checkpoints.c.id == _LINE.c.id)  # fmt: skip

_ANCESTORS = _with_ancestors(
    select(checkpoints.c.parent_id.label("id")).where(
        _OF_RUN, FINAL, checkpoints.c.parent_id.is_not(None)
    )
)

ANCESTORS_OF_LIVE = select(checkpoints.c.uuid).join_from(
    _ANCESTORS, checkpoints, checkpoints.c.id == _ANCESTORS.c.id
)

# Of those that were published, what tells which lines of training they are on.
LINE_MEMBERS = select(
    checkpoints.c.id, checkpoints.c.uuid, checkpoints.c.step, checkpoints.c.parent_id,
    checkpoints.c.created_at, checkpoints.c.finalized_at, checkpoints.c.status,
    text(trust.doubted("checkpoints")), checkpoints.c.deleted_kind,
).where(_OF_RUN, checkpoints.c.finalized_at.is_not(None))  # fmt: skip

# --- what reconciling compares --------------------------------------------------------------

_COMPARED = (
    checkpoints.c.step, checkpoints.c.uuid, checkpoints.c.status, checkpoints.c.fingerprint,
    checkpoints.c.problem, checkpoints.c.problem_kind,
)  # fmt: skip

_NOTHING_OF_HISTORY = (null(), null(), null(), null(), null(), null(), null())

# One by one, because each has an index that deleted history is not in.
LIVE = union_all(
    select(*_COMPARED, *_NOTHING_OF_HISTORY).where(_OF_RUN, FINAL),
    select(*_COMPARED, *_NOTHING_OF_HISTORY).where(_OF_RUN, TMP),
)

HISTORY = select(
    *_COMPARED, checkpoints.c.deleted_at, checkpoints.c.deleted_kind,
    checkpoints.c.deleted_reason, checkpoints.c.pinned, checkpoints.c.notes, checkpoints.c.rejected,
    case((DELETED, select(_PARENTS.c.uuid)
        .where(_PARENTS.c.id == checkpoints.c.parent_id)
        .scalar_subquery())),
).where(_OF_RUN)  # fmt: skip

# Late metrics; tags, whose value is NULL; and by which host and process, when, it was resumed from.
ADDED = union_all(
    select(
        literal_column("'metric'").label("kind"), checkpoints.c.uuid, metrics.c.name,
        metrics.c.value, metrics.c.source, metrics.c.reported_at,
    )
    .join_from(metrics, checkpoints, checkpoints.c.id == metrics.c.checkpoint_id)
    .where(metrics.c.run_id == bindparam("run_id"), LATE),
    select(
        literal_column("'tag'"), checkpoints.c.uuid, tags.c.name, null(), null(), tags.c.created_at
    )
    .join_from(checkpoints, tags)
    .where(_OF_RUN),
    select(
        literal_column("'resumed'"), checkpoints.c.uuid, resumes.c.host, resumes.c.pid, null(),
        resumes.c.resumed_at,
    )
    .join_from(resumes, checkpoints, checkpoints.c.id == resumes.c.checkpoint_id)
    .where(resumes.c.run_id == bindparam("run_id")),
)  # fmt: skip

# What metrics and resumptions repeat of their checkpoint, where it is not the checkpoint's.
_IS_RANKED = cast(case((TRUSTED, 1), else_=0), Integer)

_PUBLISHED_AT = func.coalesce(checkpoints.c.finalized_at, checkpoints.c.created_at)

MISTAKEN = union_all(
    select(checkpoints.c.uuid, checkpoints.c.step)
    .join_from(metrics, checkpoints, checkpoints.c.id == metrics.c.checkpoint_id)
    .where(
        _OF_RUN,
        or_(
            metrics.c.run_id != checkpoints.c.run_id,
            metrics.c.step != checkpoints.c.step,
            metrics.c.live != _IS_RANKED,
            and_(metrics.c.source == TRAINING_INFO, metrics.c.reported_at != _PUBLISHED_AT),
        ),
    ),
    select(checkpoints.c.uuid, checkpoints.c.step)
    .join_from(resumes, checkpoints, checkpoints.c.id == resumes.c.checkpoint_id)
    .where(_OF_RUN, resumes.c.run_id != checkpoints.c.run_id),
)

# --- changes --------------------------------------------------------------------------------

# What many rows are given to goes to the driver as text, `?` for each value: taking a row apart
# costs SQLAlchemy more than storing it costs SQLite. RETURNING would need SQLite 3.35.

# A run's row as far as a change may have to update it.
RUN_AS_PUT = """
    SELECT id, uuid, name, directory, created_at, metric_name, higher_is_better, forked_from
    FROM runs WHERE uuid = ?
"""

# A row for each uuid, new or changed; what people added to it is left as it is. The order of the
# values is `store`'s. Without its parent here, a child is read again until that has come, to be
# linked then; a child that names none keeps the one it has.
PUT_CHECKPOINT = """
    INSERT INTO checkpoints (
        run_id, uuid, step, path, created_at, finalized_at, size_bytes, file_count, status,
        deleted_at, deleted_reason, deleted_kind, problem, problem_kind, info,
        parent_id,
        fingerprint
    ) VALUES (
        ?, ?, ?, ?, ?, ?, ?, ?, ?,
        ?, ?, ?, ?, ?, ?,
        (SELECT id FROM checkpoints WHERE run_id = ? AND uuid = ?),
        CASE WHEN ? = 0 OR EXISTS (SELECT 1 FROM checkpoints WHERE run_id = ? AND uuid = ?)
            THEN ? END
    )
    ON CONFLICT (run_id, uuid) DO UPDATE SET
        step = excluded.step, path = excluded.path, created_at = excluded.created_at,
        finalized_at = excluded.finalized_at, size_bytes = excluded.size_bytes,
        file_count = excluded.file_count, status = excluded.status,
        deleted_at = excluded.deleted_at, deleted_reason = excluded.deleted_reason,
        deleted_kind = excluded.deleted_kind,
        problem = excluded.problem, problem_kind = excluded.problem_kind,
        info = excluded.info, fingerprint = excluded.fingerprint,
        parent_id = CASE WHEN ? = 0 THEN checkpoints.parent_id ELSE excluded.parent_id END
"""

# Where those rows are, whether they are rejected, and each metric they have; one row without any.
PUT_AT = """
    SELECT checkpoints.uuid, checkpoints.id, checkpoints.rejected IS NOT NULL,
        metrics.name, metrics.value, metrics.source
    FROM checkpoints LEFT JOIN metrics ON metrics.checkpoint_id = checkpoints.id
    WHERE checkpoints.run_id = ? AND checkpoints.uuid IN ({})
"""

CLEAR_METRICS = "DELETE FROM metrics WHERE checkpoint_id = ? AND source = ?"

KEEP_METRICS = """
    UPDATE metrics SET step = ?, reported_at = ?, live = ? WHERE checkpoint_id = ? AND source = ?
"""

RANK_METRICS = "UPDATE metrics SET live = ? WHERE checkpoint_id = ?"

# A late value hides the one that came with the checkpoint.
PUT_METRIC = """
    INSERT INTO metrics (
        checkpoint_id, run_id, step, name, value, source, reported_at, live
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (checkpoint_id, name) DO NOTHING
"""


def _of_checkpoint(value: ColumnElement[Any], of: Any) -> Any:
    return select(value).where(checkpoints.c.id == of).scalar_subquery()


def _in_run(of: Any) -> Any:
    return of.in_(select(checkpoints.c.id).where(checkpoints.c.run_id == bindparam("of_run")))


CORRECT_METRICS = (
    update(metrics)
    .where(_in_run(metrics.c.checkpoint_id))
    .values(
        run_id=bindparam("of_run"),
        step=_of_checkpoint(checkpoints.c.step, metrics.c.checkpoint_id),
        live=_of_checkpoint(_IS_RANKED, metrics.c.checkpoint_id),
        reported_at=case(
            (
                metrics.c.source == TRAINING_INFO,
                _of_checkpoint(_PUBLISHED_AT, metrics.c.checkpoint_id),
            ),
            else_=metrics.c.reported_at,
        ),
    )
)

UNLINK_PARENTS = (
    update(checkpoints)
    .where(checkpoints.c.run_id == bindparam("of_run"), checkpoints.c.uuid.in_(_any("uuids")))
    .values(parent_id=None)
)

CORRECT_RESUMES = (
    update(resumes).where(_in_run(resumes.c.checkpoint_id)).values(run_id=bindparam("of_run"))
)

UPDATE_CHECKPOINT = update(checkpoints).where(checkpoints.c.id == bindparam("row_id"))

CHECKPOINT_BY_UUID = select(
    checkpoints.c.id, checkpoints.c.step, checkpoints.c.status, checkpoints.c.problem,
    checkpoints.c.rejected,
    exists().where(resumes.c.checkpoint_id == checkpoints.c.id).label("resumed"),
).where(_OF_RUN, checkpoints.c.uuid == bindparam("uuid"))  # fmt: skip

# For a child that was put before its parent.
LINK_PARENT = """
    UPDATE checkpoints
    SET parent_id = (SELECT id FROM checkpoints WHERE run_id = ? AND uuid = ?), fingerprint = ?
    WHERE run_id = ? AND uuid = ?
        AND EXISTS (SELECT 1 FROM checkpoints WHERE run_id = ? AND uuid = ?)
"""

# Only as long as no live one has a higher step.
_NEWEST_STEP = "(SELECT MAX(step) FROM checkpoints WHERE run_id = runs.id AND status = 'final')"
SET_CONFIG_OF_STEP = f"config = CASE WHEN {_NEWEST_STEP} = ? THEN ? ELSE config END"
KEEP_CONFIG_OF_STEP = f"config = CASE WHEN config = '{{}}' OR {_NEWEST_STEP} = ? THEN config END"

# Compare and set: a change by anybody else in between must stay visible.
MOVE_STAMP = """
    stamp_verified = CASE WHEN stamp = ? THEN 0 ELSE stamp_verified END,
    stamp = CASE WHEN stamp = ? THEN ? ELSE stamp END
"""

END_ALL = (
    update(checkpoints)
    .where(checkpoints.c.run_id == bindparam("of_run"), NOT_DELETED)
    .values(
        status="deleted",
        deleted_at=func.coalesce(checkpoints.c.finalized_at, checkpoints.c.created_at),
        deleted_reason="vanished: another run took its directory",
        deleted_kind="displaced",
    )
)

UNRANK_ALL = update(metrics).where(metrics.c.run_id == bindparam("of_run")).values(live=0)

# As a directory and a step make it: what was stored before may be anything.
MOVE_PATHS = (
    update(checkpoints)
    .where(checkpoints.c.run_id == bindparam("of_run"))
    .values(
        path=bindparam("after", type_=Text)
        + case((TMP, "tmp_step_"), else_="step_")
        + cast(checkpoints.c.step, Text)
    )
)

# Rows of what is not there: foreign keys hold only where whoever writes has asked for them. Those
# of runs first, which take more with them.
STRAYS = (
    (checkpoints, ~exists().where(runs.c.id == checkpoints.c.run_id)),
    *(
        (table, ~exists().where(checkpoints.c.id == table.c.checkpoint_id))
        for table in (metrics, tags, resumes)
    ),
)

_UNLINKED = and_(
    checkpoints.c.parent_id.is_not(None),
    checkpoints.c.parent_id.not_in(select(_PARENTS.c.id)),
)

COUNT_UNLINKED = select(func.count()).select_from(checkpoints).where(_UNLINKED)

UNLINK_STRAYS = update(checkpoints).where(_UNLINKED).values(parent_id=None)

INSERT_METRIC = insert(metrics)

DELETE_LATE_METRICS = delete(metrics).where(
    metrics.c.checkpoint_id == bindparam("row_id"),
    or_(metrics.c.source != TRAINING_INFO, metrics.c.name.in_(_any("names"))),
)

INSERT_TAG = insert(tags)

DELETE_TAGS = delete(tags).where(tags.c.checkpoint_id == bindparam("row_id"))

INSERT_RESUME = insert(resumes)

DELETE_RESUMES = delete(resumes).where(resumes.c.checkpoint_id == bindparam("row_id"))


def chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Cut values into pieces short enough for an IN list."""
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
