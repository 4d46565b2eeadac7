"""A catalog that says what the files do not: nothing is deleted by it, and `check` names it."""

import itertools
import os
import sqlite3
from contextlib import closing

import pytest
from lab.dump import dump_catalog

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog.schema import metadata
from ckptdb.errors import CkptdbError
from ckptdb.retention import Policy, parse_all
from ckptdb.training import followed_run

pytestmark = pytest.mark.slow

POLICIES = {
    "best": Policy(keep_top_k=2),
    "latest": Policy(keep_top_k=0, ft_keep_latest_k=1),
    "rules": Policy(
        keep_top_k=1,
        keep=parse_all(["tagged release", "best 1 by other min", "where kl < 0.2", "steps 3"])[0],
    ),
    "bytes": Policy(keep=parse_all(["at most 300 B"])[0], metric="acc", mode="max"),
}
ACC = {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.8, 5: 0.1, 6: 0.7, 7: 0.3}


def make_root(top):
    """Two runs in a root; in the first one there is something of everything."""
    top.mkdir()
    Registry.init(top)[0].close()
    for name, extra in (("a", 0.0), ("b", 0.05)):
        config = {
            "checkpoint_dir": top / name, "metric_name": "acc", "higher_is_better": True,
            "durability": "none",
        }  # fmt: skip
        for some in ((1, 2, 3, 4, 5), (6, 7)):
            with CheckpointManager(config) as manager:
                manager.resume()
                for step in some:
                    info = {"acc": ACC[step] + extra, "kl": step / 20, "other": (step * 3) % 7}
                    with manager.save(step, info, config={"lr": 0.1}) as folder:
                        (folder / "weights.bin").write_bytes(b"w" * 100)
    with Registry.open(top) as registry:
        registry.pin("a", 3)
        registry.tag("a", 6, "release")
        registry.log_metrics("a", 4, {"late": 0.5}, source="eval")
        registry.remove([1], run="a")
    settle(top)
    with Registry.open(top) as registry:
        assert registry.reconcile().blocked == ()
        assert not registry.reconcile(dry_run=True).has_drift
    return top


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One that is only asked, and the plans that are true for it."""
    top = make_root(tmp_path_factory.mktemp("shared") / "root")
    return top, {name: plan(top, policy) for name, policy in POLICIES.items()}


def settle(top):
    """Make everything look a minute old: only then does a stamp prove that nothing changed."""
    for path in (*top.rglob("*"), top):
        was = path.stat()
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns - 60 * 10**9))


def steps(run):
    return sorted(int(path.name.removeprefix("step_")) for path in run.glob("step_*"))


def lie(root, *statements):
    """Change rows as anybody with a database client could; say whether that changed anything."""
    with closing(sqlite3.connect(root / ".ckptdb/catalog.db")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        return connection.total_changes > 0


def plan(root, policy, **options):
    with Registry.open(root) as registry:
        found = registry.gc(policy, all_runs=True, dry_run=True, **options)
    return {one.directory.name: sorted(d.step for d in one.retention.gone) for one in found}


NO_MATTER = pytest.mark.filterwarnings("ignore::UserWarning")


@NO_MATTER
def test_gc_keeps_the_real_best_whatever_the_catalog_says_of_its_metrics(root):
    lie(
        root,
        "UPDATE metrics SET value = -1 WHERE name = 'acc' AND step IN (2, 4)",
        "UPDATE metrics SET value = 9 WHERE name = 'acc' AND step IN (5, 7)",
    )
    with Registry.open(root) as registry:
        registry.gc(Policy(keep_top_k=2), all_runs=True)
    assert steps(root / "a") == [2, 3, 4, 5, 7]  # 3 is pinned, 5 was resumed from, 7 is the latest
    assert steps(root / "b") == [2, 4, 5, 7]


def test_gc_says_once_that_the_catalog_says_otherwise_than_the_files(root):
    lie(root, "UPDATE metrics SET value = -1 WHERE name = 'acc' AND step = 2")
    with (
        Registry.open(root) as registry,
        pytest.warns(UserWarning, match="what goes is decided by the files") as told,
    ):
        registry.gc(Policy(keep_top_k=2), all_runs=True)
    assert len(told) == 1
    assert f"{root / 'a'}, {root / 'b'}" in str(told[0].message)


@NO_MATTER
def test_gc_lets_the_catalog_say_afterwards_what_the_files_say(root):
    lie(root, "UPDATE metrics SET value = -1 WHERE name = 'acc' AND step = 2")
    with Registry.open(root) as registry:
        registry.gc(Policy(keep_top_k=2), all_runs=True)
        assert {found.step for found in registry.best_of_runs("acc")} == {2}


def test_where_the_catalog_is_right_nothing_is_said(root, recwarn):
    with Registry.open(root) as registry:
        for policy in POLICIES.values():
            registry.gc(policy, all_runs=True, dry_run=True)
    assert [str(one.message) for one in recwarn] == []


def plan_or_sentence(root, policy):
    try:
        return plan(root, policy)
    except (CkptdbError, OSError) as error:
        return str(error)


def is_sentence(found):
    return isinstance(found, str) and len(found.splitlines()) == 1


def statements():
    """Every column of every row set to something else; every row removed."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            name = column.name
            if name == "id":
                continue
            values = [
                "NULL", "1", "-7", f"{name} || 'x'", f"-{name}", f"1 - {name}",
                f"(SELECT max({name}) FROM {table.name})",
                f"(SELECT min({name}) FROM {table.name})",
                "'2100-01-01T00:00:00.000Z'", "'damaged: bytes lost'", "'deleted'",
            ]  # fmt: skip
            yield (
                f"{table.name}.{name}",
                [f"UPDATE OR IGNORE {table.name} SET {name} = {value}" for value in values],
            )
        yield (
            table.name,
            [
                f"DELETE FROM {table.name}",
                f"DELETE FROM {table.name} WHERE rowid % 2"
                if table.info.get("with_rowid", True)
                else f"DELETE FROM {table.name} WHERE checkpoint_id % 2",
            ],
        )


