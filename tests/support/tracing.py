"""What a process changes on disk: what Python tells of its calls, and what a tree was and is."""

import contextlib
import hashlib
import io
import json
import os
import stat
import sys
from pathlib import Path

_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CALLS = {
    "os.chflags", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr",
    "os.rename", "os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "os.utime",
    "shutil.copyfile", "shutil.move", "shutil.rmtree",
}  # fmt: skip
CATALOG = ("catalog.db", "catalog.db-journal", "catalog.db-wal", "catalog.db-shm")
"""The catalog's own file, and those that SQLite keeps beside it as long as it works there."""


def take_picture(top, *, times=True):
    """Return all that can be told of what lies at or below a directory, but for its catalog.

    Args:
        top: The directory.
        times: Whether when it was changed counts, too.
    """
    picture = {}
    for folder, folders, files in os.walk(top):
        has_catalog = any(name in CATALOG for name in files)
        for path in [Path(folder, name) for name in (".", *folders, *files)]:
            if path.name in CATALOG:
                continue
            status = os.lstat(path)
            told = [status.st_mode, status.st_uid, status.st_gid, status.st_ino]
            # SQLite makes its journal there, which is a change of the directory.
            if times and not (path == Path(folder) and has_catalog):
                told += [status.st_mtime_ns, status.st_ctime_ns, status.st_nlink, status.st_size]
            if stat.S_ISLNK(status.st_mode):
                told.append(os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                with contextlib.suppress(PermissionError):
                    told.append(hashlib.sha256(path.read_bytes()).hexdigest())
            picture[str(path)] = told
    return picture


def find_changes(before, after):
    """Return what is not as it was, a line each."""
    return [
        f"{path}: {before.get(path)} is {after.get(path)}"
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


class Trace:
    """Notes each changing call of this process below a directory."""

    def __init__(self, top):
        self.top = os.path.realpath(top)
        self.calls = []
        sys.addaudithook(self._hear)

    def take(self):
        """Return what has been noted since the last time."""
        taken, self.calls = self.calls, []
        return taken

    def _hear(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and flags & _CHANGING and self._is_below(path):
                self.calls.append(f"open {os.fsdecode(path)} {flags:#o}")
        elif event in _CALLS:
            paths = [one for one in arguments if isinstance(one, str | bytes | os.PathLike)]
            handles = [one for one in arguments if isinstance(one, int) and one >= 0]
            if not paths:
                paths = [os.readlink(f"/proc/self/fd/{arguments[0]}")]
            if any(self._is_below(path, handles) for path in paths):
                self.calls.append(f"{event} {arguments}")

    def _is_below(self, path, handles=()):
        """Whether a path, or one below any of some open directories, is in the tree."""
        name = os.fsdecode(path)
        if os.path.basename(name) in CATALOG:
            return False
        if os.path.isabs(name):
            return name.startswith(f"{self.top}/")
        places = [os.getcwd()]
        for handle in handles:
            with contextlib.suppress(OSError):
                places.append(os.readlink(f"/proc/self/fd/{handle}"))
        if len(places) > 1:
            del places[0]
        return any(f"{place}/".startswith(f"{self.top}/") for place in places)


def run_commands(top, lines):
    """Run command lines in this process; return for each its exit code and what it changed."""
    from ckptdb.cli.main import main

    trace, found = Trace(top), []
    for line in lines:
        out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
        code = None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(line)
            except SystemExit as stop:
                code = stop.code
        found.append([line, code, trace.take(), err.buffer.getvalue().decode()])
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_commands(sys.argv[1], json.loads(sys.argv[2]))))
