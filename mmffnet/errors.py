"""Errors that the tools report in one line."""


class UsageError(ValueError):
    """A mistake in what the user asked for, which the tools report in one line."""


class DamagedCheckpointError(RuntimeError):
    """A file that is damaged, incomplete or no checkpoint at all."""


def describe_error(error: Exception) -> str:
    """The first line that says something, after the type unless that is all there is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__
