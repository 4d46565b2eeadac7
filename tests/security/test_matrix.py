"""Every file of ours × what a neighbour may have put in its place × what somebody then does.

What comes of it is written down in ``matrix.txt``; nothing outside the root is touched, and nothing
takes longer than five seconds. With ``CKPTDB_WRITE_MATRIX=1`` the outcomes are written anew.
"""

import contextlib
import fcntl
import gc as gc_of_python
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import traceback
import warnings
from pathlib import Path

import pytest
from tests.support import requirements

from ckptdb import CheckpointManager, Policy, Registry
from ckptdb.disk.pending_index import Notes
from ckptdb.errors import CkptdbError
from ckptdb.web import data, serve

pytestmark = pytest.mark.slow

LOSS = "val:loss"
ANN, EVE = 20101, 20666
IS_ROOT = os.geteuid() == 0
GOLDEN = Path(__file__).with_name("matrix.txt")
WRITES = bool(os.environ.get("CKPTDB_WRITE_MATRIX"))
SECONDS = 5
LONG_AGO = 1_500_000_000
TOO_LONG = f"TAKES LONGER THAN {SECONDS} s"
UNTOUCHED = ("nothing", "as it is")
AS_USUAL = "as usual"

FOLDERS = {
    "root .ckptdb": ".ckptdb",
    "root unindexed": ".ckptdb/unindexed",
    ".ckptdb": "run/.ckptdb",
    "trash": "run/.ckptdb/trash",
    "trash, to be undeleted": "run/.ckptdb/trash/step_1.*.until-*",
    "trash, unrecorded": "run/.ckptdb/trash/step_5.*.unrecorded",
    "leases": "run/.ckptdb/leases",
    "step_N": "run/step_2",
    "old_step_N": "run/old_step_7.*",
    "tmp_step_N, complete": "run/tmp_step_8",
    "tmp_step_N": "run/tmp_step_9",
}
FILES = {
    "root.json": ".ckptdb/root.json",
    "unindexed note": ".ckptdb/unindexed/*",
    "catalog.db": ".ckptdb/catalog.db",
    "catalog.db-journal": ".ckptdb/catalog.db-journal",
    "catalog.db-wal": ".ckptdb/catalog.db-wal",
    "catalog.db-shm": ".ckptdb/catalog.db-shm",
    "run.json": "run/.ckptdb/run.json",
    "journal.jsonl": "run/.ckptdb/journal.jsonl",
    "lock": "run/.ckptdb/lock",
    "trainer": "run/.ckptdb/trainer",
    "verified.json": "run/.ckptdb/verified.json",
    "lease": "run/.ckptdb/leases/*",
    "training_info.json": "run/step_2/training_info.json",
    "config.yaml": "run/step_2/config.yaml",
    "manifest.json": "run/step_2/manifest.json",
    "checkpoint's file": "run/step_2/model.bin",
    "undeletable manifest.json": "run/.ckptdb/trash/step_1.*.until-*/manifest.json",
    "staged .writer.json": "run/tmp_step_9/.writer.json",
    "staged training_info.json": "run/tmp_step_9/training_info.json",
    "staged manifest.json": "run/tmp_step_8/manifest.json",
}
PLACES = FOLDERS | FILES


# --- what stands there ----------------------------------------------------------------------


def _symlink(place, twin):
    _clear(place)
    place.symlink_to(twin)


def _dangling(place, twin):
    _clear(place)
    place.symlink_to(twin.parent / "not-there")


def _hard_link(place, twin):
    _clear(place)
    os.link(twin, place)


def _fifo(place, twin):
    _clear(place)
    os.mkfifo(place, 0o666)


def _device(place, twin):
    _clear(place)
    os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which never ends


def _other_type(place, twin):
    was_folder = place.is_dir()
    _clear(place)
    if was_folder:
        place.write_text("{}")
    else:
        place.mkdir()
        (place / "inside").write_text("x")


def _foreign(place, twin):
    if not os.path.lexists(place):
        place.write_bytes(b"x")
    os.chown(place, EVE, EVE)
    place.chmod(0o755 if place.is_dir() else 0o644)


def _forbidden(place, twin):
    if not os.path.lexists(place):
        place.write_bytes(b"x")
    place.chmod(0)


