"""A server as its user starts it."""

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Served:
    """A running `ckptdb serve`."""

    address: str
    process: subprocess.Popen
    log: Path

    @property
    def base(self):
        return self.address.partition("?")[0].rstrip("/")


@contextlib.contextmanager
def serving(tree, *options, home):
    """Serve a tree for as long as this is entered; nothing that it logs may be a traceback.

    Everybody is let in, whoever else uses this machine, unless a token is asked for.
    """
    script = Path(sys.executable).with_name("ckptdb")
    if "--token" not in options and "CKPTDB_TOKEN" not in os.environ:
        options = ("--no-token", *options)
    command = [script, "serve", tree, "--port", "0", *options]
    with (home / "log").open("w+") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True,
            env=os.environ | {"HOME": str(home)},
        )  # fmt: skip
        try:
            address = process.stdout.readline().strip()
            log.seek(0)
            assert address.startswith("http://"), log.read()
            yield Served(address, process, home / "log")
        finally:
            process.terminate()
            process.communicate(timeout=30)
        log.seek(0)
        assert "Traceback" not in log.read()
