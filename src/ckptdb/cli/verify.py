"""The command verify."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ckptdb.cli.formats import echo_json, print_table
from ckptdb.cli.options import PARTLY_DONE, Session, output_option, run_option
from ckptdb.cli.printing import say
from ckptdb.cli.progress import show_progress
from ckptdb.core.units import human_age
from ckptdb.disk import manifest
from ckptdb.disk.verified import VerifyDepth
from ckptdb.registry.verification import Verification


@click.command()
@run_option
@click.option("--sizes-only", is_flag=True, help="Compare only the sizes of files; read none.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(0),
    metavar="S",
    help="Stop after this time, also within a file; the next call continues with the checkpoint "
    "that was verified longest ago.",
)
@output_option("table", "json")
@click.pass_obj
def verify(
    session: Session, run: str | None, max_seconds: float | None, form: str, *, sizes_only: bool
) -> int:
    """Compare every file of every checkpoint with its manifest. Exits 1 when one is damaged.

    A missing file, one of another size and a dangling link are damage; with checksums the
    contents are compared, too. A checkpoint without a manifest, by NeMo-RL for example, cannot be
    compared and is counted apart. Exits 4 when a run could not be read.
    """
    depth: VerifyDepth = "sizes" if sizes_only else "contents"
    with session.open() as registry, show_progress("verifying") as (_, count):
        found = registry.verify(run=run, depth=depth, max_seconds=max_seconds, on_checkpoint=count)
    if form == "json":
        why = found.not_verifiable
        echo_json([cp.as_dict() | {"not_verifiable": why.get(cp.uuid)} for cp in found])
    elif rows := _find_problems(found):
        print_table(["run", "step", "problem"], rows)
    say(_sum_up(found, partly=max_seconds is not None), err=True)
    for run_directory, reason in found.not_seen.items():
        say(f"ckptdb: {run_directory} was not verified: it {reason}.", err=True)
    for stopped in found.stopped.values():
        say(
            f"ckptdb: {stopped} in that time: it is verified with a longer --max-seconds, or "
            "without one.",
            err=True,
        )
    if found.unrecorded:
        say(f"When this was verified could not be recorded: {found.unrecorded}.", err=True)
    if found.damaged:
        return 1
    return PARTLY_DONE if found.not_seen else 0


COMMANDS = (verify,)


def _find_problems(found: Verification) -> list[list[str]]:
    """Return a row for each checkpoint that is damaged or only in part verifiable."""
    rows = []
    for checkpoint in found:
        doubt = found.not_verifiable.get(checkpoint.uuid, manifest.WITHOUT)
        text = "" if doubt == manifest.WITHOUT else f"not verifiable: {doubt}"
        if checkpoint.problem or text:
            rows.append([checkpoint.run, str(checkpoint.step), checkpoint.problem or text])
    return rows


def _sum_up(found: Verification, *, partly: bool) -> str:
    bad, rest = len(found.damaged), _count_not_verifiable(found)
    if not partly:
        what = f", {bad} damaged" if bad else ", all whole" if found.done else ""
        left = len(found) - found.done - len(found.not_verifiable)
        gone = f"; {left} gone or replaced meanwhile" if left > 0 else ""
        return f"{found.done} checkpoint(s) verified{what}{rest}{gone}."
    oldest = ""
    if found.never:
        oldest = f"; {found.never} never yet"
    elif found.oldest_at is not None:
        age = datetime.now(UTC) - datetime.fromisoformat(found.oldest_at)
        oldest = f"; the oldest verification is {human_age(age.total_seconds())} old"
    return (
        f"{found.done} of {len(found)} checkpoint(s) verified, {bad or 'none'} known to be "
        f"damaged{rest}{oldest}."
    )


def _count_not_verifiable(found: Verification) -> str:
    without = sum(why == manifest.WITHOUT for why in found.not_verifiable.values())
    others = len(found.not_verifiable) - without
    text = f"; {without} not verifiable: {manifest.WITHOUT}" if without else ""
    return text + (f"; {others} not verifiable in every file" if others else "")
