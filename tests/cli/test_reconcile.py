import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
from tests.support.saving import save

from ckptdb import CheckpointManager


def test_init_marks_a_root_and_indexes_what_is_there(ckptdb, tmp_path, write_nemo):
    write_nemo(tmp_path / "new" / "run", 1, {"loss": 1.0})
    answer = ckptdb("init", "new", cwd=tmp_path)
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == (
        f"{tmp_path}/new/.ckptdb/catalog.db is the catalog of 1 run(s)."
    )
    assert ckptdb("init", "new", cwd=tmp_path).code == 0


def test_check_names_every_difference_and_reconcile_settles_them(ckptdb, root, write_nemo):
    shutil.rmtree(root / "alpha" / "step_1")
    write_nemo(root / "nemo", 3, {"val:loss": 3.0})
    found = ckptdb("check", cwd=root)
    assert found.code == 3
    assert "alpha step 1: vanished: " in found.out
    assert "nemo step 3: added: " in found.out
    assert found.out.endswith(": 2 difference(s) found, 1 lost (alpha step 1).\n")
    assert ckptdb("reconcile", "--dry-run", cwd=root).code == 3
    settled = ckptdb("reconcile", cwd=root)
    assert settled.code == 3
    assert settled.out.endswith(": 2 difference(s) settled, 1 lost (alpha step 1).\n")
    # What is left no command can know about: a person has to say so.
    assert ckptdb("check", cwd=root).out.endswith(": 1 lost (alpha step 1).\n")
    assert ckptdb("accept", 1, "--run", "alpha", cwd=root).code == 0
    assert ckptdb("check", cwd=root).code == 0


def test_reports_come_as_json(ckptdb, root, write_nemo):
    write_nemo(root / "nemo", 3, {"val:loss": 3.0})
    report = ckptdb("check", "-o", "json", cwd=root).json
    assert report["drift"] is True
    actions = [action for run in report["runs"] for action in run["actions"]]
    assert [(action["kind"], action["step"]) for action in actions] == [("added", 3)]


def test_reconcile_of_a_path_looks_only_there(ckptdb, root, write_nemo):
    write_nemo(root / "nemo", 3, {"val:loss": 3.0})
    write_nemo(root / "other", 1, {"val:loss": 3.0})
    assert "1 run(s)" in ckptdb("reconcile", "other", cwd=root).out
    assert ckptdb("check", cwd=root).code == 3


def test_many_differences_are_counted_not_listed(ckptdb, root, write_nemo):
    for step in range(10, 40):
        write_nemo(root / "nemo", step, {"val:loss": 1.0})
    out = ckptdb("check", cwd=root).out
    assert "nemo: … and 10 more added" in out


def test_verify_names_damage_and_ends_with_one(ckptdb, root):
    assert ckptdb("verify", cwd=root).code == 0
    (root / "alpha" / "step_2" / "model.bin").write_bytes(b"short")
    answer = ckptdb("verify", "--run", "alpha", cwd=root)
    assert answer.code == 1
    assert "model.bin: 5 of 1000 bytes" in answer.out
    assert answer.err == "3 checkpoint(s) verified, 1 damaged.\n"
    assert ckptdb("best", "--run", "alpha", cwd=root).out == f"{root}/alpha/step_3\n"
    assert "PROBLEM damaged" in ckptdb("ls", "alpha", cwd=root).out
    shown = ckptdb("verify", "-o", "json", cwd=root).json
    assert [cp["step"] for cp in shown if cp["problem"]] == [2]