KINDS = {
    "symlink": _symlink,
    "dangling symlink": _dangling,
    "hard link": _hard_link,
    "FIFO": _fifo,
    "device": _device,
    "other type": _other_type,
    "another user's": _foreign,
    "no permission": _forbidden,
}


def _clear(place):
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


# --- what is done ---------------------------------------------------------------------------


def question(root):
    with Registry.open(root) as registry:
        asked = (
            registry.runs, lambda: registry.best(LOSS, mode="min"), registry.latest,
            lambda: registry.checkpoints(status="final"), registry.summary,
            lambda: registry.passed_over(()),
        )  # fmt: skip
        answers = [_in_time(ask) for ask in asked]
    assert [run.name for run in answers[0]] == ["run"], answers[0]
    best, latest, found = answers[1:4]
    bad = [checkpoint.step for checkpoint in found if checkpoint.problem]
    answer = f"best {best and best.step}, latest {latest and latest.step}"
    return answer + (f", problem at {bad}" if bad else "")


def _in_time(call):
    if signal.alarm(0):  # each may take so long
        signal.alarm(SECONDS)
    return call()


def save(root):
    config = {"checkpoint_dir": root / "run", "metric_name": LOSS, "higher_is_better": False}
    with CheckpointManager({**config, "keep_top_k": 1}) as manager:
        with manager.save(20, {LOSS: 0.01}, config={"lr": 1}) as folder:
            (folder / "model.bin").write_bytes(b"m")
        assert manager.get_latest_checkpoint_path() == str(root / "run" / "step_20")
    return "saved"


def reconcile(root):
    with Registry.open(root) as registry:
        report = registry.reconcile()
    return "blocked" if report.blocked else "done"


def gc(root):
    with Registry.open(root) as registry:
        collected = registry.gc(Policy(1, 0, 1), empty_trash=True)
    gone = [gone.step for plan in collected for gone in plan.retention.gone]
    return f"deleted {gone}" if gone else "nothing to delete"


def annotate(root):
    with Registry.open(root) as registry:
        registry.pin("run", 3)
        registry.tag("run", 2, "rc")
        registry.log_metrics("run", 4, {"mmlu": 0.5}, source="lm-eval")
    return "noted"


def undelete(root):
    with Registry.open(root) as registry:
        return f"step {registry.undelete(1, run='run').step} is back"


def serve_page(root):
    def reopen():
        return Registry.open(root)

    with serve.catalog_of(reopen) as catalog, catalog.read() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM leaderboard").all()
        with reopen() as registry:
            data.catch_up(registry)
            runs = data.take_snapshot(registry).runs
    return f"{len(runs)} run"


ACTS = {
    "question": question,
    "save": save,
    "reconcile": reconcile,
    "gc": gc,
    "annotate": annotate,
    "undelete": undelete,
    "serve": serve_page,
}


# --- the tree -------------------------------------------------------------------------------


def _write_step(manager, step):
    with manager.save(step, {LOSS: 1 / step}, config={"lr": 0.1}) as folder:
        (folder / "model.bin").write_bytes(b"m" * step)


def _in_child(what, *arguments):
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            what(*arguments)
        os._exit(0)
    os.waitpid(pid, 0)


def _die_while_saving(run):
    manager = CheckpointManager({"checkpoint_dir": run})
    manager.init_tmp_checkpoint(9, {LOSS: 0.1})


def _die_while_evaluating(root):
    with Registry.open(root) as registry:
        for _ in registry.watch("run", lease="mmlu", poll_seconds=None):
            os._exit(0)


def _build(root):
    """Make a run in which every file of ours is there, some of them as a crash leaves them."""
    run = root / "run"
    run.mkdir(parents=True)
    Registry.init(root)[0].close()
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False}
    with CheckpointManager(config) as manager:
        for step in (1, 2, 3, 4, 5, 7, 8):
            _write_step(manager, step)
    with Registry.open(root) as registry:
        registry.remove([1], run="run", trash_ttl_seconds=86400)
        registry.verify()
    _in_child(_die_while_evaluating, root)
    _in_child(_die_while_saving, run)
    uuids = {step: json.loads((run / f"step_{step}/manifest.json").read_text())["uuid"]
             for step in (5, 7)}  # fmt: skip
    (run / "step_5").rename(run / ".ckptdb" / "trash" / f"step_5.{uuids[5]}.unrecorded")
    (run / "step_7").rename(run / f"old_step_7.{uuids[7]}")
    (run / "step_8").rename(run / "tmp_step_8")
    known = json.loads((run / ".ckptdb" / "run.json").read_text())
    Notes(root / ".ckptdb" / "unindexed", root).add(run, known["uuid"])


