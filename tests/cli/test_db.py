from contextlib import closing

from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate


def test_db_path_prints_where_the_catalog_is(ckptdb, root):
    file = root / ".ckptdb" / "catalog.db"
    assert ckptdb("db", "path", cwd=root / "alpha").out == f"{file}\n"
    assert ckptdb("--catalog", file, "db", "path").out == f"{file}\n"


def test_db_status_tells_how_it_does(ckptdb, root):
    shown = ckptdb("db", "status", cwd=root)
    assert shown.code == 0
    assert "integrity    ok" in shown.out
    status = ckptdb("db", "status", "-o", "json", cwd=root).json
    assert (status["runs"], status["checkpoints"], status["integrity"]) == (3, 6, "ok")


def test_db_status_of_a_broken_catalog_says_so(ckptdb, root):
    (root / ".ckptdb" / "catalog.db").write_text("no database at all" * 100)
    answer = ckptdb("db", "status", cwd=root)
    assert answer.code == 1
    assert "is not readable" in answer.out


def test_db_status_without_a_catalog_ends_with_ten(ckptdb, tmp_path):
    answer = ckptdb("db", "status", cwd=tmp_path)
    assert answer.code == 10


def test_db_upgrade_brings_an_old_catalog_up_to_date(ckptdb, root, make_old_catalog):
    file = make_old_catalog(root / ".ckptdb" / "catalog.db")
    refused = ckptdb("ls", cwd=root)
    assert refused.code == 1
    assert "run `ckptdb db upgrade`" in refused.err
    answer = ckptdb("db", "upgrade", cwd=root)
    assert answer.code == 0
    assert answer.out.startswith("Upgraded from revision 0001 to ")
    assert ckptdb("db", "upgrade", cwd=root).out.startswith("The catalog is at revision ")
    with closing(Database.open(locate(file))) as database:
        assert database.integrity() == "ok"
    assert ckptdb("reconcile", cwd=root).code == 0
    assert "alpha" in ckptdb("ls", cwd=root).out


def test_a_writer_upgrades_an_old_catalog_by_itself(ckptdb, root, make_old_catalog):
    file = make_old_catalog(root / ".ckptdb" / "catalog.db")
    assert ckptdb("reconcile", cwd=root).code == 0
    assert file.with_name("catalog.db.0001.bak").exists()
