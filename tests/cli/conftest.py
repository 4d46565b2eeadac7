"""A tree with two runs of ckptdb and one of NeMo-RL, and the command line to ask about it."""

import json
import warnings
from dataclasses import dataclass

import pytest
from alembic import command
from alembic.config import Config
from tests.support.saving import save

from ckptdb import Registry
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.catalog.revisions import script_location
from ckptdb.cli.main import main


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def ckptdb(capfd, monkeypatch, tmp_path):
    """Run a command line in this process; return its exit code and what it printed."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("CKPTDB_CATALOG", raising=False)

    def run(*arguments, cwd=tmp_path):
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with pytest.raises(SystemExit) as stop:
                main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err or "--debug" in arguments
        return Answer(stop.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def write_nemo():
    """Write one checkpoint the way NeMo-RL does."""

    def write(directory, step, info):
        folder = directory / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "training_info.json").write_text(json.dumps(info))
        return folder

    return write


@pytest.fixture
def root(tmp_path, write_nemo):
    """A root with the runs alpha (steps 1 to 3, the best is 2), beta (step 5) and nemo (1, 2)."""
    directory = tmp_path / "results"
    directory.mkdir()
    Registry.init(directory)[0].close()
    for step, loss in ((1, 0.5), (2, 0.2), (3, 0.4)):
        save(directory / "alpha", step, {"val:loss": loss, "note": "x"})
    save(directory / "beta", 5, {"val:loss": 0.1})
    for step in (1, 2):
        write_nemo(directory / "nemo", step, {"val:loss": step, "acc": step / 10})
    with Registry.open(directory) as registry:
        registry.reconcile()
    return directory


@pytest.fixture
def make_old_catalog():
    """Put a catalog of the first revision at a path."""

    def make(file):
        file.unlink(missing_ok=True)
        database = Database.unchecked(locate(file), create=True)
        config = Config()
        config.set_main_option("script_location", str(script_location()))
        with database.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
        database.close()
        return file

    return make
