"""What questions cost: files touched, statements sent, stamps taken."""

import sys
from contextlib import contextmanager

from tests.support.statements import sent

from ckptdb.disk import run_stamp

_touched: list[str] | None = None


_WATCHED = {
    "open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
    "os.scandir", "os.symlink", "os.truncate", "os.utime", "sqlite3.connect",
}  # fmt: skip


def _audit(name, arguments):
    if _touched is not None and name in _WATCHED:
        _touched.append(f"{name} {arguments[0]}")


sys.addaudithook(_audit)  # for good, but it does nothing outside of `counted`


@contextmanager
def counted(monkeypatch):
    """Collect what is done to files, which statements are sent, and how many stamps are taken."""
    global _touched  # noqa: PLW0603  # an audit hook cannot be taken away, only told to rest
    statements: list[str] = []
    stamps: list[object] = []
    files: list[str] = []

    def find_stamp(directory):
        stamps.append(directory)
        return original(directory)

    original = run_stamp.find_stamp
    try:
        with monkeypatch.context() as patch, sent() as found:
            patch.setattr(run_stamp, "find_stamp", find_stamp)
            _touched = files
            yield files, statements, stamps
    finally:
        _touched = None
        statements += [statement for statement, _ in found]
