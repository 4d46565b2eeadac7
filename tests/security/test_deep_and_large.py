"""Directories far deeper, and with far more names, than any should be.

Each takes time in proportion, and little memory; what cannot be gone through is named, and the
rest of the run, and of the tree, goes on.
"""

import os
import subprocess
from pathlib import Path

import pytest
from tests.support.bounds import bounded

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import (
    fsutil,
    leases,
    liveness,
    manifest,
    paths,
    removal_checks,
    run_finder,
)
from ckptdb.disk.safe_path import ResolvedPath
from ckptdb.retention import Policy

pytestmark = pytest.mark.slow

LEVELS = 1500
METRIC = {"metric_name": "loss", "higher_is_better": False}
OPTIONS = {**METRIC, "durability": "none"}
short = "d"
long = "directory" * 3  # 1,500 of them are ten times what the system takes for a path
names = pytest.mark.parametrize("name", [short, long], ids=["short names", "long names"])


def deepen(top, name, levels=LEVELS):
    """Make directories in directories, with a file in the deepest."""
    handle = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=handle)
        below = os.open(name, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    file = os.open("leaf.bin", os.O_CREAT | os.O_WRONLY, dir_fd=handle)
    os.write(file, b"leaf")
    os.close(file)
    os.close(handle)


def save(run, *steps, below=None, **options):
    with CheckpointManager({"checkpoint_dir": str(run), **OPTIONS, **options}) as manager:
        for step in steps:
            with manager.save(step, {"loss": 1 / step}) as folder:
                (folder / "model.bin").write_bytes(b"m")
                if below:
                    deepen(folder, below)


def asked(run):
    with Registry.open(run) as registry:
        return [[cp.step, cp.problem] for cp in registry.checkpoints(status="final")]


def reconciled(run):
    with Registry.open(run) as registry:
        return registry.reconcile(full=True).as_dict()


def verified(run):
    with Registry.open(run) as registry:
        return [[cp.step, cp.problem] for cp in registry.verify()]


def published(run):
    return sorted(int(path.name[5:]) for path in run.glob("step_*"))


def change_leaf(checkpoint, name):
    with ResolvedPath(
        f"{checkpoint}/{'/'.join([name] * LEVELS)}/leaf.bin", strict=False
    ) as resolved:
        handle = os.open(resolved.name, os.O_WRONLY | os.O_TRUNC, dir_fd=resolved.parent)
    os.write(handle, b"leaves")
    os.close(handle)


@pytest.fixture(autouse=True)
def _remove(tmp_path):
    yield
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)  # pytest's own way recurses


# --- deep -------------------------------------------------------------------------------------


@names
def test_a_checkpoint_of_1500_levels_is_saved_verified_and_removed(tmp_path, name):
    run = tmp_path / "run"
    save(run, 1, 2)
    bounded(lambda: save(run, 3, below=name, checksums=True), seconds=60)
    assert bounded(asked, run)[0] == [[1, None], [2, None], [3, None]]
    assert bounded(verified, run)[0] == [[1, None], [2, None], [3, None]]
    report, _ = bounded(reconciled, run)
    assert not report["blocked"]
    change_leaf(run / "step_3", name)
    [*_, [_, problem]], _ = bounded(verified, run)
    assert problem.startswith("damaged: " + name)
    assert problem.endswith("leaf.bin: 6 bytes instead of 4")
    assert len(problem) < 500

    def remove():
        with Registry.open(run) as registry:
            registry.remove([3])

    bounded(remove)
    assert published(run) == [1, 2]
    assert not list((run / ".ckptdb" / "trash").iterdir())


@names
def test_each_flush_and_each_list_reaches_1500_levels_with_few_handles(tmp_path, name):
    deepen(tmp_path, name)

    def reach():
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        listed = manifest.list_files(tmp_path)
        fsutil.fsync_tree(tmp_path)
        assert removal_checks.find_obstacle(tmp_path) is None
        assert not liveness.is_untouched(tmp_path, tmp_path / ".ckptdb", may_touch=False)
        return [(found.count("/"), size) for found, size in listed.items()]

    assert bounded(reach, seconds=90)[0] == [[LEVELS, 4]]  # a flush takes what the disk takes