def test_verify_in_parts_says_how_far_it_has_come(ckptdb, root):
    answer = ckptdb("verify", "--run", "alpha", "--max-seconds", "0", cwd=root)
    assert (answer.code, answer.err) == (
        0, "0 of 3 checkpoint(s) verified, none known to be damaged; 3 never yet.\n",
    )  # fmt: skip
    answer = ckptdb("verify", "--run", "alpha", "--max-seconds", "600", cwd=root)
    assert re.fullmatch(
        r"3 of 3 checkpoint\(s\) verified, none known to be damaged; "
        r"the oldest verification is \d+ seconds old\.\n",
        answer.err,
    )
    (root / "alpha" / "step_2" / "model.bin").write_bytes(b"short")
    answer = ckptdb("verify", "--sizes-only", "--max-seconds", "600", cwd=root / "alpha")
    assert answer.code == 1
    assert "3 of 3 checkpoint(s) verified, 1 known to be damaged" in answer.err
    assert ckptdb("verify", "--max-seconds", "-1", cwd=root).code == 2


def test_a_lost_run_json_blocks_and_ends_with_four(ckptdb, root):
    (root / "alpha" / ".ckptdb" / "run.json").unlink()
    shutil.rmtree(root / "alpha" / "step_1")
    answer = ckptdb("reconcile", cwd=root)
    assert answer.code == 4
    assert "has lost its .ckptdb/run.json" in answer.err
    assert answer.err.count("\n") == 1


def test_a_run_that_is_gone_keeps_its_history_until_it_is_forgotten(ckptdb, root):
    (root / "alpha").rename(root.parent / "elsewhere")
    answer = ckptdb("reconcile", cwd=root)
    assert answer.code == 4
    assert f"{root}/alpha is not there" in answer.err
    assert ckptdb("forget", "alpha", cwd=root).code == 0
    assert ckptdb("reconcile", cwd=root).code == 0


def test_a_broken_catalog_is_set_aside_and_rebuilt(ckptdb, root):
    file = root / ".ckptdb" / "catalog.db"
    file.write_bytes(b"this is no database, but it is mine\n" * 100)
    asked = ckptdb("best", cwd=root)
    assert asked.code == 1
    assert "`ckptdb reconcile` sets it aside" in asked.err
    answer = ckptdb("reconcile", cwd=root)
    assert answer.code == 0
    assert "was set aside as" in answer.out.splitlines()[0]
    kept = list(file.parent.glob("catalog.db.broken-*Z"))
    assert len(kept) == 1
    assert kept[0].read_bytes().startswith(b"this is no database")
    assert ckptdb("best", cwd=root).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "reconcile", "verify"])
def test_progress_is_shown_on_a_terminal_and_only_there(root, command):
    parent, child = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "ckptdb", command],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=child,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(child)
    seen = b""
    try:
        while chunk := os.read(parent, 4096):
            seen += chunk
    except OSError:
        pass  # the other end of a pseudo-terminal closes with an error
    os.close(parent)
    out, _ = done.communicate()
    assert done.returncode == 0
    assert b"checkpoints" in seen
    assert b"\x1b" not in out


