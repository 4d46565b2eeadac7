from shutil import copytree

import pytest
from tests.support.planting import fill, plant, save
from tests.support.statements import sent

from ckptdb import Registry
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.web.data import DELETIONS, MOST_POINTS, catch_up, take_snapshot
from ckptdb.web.report import write_report

NOW = 1_800_000_000.0


def snapshot(location):
    with Registry.open(location) as registry:
        return take_snapshot(registry, now=NOW)


def test_every_run_has_its_counts_its_best_and_its_latest(tree):
    found = snapshot(tree)
    told = {
        shown.label: (shown.final, shown.tmp, shown.deleted, shown.best.step, shown.latest.step)
        for shown in found.runs
    }

    assert told == {"down": (3, 1, 0, 10, 30), "plain": (1, 0, 0, 5, 5), "up": (2, 0, 2, 2, 4)}
    assert (found.final, found.tmp, found.deleted, found.problems) == (6, 1, 2, 0)
    assert found.freed_bytes > 2 * 5000
    assert found.bytes_on_disk == sum(shown.bytes_on_disk for shown in found.runs)
    assert found.made_at == "2027-01-15T08:00:00.000Z"
    assert found.where == str(tree)


def test_the_best_is_what_the_run_calls_better_whatever_the_metric_is_called(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    Registry.init(root)[0].close()
    for step, loss in ((1, 0.5), (2, 0.9)):
        save(root / "odd", step, {"loss": loss}, metric_name="loss", higher_is_better=True)

    assert snapshot(root).runs[0].best.step == 2


def test_points_say_everything_about_a_checkpoint(tree):
    up = next(shown for shown in snapshot(tree).runs if shown.label == "up")
    first, second, *_ = up.points

    assert (first.step, first.status) == (1, "deleted")
    assert first.reason == "retention: not best 1 by val:acc max (0.5)"
    assert second.metrics == {"val:acc": 0.9, "val:loss": pytest.approx(0.1)}
    assert second.path == tree / "up" / "step_2"
    assert second.path.is_dir()
    assert (up.best, up.total) == (second, 4)


def test_a_rejected_one_is_shown_with_the_reason_and_is_neither_best_nor_latest(tmp_path):
    tree = plant(tmp_path / "results")
    with Registry.open(tree) as registry:
        registry.reject("up", 2, "does not load")
    found = snapshot(tree)
    up = next(shown for shown in found.runs if shown.label == "up")

    assert next(p.problem for p in up.points if p.step == 2) == "rejected: does not load"
    assert (up.best.step, up.problems, found.problems) == (4, 1, 1)


def test_an_unfinished_save_is_where_it_is(tree):
    down = next(shown for shown in snapshot(tree).runs if shown.label == "down")

    assert (down.points[-1].status, down.points[-1].path) == ("tmp", tree / "down" / "tmp_step_40")


def test_the_main_metric_is_the_one_that_most_runs_are_judged_by(tree, tmp_path):
    save(tmp_path / "a", 1, {"x": 1.0, "q": 2.0}, metric_name="x")
    Registry.init(tmp_path)[0].close()
    for name in ("b", "c"):
        save(tmp_path / name, 1, {"x": 1.0, "z": 2.0}, metric_name="z")
    found = snapshot(tmp_path)

    assert (found.metric, found.metrics) == ("z", ("z", "x", "q"))


def test_inside_a_run_only_that_run_is_shown(tree):
    found = snapshot(tree / "up" / "step_2")

    assert [shown.label for shown in found.runs] == ["up"]
    assert found.where == str(tree / "up")
    assert {gone.run for gone in found.deletions} == {"up"}
    assert found.metrics == ("val:acc", "val:loss")


def test_a_snapshot_of_a_run_changes_nothing_in_the_catalog(tmp_path):
    run = plant(tmp_path / "results") / "up"
    copytree(run / "step_2", run / "step_7")
    file = tmp_path / "results" / ".ckptdb" / "catalog.db"
    before = file.read_bytes()

    assert [shown.latest.step for shown in snapshot(run).runs] == [4]
    assert file.read_bytes() == before


def test_catching_up_takes_in_what_was_put_into_the_run_that_was_opened(tmp_path):
    root = plant(tmp_path / "results")
    copytree(root / "plain" / "step_5", root / "plain" / "step_7")
    with Registry.open(root) as registry:
        catch_up(registry)
    assert {shown.latest.step for shown in snapshot(root / "plain").runs} == {5}

    with Registry.open(root / "plain") as registry:
        catch_up(registry)
    assert {shown.latest.step for shown in snapshot(root / "plain").runs} == {7}


def test_deletions_come_with_their_reasons_the_newest_first(tree):
    told = [(gone.run, gone.step, gone.reason) for gone in snapshot(tree).deletions]

    assert sorted(told) == [
        ("up", 1, "retention: not best 1 by val:acc max (0.5)"),
        ("up", 3, "retention: not best 1 by val:acc max (0.6)"),
    ]


def test_runs_of_one_name_are_told_apart_by_their_directories(tmp_path):
    Registry.init(tmp_path)[0].close()
    for folder in ("x", "y"):
        save(tmp_path / folder / "run", 1, {"loss": 1.0}, metric_name="loss")

    assert [shown.label for shown in snapshot(tmp_path).runs] == [
        f"run ({tmp_path}/x/run)",
        f"run ({tmp_path}/y/run)",
    ]


def test_without_a_catalog_what_is_there_is_shown_and_nothing_is_made(tmp_path):
    folder = tmp_path / "nemo" / "step_3"
    folder.mkdir(parents=True)
    (folder / "training_info.json").write_text('{"loss": 0.5}')
    found = snapshot(tmp_path)

    assert [(shown.label, shown.best.path) for shown in found.runs] == [("nemo", folder)]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "nemo", "step_3", "training_info.json",
    ]  # fmt: skip


