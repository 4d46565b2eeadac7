"""The command gc."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import click

from ckptdb.cli.formats import echo_json, print_table
from ckptdb.cli.options import (
    Session,
    dry_run_option,
    metric_option,
    mode_option,
    output_option,
    trash_ttl_option,
)
from ckptdb.cli.printing import say
from ckptdb.core import units
from ckptdb.core.ranking import Mode
from ckptdb.core.units import human_bytes
from ckptdb.errors import DeletionIncomplete, DeletionNotConfirmed
from ckptdb.registry.gc_result import GcResult
from ckptdb.retention import Policy, Replay

_SHOWN = 10


@click.command()
@click.option(
    "--run",
    "runs",
    metavar="RUN",
    multiple=True,
    help="Only this run: name, path or uuid prefix; may be repeated. Default: at or below here.",
)
@click.option("--all-runs", is_flag=True, help="Work on all runs at or below here.")
@click.option("--yes", is_flag=True, help="Delete in several runs without asking.")
@click.option("--keep-top-k", type=click.IntRange(0), help="Keep this many of the best.")
@click.option(
    "--keep-latest",
    type=click.IntRange(0),
    help="Keep this many of the newest; alone, only these.",
)
@click.option(
    "--save-period",
    type=click.IntRange(1),
    help="Rank only steps divisible by this; without --keep-top-k keep all of them.",
)
@click.option(
    "--keep",
    "rules",
    multiple=True,
    metavar="RULE",
    help='Keep what this rule keeps, e.g. "every 6 hours"; may be repeated.',
)
@metric_option
@mode_option
@dry_run_option
@click.option(
    "--replay", is_flag=True, help="Only print what the rules would have kept of the run so far."
)
@click.option(
    "--plan",
    "plans",
    multiple=True,
    metavar="ID",
    help="Carry out the plan that --dry-run printed under this id, or nothing; one per run.",
)
@trash_ttl_option
@click.option(
    "--empty-trash",
    is_flag=True,
    help="Also remove deleted checkpoints that could still be undeleted.",
)
@output_option("table", "json")
@click.pass_obj
def gc(  # noqa: PLR0917  # one parameter an option
    session: Session,
    runs: tuple[str, ...],
    keep_top_k: int | None,
    keep_latest: int | None,
    save_period: int | None,
    rules: tuple[str, ...],
    metric: str | None,
    mode: Mode | None,
    plans: tuple[str, ...],
    trash_ttl: float | None,
    form: str,
    *,
    all_runs: bool,
    yes: bool,
    dry_run: bool,
    replay: bool,
    empty_trash: bool,
) -> None:
    """Delete by rules, and remove leftovers of crashes.

    Works on the run around here, or the only one below. Several runs have to be named: by --run
    for each, by --plan, or with --all-runs. Before several lose checkpoints, a question on the
    terminal has to be confirmed; a script passes --yes.

    Without any rule no published checkpoint is deleted. A checkpoint stays if one rule keeps it;
    the latest and pinned ones always stay. The best are ranked by the run's own metric, or by
    --metric with --mode; without either, gc refuses.

    \b
    A RULE is one of
      best K [by METRIC min|max] [of every N steps]
      latest K [of every N steps]
      every N steps
      every N hours
      newer than N hours
      awaiting METRIC for N hours
      steps N,N,...
      tagged [NAME]
      ancestors
      where CONDITION
      at most N GB
    """  # noqa: D301  # the backspace is click's sign for lines that stay as they are
    policy = _policy(keep_top_k, keep_latest, save_period, rules, metric, mode)
    if replay and not policy.has_limit:
        raise click.UsageError("--replay needs rules to replay: --keep RULE.")
    if all_runs and runs:
        raise click.UsageError("--all-runs and --run exclude each other.")
    with session.open() as registry:
        if replay:
            _print_replays(registry.replay(policy, run=runs or None), form)
            return
        collect = partial(
            registry.gc,
            policy,
            run=runs or None,
            all_runs=all_runs,
            trash_ttl_seconds=trash_ttl or 0.0,
            empty_trash=empty_trash,
        )
        if (all_runs or len(runs) > 1) and not (dry_run or plans or yes):
            plans = _confirmed(collect(dry_run=True))
        try:
            found = collect(dry_run=dry_run, plans=plans or None)
        except DeletionIncomplete as error:
            print_results(error.done, form)
            raise
        print_results(found, form)
        if dry_run and form == "table" and found:
            ids = " ".join(f"--plan {plan.plan}" for plan in found)
            say(f"To do exactly this or nothing: {ids}")


COMMANDS = (gc,)


def _policy(  # noqa: PLR0917  # one parameter an option
    keep_top_k: int | None,
    keep_latest: int | None,
    save_period: int | None,
    rules: tuple[str, ...],
    metric: str | None,
    mode: Mode | None,
) -> Policy:
    """Return the policy of the options, or raise which of them do not go together."""
    if keep_top_k is None and keep_latest is None and save_period is not None:
        raise click.UsageError("--save-period needs --keep-top-k or --keep-latest.")
    if keep_top_k is None and metric is not None and not rules:
        raise click.UsageError("--metric needs --keep-top-k: it ranks the best.")
    if metric is not None and mode is None:
        raise click.UsageError("--metric needs --mode min or --mode max.")
    if mode is not None and metric is None:
        raise click.UsageError("--mode needs --metric: a run's own has its direction.")
    if keep_latest is not None and save_period is None:
        # In a training config a missing keep_top_k means all; here it means none.
        keep_top_k = keep_top_k or 0
    return Policy(save_period or 1, keep_top_k, keep_latest, metric, mode, rules)


def _confirmed(found: Sequence[GcResult]) -> tuple[str, ...]:
    """Return the ids of the plans, once the deletion is confirmed."""
    if len(found) > 1 and not sys.stdin.isatty():
        raise DeletionNotConfirmed([plan.directory for plan in found])
    losing = [plan for plan in found if plan.retention.gone or plan.leftovers]
    if len(losing) > 1:
        for plan in losing:
            say(f"{plan.run} ({plan.directory}): {_counted(plan)}", err=True)
        click.confirm(f"Delete in these {len(losing)} runs?", abort=True, err=True)
    return tuple(plan.plan for plan in found)


def _counted(plan: GcResult) -> str:
    gone = [f"{len(plan.retention.gone)} checkpoint(s)"] if plan.retention.gone else []
    left = [f"{len(plan.leftovers)} leftover(s)"] if plan.leftovers else []
    return f"{' and '.join([*gone, *left])}, {human_bytes(plan.freed_bytes)}"


def print_results(plans: Sequence[GcResult], form: str) -> None:
    """Print for each checkpoint whether it stays and why, and the bytes that are freed."""
    if form == "json":
        echo_json([plan.as_dict() for plan in plans])
        return
    for plan in plans:
        _print_plan(plan, where=f" ({plan.directory})" if len(plans) > 1 else "")


def _print_plan(plan: GcResult, *, where: str) -> None:
    gone = "gone" if plan.applied else "would go"
    rows = [
        [
            str(d.step),
            "keep" if d.keep else "left" if plan.is_left(d) else gone,
            human_bytes(d.size_bytes),
            d.reason,
        ]
        for d in plan.decisions
    ]
    rows += [[str(left.step), "left" if plan.is_left(left) else gone,
              human_bytes(left.size_bytes), left.kind] for left in plan.leftovers]  # fmt: skip
    if rows:
        print_table(["step", "", "size", "why"], rows)
    verb = "freed" if plan.applied else "would be freed"
    later = ""
    if plan.trash_ttl_seconds and plan.retention.gone:
        hours = plan.trash_ttl_seconds / 3600
        later = f" now, {human_bytes(plan.retention.freed_bytes)} after {units.duration(hours)}"
    say(f"{plan.run}{where}: {human_bytes(plan.freed_bytes)} {verb}{later}.{_becomes(plan)}")
    for spared in plan.spared:
        say(f"{plan.run}{where}: {spared.path.name} kept: {spared.why}.")
    if plan.waiting:
        size = human_bytes(sum(left.size_bytes for left in plan.waiting))
        steps = _listed([left.step for left in plan.waiting])
        say(f"{size} can still be undeleted (steps {steps}); --empty-trash removes them.")


def _becomes(plan: GcResult) -> str:
    """Return how best, latest and top change by a plan."""
    before, after = plan.retention.before, plan.retention.after
    if before is None or after is None or before.latest is None:
        return ""
    changes = [
        _becomes_of("Best", before.best, after.best),
        _becomes_of("latest", before.latest, after.latest),
    ]
    if len(after.top) > 1:
        changes.append(f"top {len(after.top)}: {', '.join(map(str, after.top))}")
    return f" {'; '.join(changes)}."


def _becomes_of(what: str, was: int | None, now: int | None) -> str:
    if was == now:
        return f"{what} stays step {now}"
    return f"{what} was step {was} and becomes {'none' if now is None else f'step {now}'}"


def _print_replays(replays: Sequence[Replay], form: str) -> None:
    if form == "json":
        echo_json([replayed.as_dict() for replayed in replays])
        return
    for found in replays:
        steps = f" (steps {_listed(found.kept)})" if found.kept else ""
        say(
            f"{found.run}: of {found.saved} saved, {len(found.kept)} would be left{steps}, "
            f"{human_bytes(found.end_bytes)}; at most {human_bytes(found.peak_bytes)} at once, "
            f"where {human_bytes(found.recorded_peak_bytes)} is recorded."
        )
        if found.best_ever is not None and not found.lost:
            say(f"  The best ever, step {found.best_ever}, would still be there.")
        for lost in found.lost[:_SHOWN]:
            say(
                f"  Step {lost.step} ({lost.value:.6g}) is better than all that would be left, and "
                f"would have gone after step {lost.after_step}: {lost.reason}"
            )
        if len(found.lost) > _SHOWN:
            say(f"  And {len(found.lost) - _SHOWN} more.")


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:_SHOWN])) + (", …" if len(steps) > _SHOWN else "")