def test_a_named_file_that_is_no_catalog_is_never_moved(ckptdb, root, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("print('not a catalog')\n" * 100)
    answer = ckptdb("--catalog", script, "reconcile", cwd=root)
    assert answer.code == 12
    assert script.read_text().startswith("print")
    assert not list(tmp_path.glob("train.py.*"))


# --- drift that is said truthfully ------------------------------------------------------------


def last(answer):
    return answer.out.splitlines()[-1].partition(" s: ")[2]


def test_a_loss_stays_drift_whoever_asks_in_between(ckptdb, root):
    shutil.rmtree(root / "alpha" / "step_1")
    assert ckptdb("check", cwd=root).code == 3
    assert ckptdb("ls", "alpha", cwd=root).code == 0  # a question heals the index, no journal
    for command in ("check", "reconcile"):
        answer = ckptdb(command, cwd=root)
        assert answer.code == 3
        done = "found" if command == "check" else "settled"
        assert last(answer) == f"1 difference(s) {done}, 1 lost (alpha step 1)."
        assert "alpha step 1: vanished: has vanished; known to the catalog, not to" in answer.out
        assert "or accept the loss with `ckptdb accept 1 --run alpha`" in answer.out
    for command in ("check", "reconcile", "check"):
        answer = ckptdb(command, cwd=root)
        assert answer.code == 3
        assert last(answer) == "1 lost (alpha step 1)."
        assert re.search(
            r"alpha step 1: lost: missing on disk since [0-9TZ:.-]+, not deleted by ckptdb; "
            r"restore it, or accept the loss with `ckptdb accept 1 --run alpha`",
            answer.out,
        )
    report = ckptdb("check", "-o", "json", cwd=root).json
    assert (report["drift"], report["counts"]["differences"]) == (True, 0)
    assert report["counts"]["lost"] == 1


def test_a_loss_is_settled_by_accepting_it(ckptdb, root):
    shutil.rmtree(root / "alpha" / "step_1")
    refused = ckptdb("accept", 2, "--run", "alpha", cwd=root)
    assert (refused.code, refused.err) == (
        1,
        "ckptdb: Step 2 of 'alpha' is not recorded as lost; `ckptdb check` lists what is.\n",
    )
    # Also when nobody has noticed it before.
    answer = ckptdb("accept", 1, "--run", "alpha", cwd=root)
    assert (answer.code, answer.out) == (0, "alpha step 1: accepted as lost\n")
    assert last(ckptdb("check", cwd=root)) == "no drift."
    assert "vanished: not on disk any more" in ckptdb("show", 1, "--run", "alpha", cwd=root).out
    (root / ".ckptdb" / "catalog.db").unlink()
    assert ckptdb("reconcile", cwd=root).code == 0
    assert ckptdb("accept", cwd=root).code == 2
    assert ckptdb("accept", 1, "--all", cwd=root).code == 2


def test_all_losses_of_a_run_are_accepted_at_once(ckptdb, root):
    for step in (1, 2):
        shutil.rmtree(root / "alpha" / f"step_{step}")
    answer = ckptdb("accept", "--all", "--run", "alpha", cwd=root)
    assert answer.out == "alpha step 1: accepted as lost\nalpha step 2: accepted as lost\n"
    again = ckptdb("accept", "--all", "--run", "alpha", cwd=root)
    assert (again.code, again.out) == (0, "Nothing is lost here.\n")


def test_a_loss_is_settled_by_bringing_it_back(ckptdb, root, tmp_path):
    (root / "alpha" / "step_1").rename(tmp_path / "aside")
    assert ckptdb("reconcile", cwd=root).code == 3
    (tmp_path / "aside").rename(root / "alpha" / "step_1")
    assert ckptdb("reconcile", cwd=root).code == 0
    assert last(ckptdb("check", cwd=root)) == "no drift."
    shutil.rmtree(root / "alpha" / "step_1")
    assert ckptdb("accept", 1, "--run", "alpha", cwd=root).code == 0
    shutil.copytree(root / "alpha" / "step_2", tmp_path / "kept")
    assert ckptdb("check", cwd=root).code == 0


def test_one_that_was_accepted_and_came_back_may_be_lost_again(ckptdb, root, tmp_path):
    one = root / "alpha" / "step_1"
    shutil.copytree(one, tmp_path / "kept")
    shutil.rmtree(one)
    assert ckptdb("accept", 1, "--run", "alpha", cwd=root).code == 0
    shutil.copytree(tmp_path / "kept", one)
    assert ckptdb("reconcile", cwd=root).code == 0
    shutil.rmtree(one)
    assert ckptdb("reconcile", cwd=root).code == 3


def test_what_was_deleted_or_never_finished_is_no_loss(ckptdb, root):
    assert ckptdb("rm", 1, "--run", "alpha", cwd=root).code == 0
    with CheckpointManager({"checkpoint_dir": root / "alpha"}) as manager:
        left = manager.init_tmp_checkpoint(9, {"loss": 1.0})
    assert ckptdb("reconcile", cwd=root).code == 0
    shutil.rmtree(left)
    assert ckptdb("reconcile", cwd=root).code == 0
    assert last(ckptdb("check", cwd=root)) == "no drift."


def test_an_edited_training_info_is_no_loss(ckptdb, root):
    info = root / "nemo" / "step_1" / "training_info.json"
    info.write_text('{"val:loss": 7}')
    assert ckptdb("reconcile", cwd=root).code == 0
    assert last(ckptdb("check", cwd=root)) == "no drift."
    assert ckptdb("rm", 1, "--run", "nemo", cwd=root).code == 0
    assert last(ckptdb("check", cwd=root)) == "no drift."


@pytest.mark.parametrize("content", [None, "{"])
def test_one_whose_manifest_is_gone_is_no_loss(ckptdb, root, content):
    manifest = root / "alpha" / "step_1" / "manifest.json"
    manifest.unlink()
    if content:
        manifest.write_text(content)
    ckptdb("reconcile", cwd=root)
    expected = "1 unreadable (alpha step 1)." if content else "no drift."
    assert last(ckptdb("check", cwd=root)) == expected


@pytest.mark.slow
def test_a_step_that_was_lost_and_is_saved_again_is_still_a_loss(ckptdb, root):
    shutil.rmtree(root / "alpha" / "step_1")
    assert ckptdb("reconcile", cwd=root).code == 3
    save(root / "alpha", 1, {"val:loss": 0.5})
    assert last(ckptdb("check", cwd=root)) == "1 lost (alpha step 1)."


def test_damaged_and_unreadable_ones_are_drift_and_rejected_ones_are_not(ckptdb, root):
    assert ckptdb("reject", 3, "diverged", "--run", "alpha", cwd=root).code == 0
    answer = ckptdb("check", cwd=root)
    assert (answer.code, last(answer)) == (0, "no drift; 1 rejected (alpha step 3).")
    (root / "beta" / "step_5" / "model.bin").write_bytes(b"short")
    assert ckptdb("verify", cwd=root).code == 1
    (root / "nemo" / "step_2" / "training_info.json").write_text("{")
    assert ckptdb("reconcile", cwd=root).code == 3
    for command in ("check", "reconcile"):
        answer = ckptdb(command, cwd=root)
        assert answer.code == 3
        assert last(answer) == (
            "1 damaged (beta step 5), 1 unreadable (nemo step 2); 1 rejected (alpha step 3)."
        )
    report = ckptdb("check", "-o", "json", cwd=root).json
    assert report["drift"] is True
    assert report["counts"] == {
        "differences": 0, "lost": 0, "damaged": 1, "unreadable": 1, "rejected": 1,
    }  # fmt: skip


def test_many_that_are_not_well_are_counted_not_all_named(ckptdb, root, write_nemo):
    for step in range(10, 18):
        (write_nemo(root / "nemo", step, {}) / "training_info.json").write_text("[")
    ckptdb("reconcile", cwd=root)
    assert last(ckptdb("check", cwd=root)) == (
        "8 unreadable (nemo step 10, nemo step 11, nemo step 12, nemo step 13, nemo step 14 "
        "and 3 more)."
    )


def said(answer):
    return sorted(line.split(": ")[1] for line in answer.out.splitlines()[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("new", ["omega", "aaa", "below/alpha"])
def test_a_run_that_moved_has_moved_and_is_not_missing(ckptdb, root, new):
    (root / new).parent.mkdir(exist_ok=True)
    (root / "alpha").rename(root / new)
    answer = ckptdb("check", cwd=root)
    assert (answer.code, said(answer), answer.err) == (3, ["moved run"], "")
    answer = ckptdb("reconcile", cwd=root)
    assert (answer.code, said(answer), answer.err) == (0, ["moved run"], "")
    assert last(ckptdb("check", cwd=root)) == "no drift."
    assert ckptdb("best", "--run", new.split("/")[-1], cwd=root).out == f"{root}/{new}/step_2\n"


def test_two_runs_that_changed_places_have_moved(ckptdb, root):
    (root / "alpha").rename(root / "aside")
    (root / "beta").rename(root / "alpha")
    (root / "aside").rename(root / "beta")
    answer = ckptdb("check", cwd=root)
    assert (answer.code, said(answer), answer.err) == (3, ["moved run", "moved run"], "")
    assert said(ckptdb("reconcile", cwd=root)) == ["moved run", "moved run"]
    assert last(ckptdb("check", cwd=root)) == "no drift."
    assert ckptdb("latest", "--run", root / "beta", cwd=root).out == f"{root}/beta/step_3\n"


@pytest.mark.slow
@pytest.mark.parametrize("new", ["aaa", "omega"])
def test_a_run_that_moved_and_one_begun_in_its_place_are_two(ckptdb, root, new, monkeypatch):
    (root / "alpha").rename(root / new)
    # As long as the catalog is elsewhere: nobody has told it of the new one.
    save(root / "alpha", 1, {"val:loss": 0.5}, catalog=root.parent / "another.db")
    answer = ckptdb("check", cwd=root)
    assert (answer.code, answer.err) == (3, "")
    assert said(answer) == ["added", "moved run", "new run"]
    answer = ckptdb("reconcile", cwd=root)
    assert (answer.code, said(answer)) == (0, ["added", "moved run", "new run"])
    assert last(ckptdb("check", cwd=root)) == "no drift."


def test_a_run_that_moved_out_of_the_root_is_not_there(ckptdb, root, tmp_path):
    (root / "alpha").rename(tmp_path / "alpha")
    answer = ckptdb("check", cwd=root)
    assert answer.code == 4
    assert f"{root}/alpha is not there; its history is kept" in answer.err


def test_an_unfinished_save_of_nobody_is_called_so(ckptdb, root):
    folder = root / "nemo" / "tmp_step_9"
    folder.mkdir()
    (folder / "training_info.json").write_text("{}")
    ckptdb("reconcile", cwd=root)
    out = ckptdb("check", cwd=root).out
    assert "nemo step 9: abandoned tmp: unfinished save (writer unknown); " in out


def test_a_damaged_journal_is_drift_until_reconcile(ckptdb, root):
    assert ckptdb("pin", 1, "--run", "alpha", cwd=root).code == 0
    journal = root / "alpha" / ".ckptdb" / "journal.jsonl"
    journal.write_bytes(b"x" + journal.read_bytes()[1:])
    answer = ckptdb("check", cwd=root)
    assert answer.code == 3
    assert "alpha: damaged journal: 1 line of its journal cannot be read; " in answer.out
    assert (
        "alpha step 1: contradicted: the catalog knows a pin that its journal does not; "
        "written to the journal\n" in answer.out
    )
    refused = ckptdb("gc", "--run", "alpha", "--keep-latest", 1, cwd=root)
    assert refused.code == 1
    # Of the same size: whether anybody has compared it with the catalog yet is a matter of time.
    why = r"(the catalog knows a pin of step 1 that its journal does not|1 line of its journal .*)"
    assert re.fullmatch(
        rf"ckptdb: Nothing is deleted in {root}/alpha: {why}; `ckptdb reconcile {root}/alpha` says "
        r"what can be restored, and does it\.\n",
        refused.err,
    )
    assert ckptdb("gc", "--keep-latest", 1, "--dry-run", cwd=root).code == 0
    answer = ckptdb("reconcile", cwd=root)
    assert answer.code == 0
    assert "alpha: the damaged journal is kept as " in answer.out
    assert last(ckptdb("check", cwd=root)) == "no drift."
    report = ckptdb("reconcile", "-o", "json", cwd=root).json
    assert {run["doubt"] for run in report["runs"]} == {None}
