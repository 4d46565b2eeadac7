"""The grammar of names in a run directory.

``step_N`` is a published checkpoint, ``tmp_step_N`` one being written and
``old_step_N.<uuid>`` one being replaced. N is plain ASCII without leading zeros, below 2**63.
``step_N`` may be a symlink to a directory. Everything else (``step_007``, ``step_1-hf``,
``step_١``) belongs to somebody else.
"""

from __future__ import annotations

import operator
import re
from pathlib import Path
from urllib.parse import quote, unquote

from ckptdb.core.text import is_storable
from ckptdb.errors import InvalidStep, NoCheckpointHere

HIDDEN = ".ckptdb"
TRASH = "trash"
INFO = "training_info.json"
CONFIG = "config.yaml"
CONFIG_JSON = "config.json"
MANIFEST = "manifest.json"
WRITER = ".writer.json"
RECORD = frozenset({INFO, MANIFEST, WRITER})
"""Files from which a checkpoint's line in the journal can be written."""

_NOT_SEARCHED = frozenset({
    HIDDEN,
    ".git", ".hg", ".svn", ".bzr", ".jj",  # versions of source files, in thousands of folders
    ".snapshot", ".snapshots", ".zfs",  # every run once more, as a file system had it earlier
})  # fmt: skip
_THROWN_AWAY = ".Trash"
"""``.Trash``, ``.Trash-1000``, ``.Trashes``: what a desktop has thrown away is no run any more."""
_OF_AN_ENVIRONMENT = frozenset({"bin", "include", "lib", "lib64", "share", "Lib", "Scripts"})
_MARKS_OF_AN_ENVIRONMENT = frozenset({"pyvenv.cfg", "conda-meta"})

_LARGEST_STEP = 2**63 - 1
_NUMBER = r"(0|[1-9][0-9]{0,18})"
_FINAL = re.compile(rf"step_{_NUMBER}", re.ASCII)
_TMP = re.compile(rf"tmp_step_{_NUMBER}", re.ASCII)
_OLD = re.compile(rf"old_step_{_NUMBER}\.([0-9a-f-]{{36}})", re.ASCII)
_UNRECORDED = ".unrecorded"
_UNIDENTIFIED = ".unidentified"
_TRASH = re.compile(
    rf"step_{_NUMBER}\.([0-9a-f-]{{36}})(?:\.[0-9]+)?(?:{re.escape(_UNIDENTIFIED)})?"
    rf"(?:\.until-([0-9]{{1,15}}))?"
    rf"(?:{re.escape(_UNRECORDED)})?",
    re.ASCII,
)
_LEASE = re.compile(r"([0-9a-f-]{36})\.(.+)", re.ASCII)
_LONGEST_EVALUATION = 150
"""With two uuids, its own and that of the file it is written to first, a name still fits."""


def as_step(step: object) -> int:
    """Return a step as an int; numpy integers are steps, bools and floats are not.

    Raises:
        InvalidStep: Not a whole number from 0 to 2**63 - 1.
    """
    if isinstance(step, bool):
        raise InvalidStep(step)
    try:
        number = operator.index(step)  # type: ignore[arg-type]  # anything else raises TypeError
    except TypeError as error:
        raise InvalidStep(step) from error
    if not 0 <= number <= _LARGEST_STEP:
        raise InvalidStep(step)
    return number


def is_searched(name: str, *, installed: bool = False) -> bool:
    """Tell whether runs are searched for in a directory of that name; also in hidden ones.

    Args:
        name: The directory's.
        installed: It lies directly in an environment of Python or conda. A person's runs may lie
            there as well, only not in what installing has made.
    """
    if name in _NOT_SEARCHED or name.startswith(_THROWN_AWAY):
        return False
    return not (installed and name in _OF_AN_ENVIRONMENT)


def marks_environment(name: str) -> bool:
    """Tell whether a directory with this name in it is an environment of Python or conda."""
    return name in _MARKS_OF_AN_ENVIRONMENT


