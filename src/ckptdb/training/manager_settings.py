"""Settings of a manager that are its attributes: a loop may read and change them at any time."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdb.core.ranking import Mode, RankedBy
from ckptdb.retention import Clause, Policy
from ckptdb.training.config import Settings


class ManagerSettings:
    """Attributes of a manager, under the names of their configuration keys.

    Args:
        settings: The validated configuration.
    """

    metric_name: str | None
    higher_is_better: bool
    save_period: int
    keep_top_k: int | None
    ft_keep_latest_k: int | None
    ft_save_period: int | None
    checkpoint_must_save_by: str | None
    keep: Sequence[Clause | str]
    save_optimizer: bool
    model_save_format: str | None
    save_consolidated: bool
    model_cache_dir: str
    model_repo_id: str
    is_peft: bool

    def __init__(self, settings: Settings) -> None:
        self.checkpoint_dir = settings.checkpoint_dir
        self.keep = settings.keep
        for name, value in settings.attributes.items():
            setattr(self, name, value)

    @property
    def _mode(self) -> Mode:
        return "max" if self.higher_is_better else "min"

    @property
    def _ranked_by(self) -> RankedBy:
        return RankedBy() if self.metric_name is None else RankedBy(self.metric_name, self._mode)

    def _get_policy(self) -> Policy:
        ranked_by = self._ranked_by
        return Policy(
            save_period=self.save_period,
            keep_top_k=self.keep_top_k,
            ft_keep_latest_k=self.ft_keep_latest_k,
            metric=ranked_by.metric,
            mode=ranked_by.mode,
            keep=self.keep,
        )