@names
def test_a_deep_checkpoint_without_a_manifest_is_one_like_others(tmp_path, name):
    run = tmp_path / "run"
    save(run, 1)
    for folder in ("step_2", "tmp_step_3", "old_step_4.7a9f9b7b-22a1-4c1a-a6e4-0b3a9f2d2c11"):
        (run / folder).mkdir()
        (run / folder / "training_info.json").write_text('{"loss": 3}')
        deepen(run / folder, name)
    report, _ = bounded(reconciled, run)
    assert not report["blocked"]
    assert {step for step, _ in bounded(asked, run)[0]} >= {1, 2}
    bounded(save, run, 3)
    assert 3 in published(run)


def test_what_is_deeper_than_anybody_goes_is_named_and_the_rest_goes_on(tmp_path):
    run = tmp_path / "run"
    save(run, 1)
    (run / "step_2").mkdir()
    (run / "step_2" / "training_info.json").write_text('{"loss": 3}')
    deepen(run / "step_2", short, paths.MOST_LEVELS + 10)
    report, _ = bounded(reconciled, run)
    [said] = [action["what"] for action in report["runs"][0]["actions"] if action["step"] == 2]
    assert f"more than {paths.MOST_LEVELS} levels" in said
    assert not report["blocked"]
    bounded(save, run, 3)
    assert bounded(asked, run)[0] == [[1, None], [3, None]]


def test_a_save_that_is_deeper_than_anybody_goes_says_so(tmp_path):
    run = tmp_path / "run"

    def go_too_deep():
        with CheckpointManager({"checkpoint_dir": str(run), **OPTIONS}) as manager:
            folder = manager.init_tmp_checkpoint(1, {})
            deepen(folder, short, paths.MOST_LEVELS + 10)
            manager.finalize_checkpoint(folder)

    said, _ = bounded(go_too_deep)
    assert said.startswith(f"SaveFailed: {run}/tmp_step_1 was not published: ")
    assert f"more than {paths.MOST_LEVELS} levels" in said
    assert len(said) < 500
    bounded(save, run, 2)
    assert published(run) == [2]


@names
def test_runs_beside_a_directory_of_1500_levels_are_found(tmp_path, name):
    for run in ("a", "z"):
        save(tmp_path / run, 1)
    (tmp_path / "m").mkdir()
    deepen(tmp_path / "m", name)
    expected = [str(tmp_path / "a"), str(tmp_path / "z")]
    assert bounded(lambda: list(map(str, run_finder.find_runs(tmp_path))))[0] == expected
    assert bounded(lambda: list(map(str, run_finder.Runs(tmp_path).find())))[0] == expected

    def init():
        registry, report = Registry.init(tmp_path)
        registry.close()
        return [str(run.directory) for run in report.runs]

    assert sorted(bounded(init)[0]) == expected


def test_a_run_below_many_levels_is_found(tmp_path):
    top = tmp_path / "top"
    (top / "/".join([short] * 400)).mkdir(parents=True)
    deepen(top / "/".join([short] * 400), short, 700)
    run = top / "/".join([short] * 1100)
    (run / "step_1").mkdir(parents=True)
    (run / "step_1" / "training_info.json").write_text("{}")
    assert bounded(lambda: list(map(str, run_finder.find_runs(top))))[0] == [str(run)]
    assert bounded(lambda: list(map(str, run_finder.Runs(top).find())))[0] == [str(run)]


# --- many names -------------------------------------------------------------------------------

MANY = 20_000


def test_many_leases_on_one_checkpoint_take_time_in_proportion(tmp_path):
    hidden = tmp_path / ".ckptdb"
    (hidden / "leases").mkdir(parents=True)
    held = "7a9f9b7b-22a1-4c1a-a6e4-0b3a9f2d2c11"
    for number in range(MANY):
        path = hidden / "leases" / f"{held}.evaluation-{number}"
        path.touch()
        if number % 2:
            os.utime(path, (0, 0))  # ended long ago

    def look():
        [said] = leases.find_leased(hidden).values()
        return said, len(leases.settle(hidden)), len(os.listdir(hidden / "leases"))

    (said, left, files), _ = bounded(look, seconds=60)
    assert said.endswith(f"by somebody and {MANY // 2 - 5} more")
    assert len(said) < 500
    assert left == files == MANY // 2


