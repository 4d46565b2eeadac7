"""Nobody who puts something else in the place of our files leads us elsewhere."""

import os
import subprocess
import sys
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.canary import take_picture
from tests.support.requirements import needs_root

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import main
from ckptdb.disk import fsutil, tree_removal
from ckptdb.disk.evaluator import Evaluator
from ckptdb.disk.publish import Publisher
from ckptdb.errors import CkptdbError, Obstructed, RunNotHere
from ckptdb.retention import Policy

LOSS = "val:loss"
HANGS_SECONDS = 15
"""What a few calls take that wait for something, on a machine that does much else."""


def open_manager(run: Path, **options) -> CheckpointManager:
    return CheckpointManager(
        {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    )


def save(run: Path, *steps: int, **options) -> None:
    with open_manager(run, **options) as manager:
        for step in steps:
            with manager.save(step, {LOSS: step / 10}) as folder:
                (folder / "model.bin").write_bytes(b"m" * 100)


def put_victim(top: Path) -> Path:
    victim = top / "victim"
    (victim / "deep").mkdir(parents=True)
    (victim / "thesis.tex").write_bytes(b"years of work")
    (victim / "deep" / "data").write_bytes(b"more of it")
    victim.chmod(0o750)
    return victim


def command(run: Path, *words: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return main(["-C", str(run), *words]) or 0
        except SystemExit as end:
            return int(end.code or 0)


# --- a symlink in the trash ----------------------------------------------------------------

COMMANDS = {
    "ls": ["ls"],
    "best": ["best"],
    "latest": ["latest"],
    "show": ["show", "2"],
    "top": ["top"],
    "verify": ["verify"],
    "check": ["check"],
    "pin": ["pin", "2"],
    "rm --dry-run": ["rm", "1", "--dry-run"],
    "rm": ["rm", "1", "--yes"],
    "gc --dry-run": ["gc", "--keep-latest", "1", "--dry-run"],
    "gc": ["gc", "--keep-latest", "1", "--yes"],
    "gc --empty-trash": ["gc", "--keep-latest", "1", "--yes", "--empty-trash"],
    "init": ["init"],
    "reconcile": ["reconcile"],
    "undelete": ["undelete", "5"],
}
KINDS = {
    "unrecorded": ".unrecorded",
    "retired": "",
    "to be undeleted": f".until-{2**33}",
    "due": ".until-1000",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_symlink_in_the_trash_leads_no_command_anywhere(tmp_path, capsys, words, kind):
    run, victim = tmp_path / "run", put_victim(tmp_path)
    save(run, 1, 2, 3)
    link = run / ".ckptdb" / "trash" / f"step_5.{uuid.uuid4()}{KINDS[kind]}"
    link.symlink_to(victim)
    before = take_picture(victim)
    command(run, *words)
    assert take_picture(victim) == before
    assert link.is_symlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_symlink_in_the_trash_leads_a_prune_nowhere(tmp_path, kind):
    run, victim = tmp_path / "run", put_victim(tmp_path)
    save(run, 1, 2)
    link = run / ".ckptdb" / "trash" / f"step_5.{uuid.uuid4()}{KINDS[kind]}"
    link.symlink_to(victim)
    before = take_picture(victim)
    save(run, 3, keep_top_k=1)
    assert take_picture(victim) == before
    assert sorted(path.name for path in run.glob("step_*")) == ["step_1", "step_3"]


def test_a_symlink_put_in_the_place_of_what_is_being_removed_is_not_followed(tmp_path, monkeypatch):
    """Between the moment it is listed and the moment it is removed."""
    run, victim = tmp_path / "run", put_victim(tmp_path)
    save(run, 1, 2)
    retired = run / ".ckptdb" / "trash" / f"step_5.{uuid.uuid4()}"
    retired.mkdir()
    (retired / "model.bin").touch()
    before = take_picture(victim)
    real, swapped = tree_removal.remove_tree, []

    def swap_and_remove(path):
        path.rename(tmp_path / "aside")
        path.symlink_to(victim)
        swapped.append(path)
        real(path)

    monkeypatch.setattr(tree_removal, "remove_tree", swap_and_remove)
    Publisher(run).empty_trash()
    assert swapped == [retired]
    assert take_picture(victim) == before


def test_a_directory_that_is_moved_away_while_it_is_emptied_stops_the_removal(
    tmp_path, monkeypatch
):
    """Going up from it must not lead to what it was moved into."""
    victim = put_victim(tmp_path)
    top = tmp_path / "top"
    (top / "sub" / "below").mkdir(parents=True)
    (top / "sub" / "below" / "file").touch()
    real = tree_removal._remove_files

    def move_and_remove(handle, kept):
        if os.path.exists(top / "sub" / "below") and os.listdir(handle) == ["file"]:
            (top / "sub" / "below").rename(victim / "deep" / "below")
        return real(handle, kept)

    monkeypatch.setattr(tree_removal, "_remove_files", move_and_remove)
    with pytest.raises(OSError, match="moved while it was removed"):
        tree_removal.remove_tree(top)
    assert (victim / "deep" / "data").read_bytes() == b"more of it"
    assert (victim / "thesis.tex").exists()


def test_a_tree_deeper_than_there_may_be_open_files_is_removed(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    handle = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=handle)
        handle, left = os.open("d", os.O_RDONLY, dir_fd=handle), handle
        os.close(left)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
    os.close(handle)
    tree_removal.remove_tree(top)
    assert not top.exists()


# --- something else in the place of our files ----------------------------------------------


def put_symlink(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def put_dangling(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere.with_name("not-there"))


def put_hard_link(path: Path, elsewhere: Path) -> None:
    os.link(elsewhere, path)


def put_pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def put_device(path: Path, _: Path) -> None:
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))


def put_directory(path: Path, _: Path) -> None:
    path.mkdir()


PUT = [
    put_symlink, put_dangling, put_hard_link, put_pipe,
    pytest.param(put_device, marks=needs_root), put_directory,
]  # fmt: skip


@pytest.fixture
def neighbour(tmp_path):
    """Another run, whose files the run in question is led to."""
    run = tmp_path / "neighbour"
    save(run, 1, 2)
    Registry.open(run).pin(None, 1)
    return run


def take_away(path: Path) -> None:
    if path.is_dir():
        tree_removal.remove_tree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("put", PUT)
@pytest.mark.parametrize("name", ["lock", "trainer", "journal.jsonl"])
def test_what_we_write_into_must_be_a_file_of_its_own(tmp_path, neighbour, name, put):
    run = tmp_path / "run"
    save(run, 1, 2)
    take_away(run / ".ckptdb" / name)
    put(run / ".ckptdb" / name, neighbour / ".ckptdb" / name)
    before = take_picture(neighbour)
    started = time.monotonic()
    # What a save cannot do is an error; that what it did already cannot be cleaned up, a warning.
    refused = pytest.raises((CkptdbError, OSError, UserWarning), match=r"is a |another name")
    with refused, warnings.catch_warnings():
        warnings.simplefilter("error")
        save(run, 3, keep_top_k=1)
    if name != "trainer":  # which only trainers take
        with pytest.raises((CkptdbError, OSError), match=r"is a |another name"):
            Registry.open(run).pin(None, 2)
    assert time.monotonic() - started < HANGS_SECONDS
    assert take_picture(neighbour) == before
    assert (run / "step_1").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("put", PUT)
def test_a_run_json_that_leads_elsewhere_is_not_written_through(tmp_path, neighbour, put):
    run = tmp_path / "run"
    save(run, 1, 2)
    (run / ".ckptdb" / "run.json").unlink()
    put(run / ".ckptdb" / "run.json", neighbour / ".ckptdb" / "run.json")
    before = take_picture(neighbour)
    links = before.pop(".ckptdb/run.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(run, 3, metric_name="other", metric_change="keep")
    after = take_picture(neighbour)
    # One name less may lead to it now: ours.
    assert [*after.pop(".ckptdb/run.json")[:3]] == [*links[:3]]
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize("put", [put_symlink, put_dangling, put_pipe, put_hard_link])
@pytest.mark.parametrize("name", [".ckptdb", ".ckptdb/trash"])
def test_folders_of_ours_that_lead_elsewhere_are_refused(tmp_path, neighbour, name, put):
    run = tmp_path / "run"
    save(run, 1, 2, 3)
    Registry.open(run).pin(None, 1)
    take_away(run / name)
    if put is put_hard_link:
        (run / name).write_bytes(b"a file")
    else:
        put(run / name, neighbour / name)
    before = take_picture(tmp_path / "neighbour")
    mine = take_picture(run / "step_1")
    started = time.monotonic()
    for attempt in (
        lambda: save(run, 4, keep_top_k=1),
        lambda: Registry.open(run).pin(None, 2),
        lambda: Registry.open(run).gc(Policy(keep_top_k=1)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises((CkptdbError, OSError)) as refused:
                attempt()
        assert "\n" not in str(refused.value)
    assert time.monotonic() - started < HANGS_SECONDS
    assert take_picture(tmp_path / "neighbour") == before
    assert take_picture(run / "step_1") == mine


@pytest.mark.slow
@pytest.mark.parametrize("put", [put_symlink, put_dangling])
def test_a_question_of_a_run_whose_folder_leads_elsewhere_is_refused(
    tmp_path, neighbour, capsys, put
):
    run = tmp_path / "run"
    save(run, 1, 2)
    tree_removal.remove_tree(run / ".ckptdb")
    put(run / ".ckptdb", neighbour / ".ckptdb")
    before = take_picture(tmp_path / "neighbour")
    for words in (["best"], ["ls"], ["check"], ["reconcile"], ["gc", "--dry-run"]):
        command(run, *words)
        said = capsys.readouterr().err
        assert "Traceback" not in said
    assert take_picture(tmp_path / "neighbour") == before


def test_leases_that_lead_elsewhere_are_neither_read_nor_written(tmp_path, neighbour):
    run = tmp_path / "run"
    save(run, 1, 2, 3)
    (neighbour / ".ckptdb" / "leases").mkdir()
    (run / ".ckptdb" / "leases").symlink_to(neighbour / ".ckptdb" / "leases")
    before = take_picture(neighbour)
    with pytest.raises(Obstructed, match="leases is a symlink"):
        Registry.open(run).gc(Policy(keep_top_k=1))
    with pytest.raises(Obstructed, match="leases is a symlink"):
        Evaluator(run, "mmlu").take(3, Registry.open(run).latest().uuid)
    assert take_picture(neighbour) == before
    assert len(list(run.glob("step_*"))) == 3


# --- a run that is swapped -----------------------------------------------------------------

SWAP = """
import os, sys
run, aside, link = sys.argv[1:]
print("ready", flush=True)
while True:
    os.rename(run, aside)
    os.rename(link, run)
    os.rename(run, link)
    os.rename(aside, run)
"""


def copy_run(run: Path, victim: Path) -> None:
    """Make a run that says of itself all that another says."""
    subprocess.run(["cp", "-a", str(run), str(victim)], check=True)
    record = victim / ".ckptdb" / "run.json"
    said = record.read_text()
    inodes = [str(path.stat().st_ino) for path in (run, victim)]
    assert inodes[0] in said
    record.write_text(said.replace(*inodes))


def test_a_run_that_is_swapped_between_judging_and_deleting_is_left_alone(tmp_path, monkeypatch):
    run, victim = tmp_path / "run", tmp_path / "victim"
    save(run, 1, 2, 3)
    copy_run(run, victim)
    before = take_picture(victim)
    real = Publisher.retire

    def swap_and_retire(self, *arguments, **options):
        run.rename(tmp_path / "aside")
        run.symlink_to(victim)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Publisher, "retire", swap_and_retire)
    with pytest.raises(RunNotHere, match="another directory is by now"):
        Registry.open(run).gc(Policy(keep_top_k=1))
    assert take_picture(victim) == before


def test_a_run_that_is_swapped_under_the_lock_is_the_one_that_is_changed(tmp_path, monkeypatch):
    run, victim = tmp_path / "run", tmp_path / "victim"
    save(run, 1, 2, 3)
    copy_run(run, victim)
    before = take_picture(victim)
    real, swapped = fsutil.rename_new, []

    def swap_and_rename(source, target):
        if not swapped:
            swapped.append(source)
            run.rename(tmp_path / "aside")
            run.symlink_to(victim)
        real(source, target)

    monkeypatch.setattr(fsutil, "rename_new", swap_and_rename)
    with warnings.catch_warnings(), suppress(CkptdbError, OSError):
        warnings.simplefilter("ignore")
        Registry.open(run).gc(Policy(keep_top_k=1))
    assert swapped
    assert take_picture(victim) == before
    assert sorted(path.name for path in (tmp_path / "aside").glob("step_*")) == ["step_1", "step_3"]


def collect_for(seconds: float, root: Path) -> list[str]:
    """Apply a rule to the runs of a root again and again; return what came of it."""
    outcomes = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Registry.open(root) as registry:
                    registry.gc(Policy(keep_top_k=1), all_runs=True)
            outcomes.append("done")
        except (CkptdbError, OSError) as error:
            outcomes.append(type(error).__name__)
    return outcomes


@pytest.mark.slow
def test_a_second_process_that_swaps_runs_all_the_time_costs_its_neighbour_nothing(tmp_path):
    root, victim = tmp_path / "root", tmp_path / "victim"
    root.mkdir()
    assert command(root, "init") == 0
    run, aside, link = root / "run", tmp_path / "aside", tmp_path / "link"
    save(run, *range(1, 9))
    copy_run(run, victim)
    link.symlink_to(victim)
    before = take_picture(victim)
    with subprocess.Popen(
        [sys.executable, "-c", SWAP, run, aside, link], stdout=subprocess.PIPE
    ) as swapping:
        try:
            assert swapping.stdout is not None
            swapping.stdout.readline()
            outcomes = collect_for(3, root)
        finally:
            swapping.kill()
    assert outcomes
    assert take_picture(victim) == before
