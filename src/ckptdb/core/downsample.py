"""Downsampling: which points of a long curve are drawn."""

from __future__ import annotations

from collections.abc import Sequence


def downsample(values: Sequence[float | None], room: int) -> tuple[int, ...]:
    """Return the indexes of the values to draw, ascending: first, last, and the peaks between.

    Neighbours share a bucket; its lowest and its highest value stay, so that no peak is lost.

    Args:
        values: In the order of the curve; None for a point without a value.
        room: About how many indexes; two at least.
    """
    count = len(values)
    if count <= max(room, 2):
        return tuple(range(count))
    kept = {0, count - 1}
    places = max((room - 2) // 2, 1)
    for place in range(places):
        first, end = place * count // places, (place + 1) * count // places
        known = [(value, i) for i in range(first, end) if (value := values[i]) is not None]
        kept |= {min(known)[1], max(known)[1]} if known else {first}
    return tuple(sorted(kept))
