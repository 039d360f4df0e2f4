"""Progress bars, shown if the caller wants one or the logger is at INFO or DEBUG."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("stonnx")


@contextmanager
def progress_bar(total: int | None, show: bool | None, unit: str = "text") -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` units, on standard error. Yields the function that advances it.

    Args:
        total: Units of work, or None if unknown.
        show: None shows the bar when the logger ``stonnx`` is at INFO or DEBUG, as sentence-transformers does.
        unit: The name of a unit.
    """
    if show is None:
        show = logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    if not show:
        yield lambda count: None
        return
    # Installed with huggingface_hub, which depends on it.
    from tqdm.auto import tqdm

    with tqdm(total=total, unit=f" {unit}", unit_scale=unit == "B") as bar:
        yield lambda count: bar.update(count) and None
