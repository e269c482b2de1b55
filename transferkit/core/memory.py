"""Memory of this process."""

from __future__ import annotations

import sys

__all__ = ["peak_memory"]


def peak_memory() -> int:
    """Bytes that this process has had in memory at most; 0 where the system does not tell.

    Example:
        >>> peak_memory() >= 0
        True
    """
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used
