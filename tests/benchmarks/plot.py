"""How cost grows with the number of checkpoints, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Series

_STYLES: Mapping[str, Mapping[str, Any]] = {
    "ckptdb": {"color": "#0b6e4f", "marker": "o", "linewidth": 2},
    "ckptdb, no limit": {"color": "#0b6e4f", "marker": "o", "linestyle": "--"},
    "floor": {"color": "#8a8a8a", "marker": ".", "linestyle": ":"},
    "scan": {"color": "#c1440e", "marker": "s", "linewidth": 1.5},
}
_LABELS = {"scan": "scan-and-parse"}


class NoPlot(RuntimeError):
    """matplotlib is not installed."""

    def __str__(self) -> str:
        return "A plot needs matplotlib: pip install 'ckptdb[bench]'."


def draw(series: Sequence[Series], path: Path) -> None:
    """Draw one panel for each question and one for saving, on logarithmic scales.

    Raises:
        NoPlot: There is nothing to draw with.
    """
    try:
        import matplotlib as mpl
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise NoPlot from error
    # The same numbers make the same file.
    mpl.rcParams.update({"svg.hashsalt": "ckptdb", "svg.fonttype": "none"})
    panels = list(dict.fromkeys(one.panel for one in series))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels), 3.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, panel in zip(axes[0], panels, strict=True):
        for one in (found for found in series if found.panel == panel):
            milliseconds = [seconds * 1e3 for seconds in one.points.values()]
            label = _LABELS.get(one.way, one.way)
            axis.plot(list(one.points), milliseconds, label=label, **_STYLES[one.way])
        axis.set(xscale="log", yscale="log", title=panel, xlabel="checkpoints kept")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    axes[0][0].set_ylabel("milliseconds, median")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