def test_an_empty_root_has_nothing_to_show(tmp_path):
    Registry.init(tmp_path)[0].close()
    found = snapshot(tmp_path)

    assert (found.runs, found.saves, found.deletions, found.metric) == ((), (), (), None)


@pytest.mark.slow
def test_of_many_points_the_outstanding_ones_are_drawn(tmp_path):
    root = fill(tmp_path / "root", count=12_000)
    (shown,) = snapshot(root).runs
    steps = [point.step for point in shown.points]

    assert shown.total == 12_000
    assert len(steps) < MOST_POINTS + 50
    assert steps == sorted(set(steps))
    assert {0, 70, *range(119_950, 120_000, 10)} <= set(steps)  # the first, the peak, what is kept
    assert shown.best in shown.points
    assert shown.latest is shown.points[-1]


@pytest.mark.slow
def test_much_that_is_kept_is_thinned_too_but_no_pin_is_lost(tmp_path):
    root = fill(tmp_path / "root", count=5_000, live=5_000, names=[f"m{i}" for i in range(30)])
    database = Database.open(locate(root))
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE checkpoints SET pinned = 1 WHERE step = 4440")
    database.close()
    (shown,) = snapshot(root).runs

    assert len(shown.points) < 3_600
    assert [point.step for point in shown.points if point.pinned] == [4440]
    assert shown.best in shown.points


def test_saves_are_counted_in_stretches_of_time(tmp_path):
    found = snapshot(fill(tmp_path / "root", count=1_000, live=10))

    assert found.saves_every_seconds == 3 * 3600
    assert sum(saves.kept for saves in found.saves) == 10
    assert sum(saves.deleted for saves in found.saves) == 990
    assert found.saves[0].since == "2026-01-01T00:00:00.000Z"


def test_only_the_newest_deletions_are_listed(tmp_path):
    found = snapshot(fill(tmp_path / "root", count=300))

    assert len(found.deletions) == DELETIONS < found.deleted == 295
    assert found.deletions[0].step == 2940


def count_questions(root):
    with Registry.open(root) as registry, sent() as found:
        take_snapshot(registry)
    return len(found)


def test_as_many_questions_are_asked_of_many_runs_as_of_one(tmp_path):
    one = fill(tmp_path / "one", count=20)
    many = fill(tmp_path / "many", count=20, runs=30)

    assert count_questions(one) == count_questions(many)


def test_a_time_that_is_none_does_not_hide_the_rest(tmp_path):
    root = plant(tmp_path / "root")
    database = Database.open(locate(root))
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE checkpoints SET finalized_at = 'never' WHERE step = 5")
    database.close()
    found = snapshot(root)

    assert len(found.runs) == 3
    assert sum(saves.kept + saves.deleted for saves in found.saves) == 7


def test_a_run_whose_metric_is_nowhere_finite_is_said_to_be_so(tmp_path):
    for step in (1, 2):
        save(tmp_path / "run", step, {"loss": float("nan")}, metric_name="loss")
    found = snapshot(tmp_path / "run")
    (run,) = found.runs
    assert (run.best, run.not_finite, run.latest.step) == (None, 2, 2)
    assert 'data-label="Best">not finite</td>' in write_report(found)
