"""Making the laboratory fast without changing what it tests."""

from __future__ import annotations

import gc


def settle() -> None:
    """Collect no more garbage: forks then share the memory of what is loaded so far."""
    gc.collect()
    gc.freeze()
    gc.disable()
