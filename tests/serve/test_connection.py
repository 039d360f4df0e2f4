"""The head of a response goes out with its body."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from stonnx.serve.connection import Transport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class _Recorder:
    """A transport of an event loop that notes what it is given."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.sent.append("closed")

    def get_extra_info(self, name: str) -> str:
        return name


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ([HEAD, b"body", b""], [HEAD + b"body", b""]),
        ([HEAD, b"", b""], [HEAD, b""]),
        ([HEAD, b"HTTP/1.1 is a text too"], [HEAD + b"HTTP/1.1 is a text too"]),
        ([HEAD, b"x" * 100_000], [HEAD, b"x" * 100_000]),
        ([HEAD, b"a", HEAD, b"b"], [HEAD + b"a", HEAD + b"b"]),
        # The client waits for this before it sends its body.
        ([b"HTTP/1.1 100 \r\n\r\n", HEAD, b"a"], [b"HTTP/1.1 100 \r\n\r\n", HEAD + b"a"]),
    ],
)
def test_what_is_sent(written: list[bytes], sent: list[bytes]) -> None:
    recorder = _Recorder()
    transport = Transport(recorder)  # type: ignore[arg-type]
    for data in written:
        transport.write(data)
    assert recorder.sent == sent


def test_nothing_is_kept_when_the_connection_is_closed() -> None:
    recorder = _Recorder()
    transport = Transport(recorder)  # type: ignore[arg-type]
    assert transport.get_extra_info("peername") == "peername"
    transport.write(HEAD)
    transport.close()
    assert recorder.sent == [HEAD, "closed"]