def _make_top():
    """Make a directory where flushing costs nothing, if devices work there."""
    for place in ("/dev/shm", None):  # a name of its own is made there
        with contextlib.suppress(OSError):
            top = Path(tempfile.mkdtemp(prefix="ckptdb-matrix-", dir=place))
            if IS_ROOT:
                _device(top / "zero", None)
                (top / "zero").open().close()
                (top / "zero").unlink()
            return top
    raise AssertionError("nowhere can a device be made")


@pytest.fixture(scope="module")
def template():
    top = _make_top()
    top.chmod(0o755)
    _build(top / "root")
    for name, place in PLACES.items():
        assert "catalog.db-" in place or _find(top / "root", place), name
    if IS_ROOT:
        subprocess.run(["chown", "-R", f"{ANN}:{ANN}", top], check=True)
    _warm_up(top)
    yield top
    subprocess.run(["chmod", "-R", "u+rwX", top], check=True)
    shutil.rmtree(top)


def _warm_up(top):
    """Do everything once, so that no process has to import and compile it anew."""
    trees = Trees(top)
    for what in ACTS.values():
        with warnings.catch_warnings(), trees.planted(None, None) as root:
            warnings.simplefilter("ignore")
            what(root)
    trees.remove()
    gc_of_python.collect()
    gc_of_python.freeze()


def _find(root, place):
    folder, _, name = place.rpartition("/")
    if "*" in folder:
        return _find(_find(root, folder), name)
    if "*" not in name:
        return root / place
    [found] = (path for path in (root / folder).glob(name) if not path.name.endswith(".new"))
    return found


class Trees:
    """Copies of the tree, and beside them another one of somebody, which is not to be touched."""

    def __init__(self, template):
        self._template, self._top = template / "root", template / "cell"
        self._top.mkdir()
        if IS_ROOT:
            os.chown(self._top, ANN, ANN)
        self.root, self.outside = self._top / "root", self._top / "outside"
        self._copy(self.outside)
        for name in ("journal", "wal", "shm"):
            (self.outside / ".ckptdb" / f"catalog.db-{name}").write_bytes(b"canary")
        for path in (self.outside, *self.outside.rglob("*")):
            os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)

    def _copy(self, to):
        subprocess.run(["cp", "-a", self._template, to], check=True)
        _settle(to / "run")

    @contextlib.contextmanager
    def planted(self, place, kind):
        """Enter a fresh copy in which something else is in a place."""
        self._copy(self.root)
        if place is not None:
            at = _find(self.root, PLACES[place])
            KINDS[kind](at, self.outside / at.relative_to(self.root))
            if IS_ROOT and kind != "another user's":
                os.chown(at, ANN, ANN, follow_symlinks=False)
        # A lease that cannot be read holds for a time from when it was last touched.
        for lease in (self.root / "run/.ckptdb/leases").glob("*"):
            if lease.lstat().st_nlink == 1:
                os.utime(lease, follow_symlinks=False)
        # What is young may be looked at once more, and how long a cell takes is anybody's guess.
        os.utime(self.root / "run", (LONG_AGO, LONG_AGO))
        yield self.root
        _remove(self.root)

    def remove(self):
        _remove(self._top)


def _remove(top):
    if not IS_ROOT:
        subprocess.run(["chmod", "-R", "u+rwX", top], check=False, capture_output=True)
    shutil.rmtree(top)


def _settle(run):
    """Let a copied run be itself, not a copy."""
    file = run / ".ckptdb" / "run.json"
    content = json.loads(file.read_text()) | {"inode": run.stat().st_ino}
    file.write_text(json.dumps(content))


def look(top):
    """Return everything there is below a directory: names, types, modes, owners, times, bytes."""
    seen = {}
    for path in (top, *sorted(top.rglob("*"))):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content = path.read_bytes() if kind == stat.S_IFREG else None
        seen[path.relative_to(top)] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_ino,
            status.st_mtime_ns, content,
        )  # fmt: skip
    return seen


# --- one cell -------------------------------------------------------------------------------


