"""``python -m ckptdb`` is the ``ckptdb`` command."""

from ckptdb.cli.main import main

main()
