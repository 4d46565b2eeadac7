"""Other users of the machine: what they do is done in processes of their own."""

import json
import os
import shutil
import struct
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path

from tests.support import requirements

from ckptdb import CheckpointManager, Registry

LOSS = "val:loss"
ANN, BOB, EVE, GROUP = 20101, 20102, 20666, 20900


def save(run, step=1, loss=0.5, **options):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    with CheckpointManager(config) as manager, manager.save(step, {LOSS: loss}) as folder:
        (folder / "model.bin").write_bytes(b"m")


def as_user(uid, what, *arguments, umask=0o022, groups=()):
    """Call something in a process of another user; return what it returns, through JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(list(groups))
            os.setgid(groups[0] if groups else uid)
            os.setuid(uid)
            os.umask(umask)
            answer = {"value": what(*arguments)}
        except BaseException as error:  # noqa: BLE001  # told by the parent
            answer = {"error": "".join(traceback.format_exception(error))}
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe, default=str)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.load(pipe)
    os.waitpid(pid, 0)
    assert "error" not in answer, answer["error"]
    return answer["value"]


@contextmanager
def shared_place():
    """A directory that everybody may get into; what is imported late has been imported."""
    top = Path(tempfile.mkdtemp(prefix="ckptdb-users-"))
    top.chmod(0o755)
    save(top / "warm")
    with Registry.open(top / "warm") as registry:
        registry.latest()
    shutil.rmtree(top / "warm")
    try:
        yield top
    finally:
        shutil.rmtree(top)


def make(path, owner, *, mode=0o755, group=None):
    path.mkdir()
    os.chown(path, owner, owner if group is None else group)
    path.chmod(mode)
    return path


def acl(*entries):
    """A POSIX ACL as the kernel has it: of ``(tag, permissions, id)``, tags by their name."""
    tags = {"owner": 1, "user": 2, "group": 4, "a group": 8, "mask": 0x10, "others": 0x20}
    nobody = 0xFFFFFFFF
    lines = [struct.pack("<HHI", tags[tag], may, *who or (nobody,)) for tag, may, *who in entries]
    return struct.pack("<I", 2) + b"".join(lines)


def set_acl(path, *entries, kind="access"):
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", acl(*entries))
    except OSError as error:
        requirements.skip(requirements.NO_ACLS, str(error))