def act(name, root):
    """Do something in a process of Ann's; return what came of it, in words."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        if IS_ROOT:
            os.setgroups([])
            os.setgid(ANN)
            os.setuid(ANN)
        said = _say(name, root)
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == -signal.SIGALRM:
        return TOO_LONG
    return json.loads(told) if code == 0 else f"ENDS WITH {code}"


def _say(name, root):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            said = ACTS[name](root)
        except CkptdbError as error:
            said = f"refused: {type(error).__name__}"
            if "\n" in str(error) or not str(error):
                said += f" NOT A SENTENCE {error}"
        except PermissionError as error:
            named = error.filename and str(root) in str(error.filename)
            said = "refused: PermissionError" + ("" if named else " NAMES NO FILE")
        except BaseException as error:  # noqa: BLE001  # all of it is to be seen
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"FAILS with {type(error).__name__} in {Path(where.filename).name}: {error}"
            said = said.replace(str(root), "ROOT")
    return said + (", warns" if caught else "")


def cells(place):
    """Yield the kinds that can be tried at a place."""
    for kind in KINDS:
        if kind == "hard link" and place in FOLDERS:
            continue
        yield kind


def can_try(kind):
    return IS_ROOT or kind not in ("device", "another user's")


def read_golden():
    """Return what is written down: by place and kind, each act's outcome."""
    written, heading = {}, None
    for line in GOLDEN.read_text().splitlines() if GOLDEN.exists() else ():
        if line.startswith("    "):
            acts, _, outcome = line.strip().partition(": ")
            those = written[heading]
            for name in acts.split(", "):
                those[name] = written[UNTOUCHED][name] if outcome == AS_USUAL else outcome
        elif line and not line.startswith("#"):
            heading = tuple(line.split(" | "))
            written[heading] = {}
    return written


def write_golden(found):
    """Write outcomes down, beside all others that are written down already."""
    handle = os.open(GOLDEN.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # others may test, too
        written = read_golden() | found
        lines = ["# What is in a place, and what each act makes of it; written by test_matrix.py."]
        usual = written.get(UNTOUCHED, {})
        for heading in (UNTOUCHED, *((place, kind) for place in PLACES for kind in cells(place))):
            outcomes = written.get(heading, {})
            acts = {}
            for name, said in outcomes.items():
                is_usual = heading != UNTOUCHED and usual.get(name) == said
                acts.setdefault(AS_USUAL if is_usual else said, []).append(name)
            if acts:
                lines += ["", " | ".join(heading)]
                lines += [f"    {', '.join(those)}: {outcome}" for outcome, those in acts.items()]
        GOLDEN.write_text("\n".join(lines) + "\n")
    finally:
        os.close(handle)


def act_everywhere(template, place=None, kind=None):
    """Return what comes of each act, and what each has changed outside."""
    outcomes, touched = {}, {}
    trees = Trees(template)
    try:
        for name in ACTS:
            outcomes[name], touched[name] = try_cell(trees, name, place, kind)
            if outcomes[name] == TOO_LONG:  # once may be a busy machine
                outcomes[name], touched[name] = try_cell(trees, name, place, kind)
    finally:
        trees.remove()
    return outcomes, {name: paths for name, paths in touched.items() if paths}


def try_cell(trees, name, place, kind):
    with trees.planted(place, kind) as root:
        before = look(trees.outside)
        outcome = act(name, root)
        after = look(trees.outside)
    paths = sorted(before.keys() | after.keys())
    return outcome, [str(path) for path in paths if before.get(path) != after.get(path)]


def test_where_nobody_has_done_anything_everything_works(template):
    outcomes, touched = act_everywhere(template)
    if WRITES:
        write_golden({UNTOUCHED: outcomes})
    assert touched == {}
    assert outcomes == read_golden()[UNTOUCHED]


@pytest.mark.parametrize(
    ("place", "kind"), [(place, kind) for place in PLACES for kind in cells(place)]
)
def test_what_a_neighbour_puts_in_the_place_of_a_file_of_ours(template, place, kind):
    if not can_try(kind):
        requirements.skip(requirements.ROOT)
    outcomes, touched = act_everywhere(template, place, kind)
    if WRITES:
        write_golden({(place, kind): outcomes})
    assert touched == {}
    assert not [said for said in outcomes.values() if re.search("[A-Z]{4}", said)], outcomes
    assert outcomes == read_golden()[place, kind]
