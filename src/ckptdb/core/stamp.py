"""The stamp of a run directory: its state, compared to find out whether it has changed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stamp:
    """Values that change with a run: mtime and link count of its directory, size of its journal.

    Attributes:
        changed_ns: The directory's ctime, which nobody can set back. It is not stored, and two
            stamps are equal without it; see `is_same`.
    """

    mtime_ns: int
    links: int
    journal_bytes: int
    changed_ns: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.mtime_ns}:{self.links}:{self.journal_bytes}"

    @classmethod
    def parse(cls, text: str) -> Stamp:
        """Read what ``str()`` wrote.

        Raises:
            ValueError: Nobody of ours wrote that.
        """
        mtime_ns, links, journal_bytes = map(int, text.split(":"))
        return cls(mtime_ns, links, journal_bytes)

    def is_same(self, other: Stamp | None) -> bool:
        """Tell whether nothing has changed between the two, by the ctime too."""
        return other is not None and self == other and self.changed_ns == other.changed_ns

    def is_settled(self) -> bool:
        """Tell whether a later change would surely show in the mtime."""
        return is_settled(self.mtime_ns)


SETTLE_SECONDS = 2.0
"""Age from which an equal mtime proves that nothing has changed since.

File systems count time in ticks of up to two seconds, and a server's clock may differ a
little from ours; git calls an entry younger than that racy.
"""


def is_settled(mtime_ns: int) -> bool:
    """Tell whether a later change would be sure to move an mtime."""
    return mtime_ns < (time.time() - SETTLE_SECONDS) * 1e9
