"""README.md is short, its loop works, and CI runs the commands that it promises."""

import re
import tomllib
from pathlib import Path

from tests.support.documents import README, ROOT, find_block, names_in, read_table


def test_it_is_short():
    assert README.stat().st_size < 12_000


def test_the_loop_trains_prunes_and_resumes(tree, capsys):
    loop = find_block("python", "rng")
    loop.execute()
    best = capsys.readouterr().out.strip()
    loop.execute()

    assert best == capsys.readouterr().out.strip() == "results/linear/step_50"
    assert sorted(path.name for path in Path("results/linear").glob("step_*")) == [
        "step_30", "step_40", "step_50",
    ]  # fmt: skip


def test_ci_runs_its_commands():
    patterns = re.findall(r"readme '(.*)'", (ROOT / ".ci/run").read_text())

    assert len(patterns) >= 2
    for pattern in patterns:
        assert len(re.findall(pattern, README.read_text(), re.MULTILINE)) == 1


def test_every_extra_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [names_in(row[0])[0] for row in read_table("../README.md", "extra")]

    assert listed == sorted(project["optional-dependencies"].keys() - {"bench", "dev", "docs"})
