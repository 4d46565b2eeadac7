"""Disk is the truth: whatever happened, a deleted catalog comes back as it was."""

import json
import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    identity,
    journal,
    journal_records,
    leases,
    names,
    publish,
    read_checkpoint,
    read_tmp,
    retire,
    tree_removal,
)
from ckptdb.errors import CatalogMissing, LeasedCheckpoint, PinnedCheckpoint, UnknownMetric
from ckptdb.manager import CheckpointManager
from ckptdb.registry import Registry
from ckptdb.retention import Policy

pytestmark = pytest.mark.slow

EXAMPLES = 200
SHARES = 4
MOVES = 15
METRIC = "val:loss"
RUNS = ("a", "b", "c")
VALUES = st.sampled_from([0.0, 0.1, 0.1, 0.5, -3, 1e308, float("nan"), float("inf"), True, "x"])
INFOS = st.fixed_dictionaries(
    {}, optional={METRIC: VALUES, "acc": VALUES, "who": st.sampled_from(["me", None, ["é"]])}
)
CONFIGS = st.sampled_from([None, None, {"lr": 0.1}, {"lr": 0.2, "deep": {"er": [1]}}])
STEPS = st.sampled_from([0, 1, 2, 3, 5, 8])
PICK = st.integers(0, 2**16)
TAGS = st.sampled_from(["release", "v1", "naïve"])
EVALUATIONS = st.sampled_from(["mmlu", "gsm8k"])
LATE = st.dictionaries(st.sampled_from(["mmlu", METRIC]), st.sampled_from([0.25, 7]), min_size=1)
CHANGERS = (
    (fsutil, "rename_new"),
    (fsutil, "exchange"),
    (fsutil, "write_json"),
    (fsutil, "write_new"),
    (tree_removal, "remove_tree"),
    (journal, "append"),
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@contextmanager
def killed_after(changes):
    """Die at one of our own changes of the disk, the given number of them into it."""
    left = changes

    def deadly(function):
        def call(*arguments, **options):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in CHANGERS:
            patch.setattr(module, name, deadly(getattr(module, name)))
        try:
            yield
        except Killed:
            return


class Rebuild(RuleBasedStateMachine):
    """Runs below one root, loops that write them, people with a shell, and crashes."""

    dump = None

    @initialize(exchange=st.booleans())
    def begin(self, exchange):
        self.top = Path(tempfile.mkdtemp(prefix="ckptdb-rebuild-"))
        self.root = self.top / "results"
        self.root.mkdir()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda _: None)
        if not exchange:
            self.patch.setattr(fsutil, "exchange", _unsupported)
        Registry.init(self.root)[0].close()
        self.catalog = self.root / ".ckptdb" / "catalog.db"
        self.opened = Registry.open(self.root)
        self.ever = set()
        self.evaluated = set()

    def teardown(self):
        if hasattr(self, "top"):
            self.check()
            self.opened.close()
            self.patch.undo()
            shutil.rmtree(self.top)

    # --- a training loop ----------------------------------------------------------------

    @contextmanager
    def manager(self, name, **options):
        config = {"checkpoint_dir": self.root / name, "durability": "none", **options}
        manager = CheckpointManager({"metric_name": METRIC, "higher_is_better": False, **config})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The pinned checkpoint at step")
            warnings.filterwarnings("ignore", "No checkpoint has ever had the metric")
            warnings.filterwarnings("ignore", "Nothing is deleted in")
            warnings.filterwarnings("ignore", "Training continues from step")
            warnings.filterwarnings("ignore", "What stood in the place")
            warnings.filterwarnings("ignore", "Step [0-9]+ (is passed over|holds bit for bit)")
            yield manager
            manager.shutdown()

    @rule(
        name=st.sampled_from(RUNS),
        saves=st.lists(st.tuples(STEPS, INFOS, CONFIGS), min_size=1, max_size=3),
        checksums=st.booleans(),
    )
    def save(self, name, saves, checksums):
        with self.manager(name, checksums=checksums) as manager:
            for step, info, config in saves:
                with manager.save(step, info, config=config) as folder:
                    (folder / "model.bin").write_bytes(b"m" * step)

    @rule(name=st.sampled_from(RUNS), step=STEPS, info=INFOS, keep=st.integers(0, 2))
    def save_and_prune(self, name, step, info, keep):
        with self.manager(name, keep_top_k=keep) as manager, manager.save(step, info) as folder:
            (folder / "model.bin").write_bytes(b"m")

    @rule(name=st.sampled_from(RUNS), step=STEPS, info=INFOS, rejected=st.integers(0, 2))
    def resume_and_save(self, name, step, info, rejected):
        with self.manager(name) as manager:
            found = manager.resume()
            for _ in range(rejected if found else 0):
                found = found and manager.reject(found, "it cannot be loaded")
            with manager.save(step, info) as folder:
                (folder / "model.bin").write_bytes(b"m")

    @rule(name=st.sampled_from(RUNS), changes=st.integers(0, 1))
    def die_resuming(self, name, changes):
        with self.manager(name) as manager, killed_after(changes):
            manager.resume()

    @rule(name=st.sampled_from(RUNS), step=STEPS, info=INFOS)
    def fail_in_a_save(self, name, step, info):
        with (
            self.manager(name) as manager,
            pytest.raises(ZeroDivisionError),
            manager.save(step, info),
        ):
            raise ZeroDivisionError

    @rule(
        name=st.sampled_from(RUNS), step=STEPS, info=INFOS, changes=st.integers(0, 9),
        keep=st.none() | st.integers(0, 2),
    )  # fmt: skip
    def die_in_a_save(self, name, step, info, changes, keep):
        with self.manager(name, keep_top_k=keep) as manager, killed_after(changes):
            staged = manager.init_tmp_checkpoint(step, info)
            manager.finalize_checkpoint(staged)
        self.bury_writers()

    # --- after the loop -----------------------------------------------------------------

    @contextmanager
    def registry(self):
        # One for all, because opening it is half of the time that an example takes.
        yield self.opened

    def look(self, status=None):
        """Reconcile; return all checkpoints, and remember those that must never be forgotten."""
        with self.registry() as registry:
            registry.reconcile()
            found = registry.checkpoints()
        for checkpoint in found:
            if (identity.hidden(checkpoint.path.parent) / "run.json").exists():
                self.ever.add(checkpoint.uuid)
        return [checkpoint for checkpoint in found if status in (None, checkpoint.status)]

    def draw(self, pick, status):
        """Return run and step of some checkpoint, or None."""
        found = self.look(status)
        found = [cp for cp in found if cp.path.parent.is_dir()]
        if not found:
            return None
        chosen = found[pick % len(found)]
        return chosen.path.parent, chosen.step

    @rule(pick=PICK, status=st.sampled_from(["final", "final", "deleted", "tmp"]), values=LATE)
    def log_metrics(self, pick, status, values):
        if found := self.draw(pick, status):
            with self.registry() as registry:
                registry.log_metrics(*found, values, source="lm-eval")

    @rule(pick=PICK, note=st.none() | st.just("keep — for ever"), pin=st.booleans())
    def pin_or_unpin(self, pick, note, pin):
        if found := self.draw(pick, "final"):
            with self.registry() as registry:
                if pin:
                    registry.pin(*found, note=note)
                else:
                    registry.unpin(*found)

    @rule(pick=PICK)
    def unpin_what_is_gone(self, pick):
        if found := self.draw(pick, "deleted"):
            with self.registry() as registry:
                registry.unpin(*found)

    @rule(pick=PICK, name=EVALUATIONS, count=st.integers(1, 4))
    def evaluate(self, pick, name, count):
        if found := self.draw(pick, "final"):
            with self.registry() as registry:
                watching = registry.watch(found[0], lease=name, poll_seconds=None)
                taken = [(cp.run_uuid, cp.uuid, name) for cp in islice(watching, count)]
                watching.close()
            assert self.evaluated.isdisjoint(taken), "evaluated twice"
            # Nobody has said of the last one that it is done, unless there was no other.
            self.evaluated.update(taken if len(taken) < count else taken[:-1])

    @rule(pick=PICK, name=EVALUATIONS, alive=st.booleans())
    def leave_a_lease(self, pick, name, alive):
        if found := self.draw(pick, "final"):
            path = found[0] / names.final_name(found[1])
            hidden = identity.hidden(found[0])
            with self.publisher(found[0].name).alone() as (who, _):
                uuid = checkpoint_identity.find_uuid(who, path, found[1])
                claim = leases.write(hidden, uuid, name, seconds=300, since="then")
            if not alive:
                content = json.loads(claim.path.read_text())
                claim.path.write_text(json.dumps({**content, "started": 0}))

    @rule(pick=PICK, tag=TAGS, on=st.booleans())
    def tag_or_untag(self, pick, tag, on):
        if found := self.draw(pick, None):
            with self.registry() as registry:
                (registry.tag if on else registry.untag)(*found, tag)

    @rule(pick=PICK, status=st.sampled_from(["final", "deleted", "tmp"]), on=st.booleans())
    def reject_or_unreject(self, pick, status, on):
        if found := self.draw(pick, status):
            with self.registry() as registry:
                if on:
                    registry.reject(*found, "diverged — naïve")
                else:
                    registry.unreject(*found)

    @rule(pick=PICK, force=st.booleans())
    def remove(self, pick, force):
        if found := self.draw(pick, "final"):
            with self.registry() as registry:
                try:
                    registry.remove([found[1]], run=found[0], force=force)
                except (PinnedCheckpoint, LeasedCheckpoint):
                    assert not force

    @rule(keep=st.none() | st.integers(0, 2))
    def collect(self, keep):
        with self.registry() as registry, suppress(CatalogMissing, UnknownMetric):
            registry.gc(Policy(keep_top_k=keep, metric=METRIC, mode="min"), all_runs=True)

    @rule(full=st.booleans())
    def reconcile(self, full):
        with self.registry() as registry:
            registry.reconcile(full=full)

    @rule(noticed=st.booleans())
    def lose_the_catalog(self, noticed):
        if noticed:
            self.look()
        self.unlink_catalog()
        if noticed:
            self.look()
        else:
            self.ever.clear()  # what vanishes while nobody knows of it leaves no trace anywhere

    def unlink_catalog(self):
        self.opened.close()
        self.catalog.unlink(missing_ok=True)

    # --- a person with a shell ----------------------------------------------------------

    def find(self, pick, pattern="*/step_*"):
        found = sorted(self.root.glob(pattern))
        return found[pick % len(found)] if found else None

    @rule(pick=PICK)
    def rm_a_checkpoint(self, pick):
        if path := self.find(pick):
            shutil.rmtree(path)

    @rule(pick=PICK)
    def rm_an_unfinished_one(self, pick):
        if path := self.find(pick, "*/tmp_step_*"):
            shutil.rmtree(path)

    @rule(pick=PICK, step=STEPS)
    def mv_to_another_step(self, pick, step):
        path = self.find(pick)
        if path and not (target := path.with_name(f"step_{step}")).exists():
            path.rename(target)

    @rule(pick=PICK, step=STEPS, name=st.sampled_from(RUNS))
    def cp_a_checkpoint(self, pick, step, name):
        path, target = self.find(pick), self.root / name / f"step_{step}"
        if path and target.parent.is_dir() and not target.exists():
            shutil.copytree(path, target)

    @rule(pick=PICK, info=INFOS)
    def edit_training_info(self, pick, info):
        if path := self.find(pick):
            (path / names.INFO).write_text(json.dumps(info))

    @rule(pick=PICK, text=st.sampled_from(["", '{"val:loss": 0.', "[1]", "\0"]))
    def truncate_training_info(self, pick, text):
        if path := self.find(pick):
            (path / names.INFO).write_text(text)

    @rule(pick=PICK)
    def truncate_the_model(self, pick):
        if path := self.find(pick, "*/step_*/model.bin"):
            path.write_bytes(b"")

    @rule(pick=PICK)
    def rm_the_config(self, pick):
        if path := self.find(pick, "*/step_*/config.yaml"):
            path.unlink()

    @rule(name=st.sampled_from((*RUNS, "nemo")), step=STEPS, info=INFOS, yaml=st.booleans())
    def write_like_nemo(self, name, step, info, yaml):
        path = self.root / name / f"step_{step}"
        if not path.exists():
            path.mkdir(parents=True)
            (path / names.INFO).write_text(json.dumps(info))
            (path / ("config.yaml" if yaml else "config.json")).write_text('{"by": "nemo"}')

    @rule(pick=PICK, to=st.sampled_from([*RUNS, "copy"]))
    def cp_a_run(self, pick, to):
        path = self.find(pick, "[!.]*")
        if path and not (self.root / to).exists():
            shutil.copytree(path, self.root / to)

    @rule(pick=PICK, to=st.sampled_from([*RUNS, "moved"]))
    def mv_a_run(self, pick, to):
        path = self.find(pick, "[!.]*")
        if path and not (self.root / to).exists():
            path.rename(self.root / to)

    @rule()
    def let_time_pass(self):
        for path in (
            *self.root.glob("*/step_*/*"),
            *self.root.glob("*/step_*"),
            *self.root.glob("*"),
        ):
            found = path.lstat()
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 10**10))

    # --- crashes ------------------------------------------------------------------------

    def bury_writers(self):
        """Make every process that staged something a dead one."""
        for path in self.root.glob("*/tmp_step_*/.writer.json"):
            writer = json.loads(path.read_text())
            path.write_text(json.dumps({**writer, "started": 1}))

    def publisher(self, name):
        return publish.Publisher(self.root / name, make_durable=False)

    @rule(name=st.sampled_from(RUNS), step=STEPS, info=INFOS, complete=st.booleans())
    def leave_a_tmp(self, name, step, info, complete):
        with self.manager(name) as manager:
            staged = manager.init_tmp_checkpoint(step, info)
        if complete:
            who = identity.identify(self.root / name)
            self.publisher(name)._seal(who, staged, step, None)
        self.bury_writers()

    @rule(pick=PICK, info=INFOS)
    def leave_the_replaced_one_in_tmp(self, pick, info):
        self.die_in_a_replacement(pick, info, "_to_trash")

    @rule(pick=PICK, info=INFOS, then=st.sampled_from(["nothing", "new step_N", "no exchange"]))
    def leave_the_replaced_one_in_old(self, pick, info, then):
        path = self.find(pick)
        if path is None or (found := checkpoint_identity.find_uuid(*self.named(path))) is None:
            return
        old = path.with_name(f"old_{path.name}.{found}")
        if old.exists():
            return
        path.rename(old)
        if then == "new step_N":
            path.mkdir()
            (path / names.INFO).write_text(json.dumps(info))

    def die_in_a_replacement(self, pick, info, at):
        path = self.find(pick)
        if path is None:
            return
        with self.manager(path.parent.name) as manager, pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish.Publisher, at, _kill)
            with pytest.raises(Killed):
                manager.finalize_checkpoint(manager.init_tmp_checkpoint(int(path.name[5:]), info))
        self.bury_writers()

    @rule(pick=PICK)
    def leave_bytes_in_the_trash(self, pick):
        path = self.find(pick)
        if path is None:
            return
        who, _, step = self.named(path)
        deletions = retire.Deletion(
            step, checkpoint_identity.find_uuid(who, path, step), "retention: by the test"
        )
        self.publisher(path.parent.name).retire([deletions])

    @rule(pick=PICK, whole=st.booleans())
    def tear_the_journal(self, pick, whole):
        if path := self.find(pick, "*/.ckptdb/journal.jsonl"):
            with path.open("a") as file:
                file.write('{"at": "2026-01-01T00:00:00.000Z", "fact": "pin"' + ", }\n" * whole)

    @rule(pick=PICK, kind=st.sampled_from(["retention", "manual", "discarded", "replaced"]))
    def announce_a_deletion_and_die(self, pick, kind):
        path = self.find(pick, "*/*step_*")
        if path is None or path.name.startswith("old_"):
            return
        who, _, step = self.named(path)
        if path.name.startswith("tmp_"):
            checkpoint = read_tmp.load_tmp(who, path, step).checkpoint
        else:
            checkpoint = read_checkpoint.load(who, path, step)
        at = "2026-01-02T03:04:05.678Z"
        self.publisher(path.parent.name).record(
            [journal_records.gone(checkpoint.ended(kind, f"{kind}: …", at))]
        )

    def named(self, path):
        return identity.identify(path.parent), path, int(path.name.rpartition("_")[2])

    # --- the promise --------------------------------------------------------------------

    def check(self):
        self.settle_drift()
        before = self.dump(self.catalog)
        assert self.ever <= {row.uuid for row in self.look()}, "history was lost"
        self.unlink_catalog()
        self.settle_drift()
        after = self.dump(self.catalog)
        told = [f"- {row}" for rows in before.values() for row in rows]
        tells = [f"+ {row}" for rows in after.values() for row in rows]
        differences = [x for x in told if x.replace("- ", "+ ", 1) not in tells]
        differences += [x for x in tells if x.replace("+ ", "- ", 1) not in told]
        assert after == before, "\n".join(differences)

    def settle_drift(self):
        with self.registry() as registry:
            # In full, because whether files are damaged is only known at equal depth.
            report = registry.reconcile(full=True)
            emptied = [run.directory for run in report.runs if run.blocked]
            assert not any((identity.hidden(path) / "run.json").exists() for path in emptied)
            for path in (*report.missing, *emptied):
                registry.forget(path)  # moved or removed with everything that could tell of it
        with self.registry() as registry:
            again = registry.reconcile(full=True)
        assert not again.has_changes, [a.as_dict() for run in again.runs for a in run.actions]
        assert not again.blocked, again.blocked


def _unsupported(*_):
    raise fsutil.ExchangeUnsupported


def _kill(*_, **__):
    raise Killed


@pytest.mark.filterwarnings("ignore:What stood in the place")
@pytest.mark.parametrize("share", range(SHARES))
def test_a_deleted_catalog_comes_back_as_it_was_after_any_history(dump, share):
    machine = type("Machine", (Rebuild,), {"dump": staticmethod(dump)})
    run_state_machine_as_test(
        seed(share)(machine),
        settings=settings(
            max_examples=EXAMPLES // SHARES,
            stateful_step_count=MOVES,
            deadline=None,
            database=None,
            # A history of 15 moves can be read as it is, and shrinking it would take an hour.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
