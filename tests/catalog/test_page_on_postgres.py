"""What the report shows is the same whichever database the catalog is in."""

from dataclasses import replace

from tests.support.planting import plant

from ckptdb import Registry
from ckptdb.web.data import take_snapshot


def shown(root, **options):
    with Registry.open(root, **options) as registry:
        registry.reconcile()
        found = take_snapshot(registry, now=0.0)
    # Of a run's configuration the two remember differently that there was none.
    runs = [replace(run, run=replace(run.run, config=None)) for run in found.runs]
    return replace(found, where="", runs=tuple(runs))


def test_a_catalog_on_postgres_is_shown_alike(tmp_path, postgres_url):
    root = plant(tmp_path / "results")

    assert shown(root, catalog=postgres_url) == shown(root)
