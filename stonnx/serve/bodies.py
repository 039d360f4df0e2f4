"""The bytes of the bodies of all requests in progress, with a bound: many clients that each send as much as one may.

Without threads or a clock.
"""

from __future__ import annotations

from stonnx._device.memory import available_memory

# The share of the memory that bodies may take. A decoded body takes about as much again, and its vectors less.
_SHARE = 8


class Bodies:
    """Counts bytes.

    Args:
        limit: The most bytes, unless a single request has them. None: an eighth of the memory that this process may
            use.

    Example:
        >>> bodies = Bodies(10)
        >>> bodies.take(0, 8), bodies.take(0, 8)
        (True, False)
        >>> bodies.free(8)
    """

    def __init__(self, limit: int | None = None) -> None:
        memory = available_memory()
        self.limit = limit if limit is not None else None if memory is None else memory // _SHARE
        self.bytes = 0

    def take(self, held: int, size: int) -> bool:
        """Count bytes more for a request that already holds some. False: there is no room for them now."""
        is_alone = self.bytes == held
        if self.limit is not None and self.bytes + size > self.limit and not is_alone:
            return False
        self.bytes += size
        return True

    def free(self, held: int) -> None:
        """A request that held so many bytes is over."""
        self.bytes -= held
