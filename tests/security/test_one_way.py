"""That all of us reach a run's files in one way is looked up in the code itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptdb

SOURCE = Path(ckptdb.__file__).parent
CHANGING = {
    "chmod", "chown", "lchown", "link", "makedirs", "mkdir", "remove", "removedirs", "rename",
    "renames", "replace", "rmdir", "symlink", "truncate", "unlink", "utime",
}  # fmt: skip
OF_PATHS = {
    "chmod", "hardlink_to", "mkdir", "rename", "rmdir", "symlink_to", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip
ALLOWED = {
    "disk/paths.py": "the one way",
    "catalog/files.py": "the one way to open a catalog, which knows no run",
    "catalog/set_aside.py": "sets a broken catalog aside, beside itself",
    "cli/prompt.py": "the history of the prompt, in the user's own directory",
    "cli/report.py": "the report, where the user wants it",
    "cli/demo.py": "a directory of its own",
}


def find_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of what changes a file by its path."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, node.func.value
        module = owner.id if isinstance(owner, ast.Name) else None
        by_handle = any(
            keyword.arg in ("dir_fd", "src_dir_fd", "dst_dir_fd") for keyword in node.keywords
        )
        if module == "shutil" and name in ("rmtree", "move", "copytree"):
            yield node.lineno, f"shutil.{name}"
        elif module == "os" and name in CHANGING and not by_handle:
            yield node.lineno, f"os.{name}"
        elif module not in ("os", "paths", "fsutil") and name in OF_PATHS:
            yield node.lineno, f".{name}"


@pytest.mark.parametrize(
    "file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE))
)
def test_no_file_is_changed_by_its_path(file):
    name = str(file.relative_to(SOURCE))
    found = list(find_calls(ast.parse(file.read_text("utf-8"))))
    if name in ALLOWED:
        assert name == "disk/paths.py" or found, f"{name} need not be allowed any more"
    else:
        assert found == []


def test_the_search_finds_what_it_is_for():
    changing = ["os.rename(a, b)", "path.unlink()", "shutil.rmtree(p)"]
    others = ["os.unlink(a, dir_fd=b)", "paths.unlink(a)"]
    assert [name for _, name in find_calls(ast.parse("\n".join([*changing, *others])))] == [
        "os.rename", ".unlink", "shutil.rmtree",
    ]  # fmt: skip
