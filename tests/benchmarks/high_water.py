"""The most memory that this process has held since `reset`, in bytes, as Linux counts it."""

from pathlib import Path


def reset() -> int:
    """Start anew; returns what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return mark()


def mark() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
