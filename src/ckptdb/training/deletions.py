"""Deletions: the one step that carries out decisions of retention on disk."""

from __future__ import annotations

from collections.abc import Iterable

from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Confirm, Deletion, Retired
from ckptdb.retention import Decision


def retire(
    publisher: Publisher,
    decisions: Iterable[Decision],
    *,
    force: bool = False,
    by_hand: bool = False,
    checked: bool = False,
    confirm: Confirm | None = None,
) -> Retired:
    """Retire the checkpoints that decisions do not keep, in the order of steps.

    Args:
        publisher: Publisher of the run.
        decisions: Decisions about checkpoints of the run.
        force: Also retire pinned and leased checkpoints.
        by_hand: Somebody deletes them by hand, not a rule.
        checked: As `Publisher.retire`.
        confirm: As `Publisher.retire`.

    Raises:
        DeletionIncomplete: Some of them are still there.
        JournalInDoubt: The pins are not known for certain; nothing goes.
    """
    gone = sorted((one for one in decisions if not one.keep), key=lambda one: one.step)
    deletions = [
        Deletion(one.step, one.uuid, one.reason, force, by_hand, one.damage) for one in gone
    ]
    return publisher.retire(deletions, checked=checked, confirm=confirm)