def final_name(step: int) -> str:
    """Return the name of a published checkpoint."""
    return f"step_{step}"


def tmp_name(step: int) -> str:
    """Return the name of a checkpoint being written."""
    return f"tmp_step_{step}"


def old_name(step: int, uuid: str) -> str:
    """Return the name that a checkpoint has for the instant of its replacement."""
    return f"old_step_{step}.{uuid}"


def trash_name(
    step: int,
    uuid: str,
    *,
    recorded: bool = True,
    until: int | None = None,
    identified: bool = True,
    attempt: int = 0,
) -> str:
    """Return the name of a retired checkpoint inside the trash.

    Args:
        step: The checkpoint's.
        uuid: The checkpoint's.
        recorded: True if the journal records its end.
        until: When its bytes may go, in seconds since the epoch; None for now.
        identified: True if its files identify it as a checkpoint.
        attempt: Number of names that were already taken.
    """
    number = f".{attempt}" if attempt else ""
    waits = "" if until is None else f".until-{until}"
    stranger = "" if identified else _UNIDENTIFIED
    return f"step_{step}.{uuid}{number}{stranger}{waits}{'' if recorded else _UNRECORDED}"


def find_final_step(name: str) -> int | None:
    """Return N of ``step_N``, or None for any other name."""
    match = _FINAL.fullmatch(name)
    if match is None:
        return None
    step = int(match[1])
    return step if step <= _LARGEST_STEP else None


def find_tmp_step(name: str) -> int | None:
    """Return N of ``tmp_step_N``, or None for any other name."""
    return _step(_TMP.fullmatch(name))


def find_old(name: str) -> tuple[int, str] | None:
    """Return step and uuid of ``old_step_N.<uuid>``, or None for any other name."""
    return _step_and_uuid(_OLD.fullmatch(name))


def find_trash(name: str) -> tuple[int, str] | None:
    """Return step and uuid of an entry of the trash, or None for any other name."""
    return _step_and_uuid(_TRASH.fullmatch(name))


def find_until(name: str) -> int | None:
    """Return when the bytes of an entry of the trash may go, or None when that has come."""
    match = _TRASH.fullmatch(name)
    return int(match[3]) if match and match[3] else None


def is_recorded(name: str) -> bool:
    """Tell whether the journal surely records the end of an entry of the trash."""
    return not name.endswith(_UNRECORDED)


def is_identified(name: str) -> bool:
    """Tell whether the files of an entry of the trash identify it as a checkpoint."""
    return _UNIDENTIFIED not in name


def can_name_a_lease(evaluation: object) -> bool:
    """Tell whether a text is a readable line that fits into a file name."""
    return (
        isinstance(evaluation, str)
        and bool(evaluation.strip())
        and evaluation.isprintable()
        and is_storable(evaluation)
        and len(quote(evaluation, safe="")) <= _LONGEST_EVALUATION
    )


def lease_name(uuid: str, evaluation: str) -> str:
    """Return the name of an evaluator's lease on a checkpoint."""
    return f"{uuid}.{quote(evaluation, safe='')}"


def find_lease(name: str) -> tuple[str, str] | None:
    """Return uuid and evaluation of a lease, or None for any other name."""
    match = _LEASE.fullmatch(name)
    return (match[1], unquote(match[2])) if match else None


def get_tmp_step(path: Path) -> int:
    """Return N of a path that ends in ``tmp_step_N``.

    Raises:
        NoCheckpointHere: It ends in something else.
    """
    step = find_tmp_step(path.name)
    if step is None:
        raise NoCheckpointHere(
            path, "is not a tmp_step_N directory; pass what init_tmp_checkpoint returned"
        )
    return step


def _step(match: re.Match[str] | None) -> int | None:
    number = int(match[1]) if match else None
    return number if number is not None and number <= _LARGEST_STEP else None


def _step_and_uuid(match: re.Match[str] | None) -> tuple[int, str] | None:
    step = _step(match)
    return (step, match[2]) if match and step is not None else None
