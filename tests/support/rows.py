"""Checkpoint records to store in a catalog."""

from dataclasses import replace

from ckptdb.core.records import (
    Checkpoint,
)

AT = "2026-01-01T00:00:00.000Z"


def make(run, step, loss=None, **changes):
    """A published checkpoint of a run, with a loss when one is given."""
    metrics = {} if loss is None else {"loss": loss}
    checkpoint = Checkpoint(
        run_uuid=run.uuid,
        run=run.name,
        uuid=f"{run.uuid}-{step}",
        step=step,
        path=run.directory / f"step_{step}",
        status="final",
        created_at=AT,
        finalized_at=f"2026-01-01T00:00:{step % 60:02}.000Z",
        size_bytes=10 * step,
        file_count=2,
        info=dict(metrics),
        metrics=metrics,
    )
    return replace(checkpoint, **changes)


def gone(checkpoint, reason="retention: test"):
    return replace(checkpoint, status="deleted", deleted_at=AT, deleted_reason=reason)
