"""Progress bars for long steps, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from transferkit.core.distributed import is_first

__all__ = ["announce", "track"]

T = TypeVar("T")


def track(steps: Iterable[T], label: str, *, total: int | None = None, enabled: bool = True) -> Iterator[T]:
    """Yield from `steps` with a progress bar that shows the time left; silent when not on a terminal.

    Args:
        steps: What to iterate over.
        label: What is being done, as a phrase ("reading images").
        total: Number of steps, if `steps` has no length.
        enabled: False switches the bar off altogether.

    Example:
        >>> list(track([1, 2, 3], "counting", enabled=False))
        [1, 2, 3]
    """
    if not (enabled and is_first()):
        yield from steps
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from steps
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(steps, total=total, description=label)


def announce(text: str, *, enabled: bool = True) -> None:
    """Print one line to standard error, for example which of several long steps starts; silent when not on a terminal.

    Args:
        text: Printed as is; an empty one is not printed.
        enabled: False switches it off altogether.

    Example:
        >>> announce("model 1 of 3", enabled=False)
    """
    if not (text and enabled and is_first()):
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        console.print(text, markup=False, highlight=False)
