"""The listing of one directory: checkpoints, leftovers and other names in it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ckptdb.core.observed import Leftover
from ckptdb.core.stamp import Stamp
from ckptdb.disk import (
    identity,
    names,
    paths,
    read_checkpoint,
    run_stamp,
    symlinks,
)


@dataclass(slots=True)
class Listing:
    """Names in a directory, sorted by kind.

    Attributes:
        stamp: The directory's, before it was listed.
        settled: True if any change since has surely moved the stamp.
        finals: The steps that are published.
        linked: Those of them behind a symlink to a directory: read through it, never changed.
        dead_links: Reason, by name, why a symlink in a checkpoint's place leads to none.
        foreign: Names that look like ours and are not.
        below: Names of directories that may lead to other runs.
        unlikely: Names of directories that do so only if they are runs themselves.
    """

    directory: Path
    stamp: Stamp
    settled: bool
    finals: list[int] = field(default_factory=list)
    linked: list[int] = field(default_factory=list)
    dead_links: dict[str, str] = field(default_factory=dict)
    tmps: list[int] = field(default_factory=list)
    olds: list[Leftover] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)
    unlikely: list[str] = field(default_factory=list)

    def where_to_search(self) -> list[str]:
        """Return the names of the directories in which runs are to be looked for, sorted.

        Whatever its name, a directory with a run.json is a run; and what is called ``step_5`` is
        no checkpoint in a directory that is no run, such as that of a pipeline.
        """
        below, unlikely = list(self.below), list(self.unlikely)
        if not has_identity(self.directory):
            finals = (step for step in self.finals if step not in self.linked)
            checkpoints = map(names.final_name, finals), map(names.tmp_name, self.tmps)
            (unlikely if self.is_run else below).extend(chain(*checkpoints))
        # Asked of every checkpoint of a run that has no run.json: joining paths takes longer.
        top, file = self.directory, f"{names.HIDDEN}/run.json"
        return sorted(below + [n for n in unlikely if os.path.isfile(f"{top}/{n}/{file}")])

    @property
    def is_run(self) -> bool:
        """Tell whether the directory holds checkpoints, ours or NeMo-RL's."""
        checkpoints = map(names.final_name, self.finals), map(names.tmp_name, self.tmps)
        return has_identity(self.directory) or any(
            (self.directory / name / names.INFO).is_file() for name in chain(*checkpoints)
        )

    def is_still_true(self) -> bool:
        """Tell whether listing the directory again would surely show the same."""
        return self.settled and self.stamp.is_same(run_stamp.find_stamp(self.directory))


def is_run(directory: Path) -> bool:
    """Tell whether a directory holds checkpoints, ours or NeMo-RL's."""
    return has_identity(directory) or sort_folders(directory)[0]


def has_identity(directory: Path) -> bool:
    """Tell whether a directory has a run.json."""
    return (identity.hidden(directory) / "run.json").is_file()


def sort_folders(top: Path) -> tuple[bool, list[str]]:
    """Tell whether a directory is a run, and which names below it may lead to other runs."""
    try:
        listing = list_folder(top)
    except PermissionError:
        return False, []
    return listing.is_run, listing.where_to_search()


def list_finals(directory: Path) -> list[tuple[int, Path]]:
    """Return step and path of everything published in a directory, by step."""
    try:
        found = list_folder(directory).finals
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = ((step, directory / names.final_name(step)) for step in sorted(found))
    return [(step, path) for step, path in steps if _is_whole(path)]


def _is_whole(path: Path) -> bool:
    status = paths.find_status(path)
    return status is not None and not read_checkpoint.is_being_deleted(status)


def list_folder(directory: Path) -> Listing:
    """List a directory.

    Raises:
        OSError: It cannot be.
    """
    stamp = run_stamp.find_stamp(directory)
    if stamp is None:
        raise FileNotFoundError(f"{directory} is not there")
    found = Listing(directory, stamp, stamp.is_settled())
    installed = False
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            installed |= names.marks_environment(name)
            is_directory = entry.is_dir(follow_symlinks=False)
            step = names.find_final_step(name)
            if is_directory and step is not None:
                found.finals.append(step)
            elif step is not None and entry.is_symlink():
                _sort_in_link(found, name, step)
            else:
                _sort_in(found, name, is_directory=is_directory)
    below, found.below = found.below, []
    for name in below:
        place = found.below if names.is_searched(name, installed=installed) else found.unlikely
        place.append(name)
    return found


def _sort_in_link(found: Listing, name: str, step: int) -> None:
    why = symlinks.find_obstruction(found.directory / name)
    if why is None:
        found.finals.append(step)
        found.linked.append(step)
    else:
        found.dead_links[name] = why


def find_obstructed(directory: Path) -> dict[int, str]:
    """Return by step what stands in a checkpoint's place and cannot be read as one, and why."""
    try:
        listing = list_folder(directory)
    except OSError:
        return {}
    found = {}
    for name in (*listing.dead_links, *listing.foreign):
        step = names.find_final_step(name)
        why = None if step is None else symlinks.find_obstruction(directory / name)
        if step is not None and why is not None:
            found[step] = why
    return found


def _sort_in(found: Listing, name: str, *, is_directory: bool) -> None:
    if is_directory and (tmp := names.find_tmp_step(name)) is not None:
        found.tmps.append(tmp)
    elif is_directory and (old := names.find_old(name)) is not None:
        found.olds.append(Leftover(found.directory / name, *old))
    else:
        if name.startswith(("step_", "tmp_step_", "old_step_")):
            found.foreign.append(name)
        if is_directory and name != names.HIDDEN:
            found.below.append(name)