def test_a_lease_of_200_gb_is_not_read(tmp_path):
    hidden = tmp_path / ".ckptdb"
    (hidden / "leases").mkdir(parents=True)
    held = "7a9f9b7b-22a1-4c1a-a6e4-0b3a9f2d2c11"
    (hidden / "leases" / f"{held}.mmlu").touch()
    os.truncate(hidden / "leases" / f"{held}.mmlu", 200 * 1024**3)
    assert bounded(lambda: leases.find_leased(hidden))[0] == {held: "'mmlu' by somebody"}


@pytest.mark.parametrize(
    "make", [os.mkdir, lambda path: open(path, "w").close()], ids=["dir", "file"]
)
@pytest.mark.parametrize("where", ["", ".ckptdb", ".ckptdb/trash", ".ckptdb/leases", "step_1"])
def test_thousands_of_names_anywhere_keep_a_run_from_nothing(tmp_path, where, make):
    run = tmp_path / "run"
    save(run, 1, 2)
    (run / where).mkdir(exist_ok=True)
    for number in range(MANY // 10):
        make(f"{run}/{where}/stray-{number}")
    bounded(save, run, 3)
    assert bounded(asked, run)[0] == [[1, None], [2, None], [3, None]]
    assert not bounded(reconciled, run)[0]["blocked"]


# --- a trash that holds more than what was retired ---------------------------------------------


def _as_file(path):
    path.write_bytes(b"kept")


def _as_folder(path):
    path.mkdir()
    (path / "file").write_bytes(b"kept")


def _as_link(path):
    path.symlink_to(path.parents[4] / "victim")


def _as_pipe(path):
    os.mkfifo(path)


def _as_unwritable(path):
    _as_folder(path)
    path.chmod(0o500)


UUID = "7a9f9b7b-22a1-4c1a-a6e4-0b3a9f2d2c11"
STRAY_NAMES = {
    "no name of ours": b"stray",
    "with a new line": b"step_5.\nrm -rf",
    "no UTF-8": b"step_5.\xff\xfe",
    "as long as a name may be": b"x" * 255,
    "ours, as long as a name may be": f"step_5.{UUID}.".encode() + b"1" * (255 - 44),
    "ours": f"step_5.{UUID}".encode(),
    "ours, not recorded": f"step_5.{UUID}.unrecorded".encode(),
    "ours, to be kept for ever": f"step_5.{UUID}.until-999999999999999".encode(),
    "ours, to be kept until long ago": f"step_5.{UUID}.until-1".encode(),
    "ours, not identified": f"step_5.{UUID}.unidentified.until-1".encode(),
}
MAKES = [_as_file, _as_folder, _as_link, _as_pipe, _as_unwritable]


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__[4:])
@pytest.mark.parametrize("name", STRAY_NAMES.values(), ids=STRAY_NAMES)
def test_a_stray_name_in_a_trash_stops_no_gc_of_the_root(tmp_path, name, make):
    root, victim = tmp_path / "root", tmp_path / "victim"
    _as_folder(victim)
    for run in ("a", "b", "c"):
        save(root / run, 1, 2)
    Registry.init(root)[0].close()
    make(Path(os.fsdecode(os.fsencode(root / "b" / ".ckptdb" / "trash") + b"/" + name)))

    def collect():
        with Registry.open(root) as registry:
            registry.gc(Policy(keep_top_k=1), all_runs=True)

    said, _ = bounded(collect)
    assert said is None, said

    for run in ("a", "b", "c"):
        assert published(root / run) == [2], run
        assert not [
            left for left in (root / run / ".ckptdb/trash").iterdir() if "step_1" in left.name
        ]
    assert (victim / "file").read_bytes() == b"kept"
    bounded(save, root / "b", 3)
    report, _ = bounded(reconciled, root)
    assert sorted(run["run"] for run in report["runs"]) == ["a", "b", "c"]
