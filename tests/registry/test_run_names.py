"""Whatever a run is called, it is found again when the catalog is lost."""

import warnings

import pytest
from tests.support.trees import settle

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import main
from ckptdb.disk import names, run_finder, run_listing
from ckptdb.disk.run_finder import Runs

LOSS = "val:loss"

NAMES = [
    ".run",
    ".exp/run",
    ".exp/.deeper/.run",
    "exp/.run",
    ".local/share/runs/a",
    "-run",
    "--help",
    "run ",
    " run",
    "two\nlines",
    "tab\there",
    "caf\udce9",
    "step_lr_0.1",
    "tmp_step_test",
    "old_step_1",
    "step_5",
    "tmp_step_7",
    "step_5/step_6",
    "step_1/run",
    "tmp_step_1/run",
    ".snapshots",
    ".Trashy",
    ".git",
    "venv/lib",
    "*",
    "…",
    "a" * 255,
]
IDS = [ascii(name[:30]) for name in NAMES]


def save(run, step, loss, **options):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    with CheckpointManager(config) as manager, manager.save(step, {LOSS: loss}) as folder:
        (folder / "model.bin").write_bytes(b"m")


@pytest.fixture(params=NAMES, ids=IDS)
def run(request, tmp_path):
    """A run of that name in a root, its catalog lost after training."""
    root = tmp_path / "results"
    save(root / "plain", 1, 0.9)
    Registry.init(root)[0].close()
    (root / "venv").mkdir()
    (root / "venv" / "pyvenv.cfg").touch()
    run = root / request.param
    for step in (1, 2):
        save(run, step, 1 / step)
    (root / ".ckptdb" / "catalog.db").unlink()
    return run


def root_of(run):
    return next(folder for folder in run.parents if folder.name == "results")


@pytest.mark.slow
def test_reconcile_finds_it_again_and_check_says_that_it_is_missing(run):
    with Registry.open(root_of(run)) as registry:
        assert run in [one.directory for one in registry.reconcile(dry_run=True).runs]
        registry.reconcile()
        assert not registry.reconcile(dry_run=True).has_drift
    with Registry.open(root_of(run)) as registry:
        assert {found.directory for found in registry.runs()} >= {run, root_of(run) / "plain"}
        assert registry.best(run=run).step == 2


@pytest.mark.slow
def test_it_is_watched_and_found_where_there_is_no_catalog(run):
    settle(root_of(run))
    assert run in Runs(root_of(run)).find()
    with Registry.open(root_of(run)) as registry:
        assert run in {arrived.path.parent for arrived in registry.watch(poll_seconds=None)}
        assert run in {found.directory for found in registry.runs()}


@pytest.mark.slow
def test_init_above_takes_it_in(run):
    (root_of(run) / ".ckptdb" / "root.json").unlink()
    top = root_of(run).parent
    with Registry.init(top)[0] as registry:
        assert run in {found.directory for found in registry.runs()}


@pytest.mark.slow
def test_the_command_line_names_it_by_path(run, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["-C", str(root_of(run)), "latest", f"--run={run}"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main(["-C", str(run), "best", "-o", "json"])
    assert ended.value.code == 0
    assert '"step": 2' in capfd.readouterr().out


def test_hidden_runs_that_were_roots_of_their_own_are_absorbed(tmp_path):
    save(tmp_path / ".a", 1, 0.5)
    save(tmp_path / "exp" / ".b", 1, 0.4)
    with Registry.init(tmp_path)[0] as registry:
        assert [found.name for found in registry.runs()] == [".a", ".b"]
    assert not (tmp_path / ".a" / ".ckptdb" / "root.json").exists()


@pytest.mark.parametrize("place", [".git", ".hg", ".snapshot", ".zfs", ".Trash-1000", ".ckptdb"])
def test_what_cannot_hold_the_runs_of_a_person_is_not_searched(tmp_path, place):
    save(tmp_path / "run", 1, 0.5)
    save(tmp_path / "elsewhere", 1, 0.5)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / "elsewhere").rename(tmp_path / place / "old")
    assert list(run_finder.find_runs(tmp_path)) == [tmp_path / "run"]


def test_training_where_nobody_looks_for_runs_is_told(tmp_path):
    Registry.init(tmp_path)[0].close()
    with pytest.warns(UserWarning, match=r"lies in .*/\.snapshots, where no runs are looked for"):
        save(tmp_path / ".snapshots" / "run", 1, 0.5)
    save(tmp_path / "run", 5, 0.5)
    with pytest.warns(UserWarning, match=r"lies in .*/run/step_5, where no runs are looked for"):
        save(tmp_path / "run" / "step_5" / "finetuned", 1, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(tmp_path / ".hidden" / "run", 1, 0.5)
        save(tmp_path / ".git", 1, 0.5)


@pytest.mark.parametrize("link", ["run", "disk"])
def test_training_behind_a_link_is_told_and_found_again_by_its_path(tmp_path, link):
    root, other = tmp_path / "results", tmp_path / "other"
    Registry.init(_make(root))[0].close()
    _make(other / "run")
    if link == "run":
        run = root / "run"
        run.symlink_to(other / "run")
    else:
        (root / "disk").symlink_to(other)
        run = root / "disk" / "run"
    with pytest.warns(UserWarning, match=rf"behind the link .*/{link}, .* only `ckptdb reconcile"):
        save(run, 1, 0.5)
    (root / ".ckptdb" / "catalog.db").unlink()
    with Registry.open(root) as registry:
        registry.reconcile(run)
    with Registry.open(root) as registry:
        assert registry.latest(run="run").path == run / "step_1"


def _make(directory):
    directory.mkdir(parents=True)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["git", "venv", "conda"])
def test_a_repository_and_an_environment_beside_the_runs_cost_nothing(tmp_path, monkeypatch, kind):
    save(tmp_path / "runs" / "a", 1, 0.5)
    top, inside = {
        "git": (tmp_path / ".git", "objects"),
        "venv": (tmp_path / "venv", "lib"),
        "conda": (tmp_path / ".conda-env", "lib"),
    }[kind]
    for number in range(256):
        (top / inside / f"{number:02x}").mkdir(parents=True)
    if kind == "venv":
        (top / "pyvenv.cfg").touch()
    if kind == "conda":
        (top / "conda-meta").mkdir()
    save(tmp_path / "venv" / "results", 1, 0.5)  # a project may live in its environment
    listed = []
    real = run_listing.list_folder
    monkeypatch.setattr(run_listing, "list_folder", lambda path: listed.append(path) or real(path))
    assert list(run_finder.find_runs(tmp_path)) == [
        tmp_path / "runs" / "a",
        tmp_path / "venv" / "results",
    ]
    assert len(listed) < 10


def test_a_directory_that_goes_while_one_looks_stops_no_search(tmp_path, monkeypatch):
    save(tmp_path / "run", 1, 0.5)
    (tmp_path / "gone").mkdir()
    real = run_listing.list_folder

    def list_folder(path):
        if path.name == "gone" and path.is_dir():
            path.rmdir()
        return real(path)

    monkeypatch.setattr(run_listing, "list_folder", list_folder)
    assert list(run_finder.find_runs(tmp_path)) == [tmp_path / "run"]


def test_a_checkpoint_is_no_run_though_it_holds_a_step_of_somebody(tmp_path):
    save(tmp_path / "run", 5, 0.5)
    (tmp_path / "run" / "step_5" / "policy" / "step_2").mkdir(parents=True)
    (tmp_path / "run" / "step_5" / "policy" / "step_2" / names.INFO).write_text("{}")
    assert list(run_finder.find_runs(tmp_path)) == [tmp_path / "run"]