@NO_MATTER
@pytest.mark.parametrize(("column", "told"), [pytest.param(*s, id=s[0]) for s in statements()])
def test_gc_deletes_what_it_would_by_a_catalog_just_built_or_refuses(shared, column, told):
    top, expected = shared
    file = top / ".ckptdb/catalog.db"
    true = file.read_bytes()
    struck = 0
    try:
        for statement, name in zip(told, itertools.cycle(POLICIES), strict=False):
            try:
                struck += lie(top, statement)
            except sqlite3.IntegrityError:
                continue  # SQLite itself refuses that
            found = plan_or_sentence(top, POLICIES[name])
            if "damaged" in statement and column == "checkpoints.problem":
                # Only a look into all files could tell that this is not so: what is said to be
                # damaged stays.
                assert all(set(found[run]) <= set(expected[name][run]) for run in found)
            else:
                assert found == expected[name] or is_sentence(found), (statement, name)
            file.write_bytes(true)
    finally:
        file.write_bytes(true)
    assert struck


FACTS = [
    pytest.param(*one, id=one[0])
    for one in statements()
    # What a directory looked like when it was indexed is no fact about it.
    if one[0] not in {"runs.stamp", "runs.stamp_verified", "checkpoints.fingerprint"}
]
# Only a person can settle these: the catalog may be the last one to know.
ASKED_BACK = {"lost", "vanished", "contradicted", "damaged"}


@NO_MATTER
@pytest.mark.parametrize(("column", "told"), FACTS)
def test_check_names_what_the_catalog_says_wrongly_and_reconcile_mends_it(shared, column, told):
    top, _ = shared
    file = top / ".ckptdb/catalog.db"
    true, facts = file.read_bytes(), dump_catalog(file)
    journals = {path: path.read_bytes() for path in top.rglob("journal.jsonl")}
    try:
        for statement in told:
            try:
                if not lie(top, statement) or dump_or_none(file) == facts:
                    continue
            except sqlite3.IntegrityError:
                continue
            with Registry.open(top) as registry:
                kinds = find_drift(registry)
                assert kinds, statement
                registry.reconcile()
                if column == "runs.uuid":
                    # What only the catalog knows of is history of another run: nothing is lost.
                    mended = dump_catalog(file)
                    assert all(set(facts[table]) <= set(mended[table]) for table in facts)
                elif not kinds & ASKED_BACK:
                    assert dump_catalog(file) == facts, statement
                    assert not find_drift(registry), statement
            restore(file, true, journals)
    finally:
        restore(file, true, journals)


def find_drift(registry):
    try:
        found = registry.reconcile(dry_run=True)
    except CkptdbError as error:
        return {str(error)} if is_sentence(str(error)) else None
    assert found.has_drift == bool(found.counts["differences"] or found.has_unresolved)
    kinds = {action.kind for run in found.runs for action in run.actions if action.is_drift}
    return kinds | ({"strays"} if found.strays else set())


def dump_or_none(file):
    try:
        return dump_catalog(file)
    except AssertionError:
        return None  # rows of nothing


def restore(file, true, journals):
    file.write_bytes(true)
    for path, content in journals.items():
        if path.read_bytes() != content:
            path.write_bytes(content)
    settle(file.parent.parent)


@pytest.mark.parametrize("share", [0, 1 / 20], ids=["listing nothing", "after a listing"])
def test_a_prune_keeps_the_real_best_whatever_the_catalog_says_of_another(root, monkeypatch, share):
    """Of what goes the catalog says the truth: what it says of one that stays is wrong."""
    config = {"checkpoint_dir": root / "b", "metric_name": "acc", "higher_is_better": True,
              "keep_top_k": 3, "durability": "none"}  # fmt: skip
    monkeypatch.setattr(followed_run, "LISTING_SHARE", share)
    with CheckpointManager(config) as manager:
        for step in (8, 9, 10, 11):
            with manager.save(step, {"acc": 0.05, "kl": 1.0, "other": 1}):
                lie(root, "UPDATE metrics SET value = 9 WHERE name = 'acc' AND step IN (6, 7, 8)")
    assert {2, 4} <= set(steps(root / "b"))
