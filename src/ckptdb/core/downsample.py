"""Which points of a curve are drawn, where there are more than an eye tells apart."""

from __future__ import annotations

from collections.abc import Sequence


def downsample(values: Sequence[float | None], room: int) -> tuple[int, ...]:
    """Return which values to draw, ascending: the first, the last, and the shape between them.

    Neighbours share a place, and the lowest and the highest of them stay, so that no peak is lost.

    Args:
        values: In the order of the curve; None where there is nothing to draw but the point.
        room: About how many; two at least.
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
