"""The exporter is an extra: importing it may fail, with advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stonnx._errors import MissingDependencyError


@contextmanager
def exporter_needed() -> Iterator[None]:
    """Raise MissingDependencyError if a package that the exporter needs cannot be imported within this context."""
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"The exporter needs {error.name or error}, which is not installed. "
            'Install it with: pip install "stonnx[cpu,export]"'
        ) from error
