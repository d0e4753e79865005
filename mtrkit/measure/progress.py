"""A progress bar for what takes minutes."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress(shown: bool = True) -> Progress:
    """A progress bar on standard error, for terminals; nothing at all elsewhere, or if it is not to be ``shown``."""
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=errors, transient=True, disable=not shown or not errors.is_terminal)
