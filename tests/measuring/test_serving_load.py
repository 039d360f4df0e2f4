"""The load report finds what is wrong: answers that differ, requests that are cut, lines that are not met."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import report
from benchmarks.serving.client import CUT, REFUSED, Client, Reply, embedding_body, metric
from benchmarks.serving.load import TOLERANCE, Load, Tally
from benchmarks.serving.shapes import _quantile
from benchmarks.serving.texts import Known, rows_of

VECTORS = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
KNOWN = Known(list("abc"), VECTORS, [embedding_body(text, "model") for text in "abc"])

Answer = Callable[[bytes], Awaitable[bytes | None]]


def reply_with(rows: np.ndarray, *, is_base64: bool = True) -> bytes:
    values = [base64.b64encode(row.tobytes()).decode() if is_base64 else row.tolist() for row in rows]
    return json.dumps({"data": [{"index": index, "embedding": value} for index, value in enumerate(values)]}).encode()


def http(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def run(answer: Answer, work: Callable[[Load], Awaitable[Tally]]) -> Tally:
    """What a server that answers so gets from some work; None cuts the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                response = await answer(await reader.readexactly(size))
                if response is None:
                    break
                writer.write(response)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> Tally:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        client = Client("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            return await work(Load(client, "/v1/embeddings"))
        finally:
            client.close()
            server.close()

    return asyncio.run(main())


def index_of(body: bytes) -> int:
    return "abc".index(json.loads(body)["input"])


async def right(body: bytes) -> bytes:
    return http(reply_with(VECTORS[[index_of(body)]]))


@pytest.mark.parametrize("is_base64", [True, False])
def test_vectors_are_read_in_either_form_and_in_the_order_of_the_inputs(is_base64: bool) -> None:
    body = json.loads(reply_with(VECTORS, is_base64=is_base64))
    body["data"].reverse()
    np.testing.assert_array_equal(np.stack(rows_of(Reply(200, {}, json.dumps(body).encode()))), VECTORS)


def test_right_answers_are_counted_by_clients_and_at_random_times() -> None:
    closed = run(right, lambda load: load.closed(KNOWN, 4, 0.2))
    assert closed.wrong == 0 < closed.checked == closed.statuses[200]
    opened = run(right, lambda load: load.open(KNOWN, 200, 0.2))
    assert opened.wrong == 0 < opened.checked == opened.statuses[200]


@pytest.mark.parametrize("error", [10 * TOLERANCE, np.nan])
def test_an_answer_that_differs_is_found(error: float) -> None:
    async def wrong(body: bytes) -> bytes:
        return http(reply_with(VECTORS[[index_of(body)]] + np.float32(error)))

    tally = run(wrong, lambda load: load.closed(KNOWN, 2, 0.1))
    assert tally.wrong == tally.checked > 0


def test_the_vector_of_another_text_is_found() -> None:
    async def other(body: bytes) -> bytes:
        return http(reply_with(VECTORS[[index_of(body) - 1]]))

    tally = run(other, lambda load: load.closed(KNOWN, 2, 0.1))
    assert tally.wrong == tally.checked > 0


def test_a_cut_connection_and_a_refused_one_are_told_apart() -> None:
    async def cut(body: bytes) -> None:
        return None

    async def once(load: Load) -> Tally:
        tally = Tally()
        await load.one(KNOWN, 0, tally)
        return tally

    assert run(cut, once).statuses == {CUT: 1}

    async def nobody() -> Reply:
        return await Client("127.0.0.1", 1).post("/", b"")

    assert asyncio.run(nobody()).status == REFUSED


def test_429_without_retry_after_is_counted() -> None:
    answers = iter([http(b"{}", "429 Too Many Requests"), http(b"{}", "429 Too Many Requests", "Retry-After: 2\r\n")])

    async def busy(body: bytes) -> bytes:
        return next(answers)

    async def twice(load: Load) -> Tally:
        tally = Tally()
        await load.one(KNOWN, 0, tally)
        await load.one(KNOWN, 0, tally)
        return tally

    tally = run(busy, twice)
    assert (tally.statuses[429], tally.without_retry_after, tally.checked) == (2, 1, 0)


def test_metrics_are_sums_over_their_series() -> None:
    text = 'a_total{x="1",y="2"} 3\na_total{x="2"} 4.5\na_total_created 7\n# HELP a_total what\n'
    assert metric(text, "a_total") == 7.5
    assert metric(text, "a_total", x="1") == 3
    assert metric(text, "b") == 0


def test_quantiles_are_of_what_came_between_two_looks() -> None:
    def look(*counts: int) -> str:
        return "\n".join(
            f's_bucket{{le="{edge}"}} {count}' for edge, count in zip(("0.1", "0.2", "+Inf"), counts, strict=True)
        )

    assert _quantile(look(10, 10, 10), look(10, 20, 20), "s", 0.5) == pytest.approx(0.15)
    assert _quantile(look(0, 0, 0), look(8, 8, 8), "s", 1.0) == pytest.approx(0.1)
    assert np.isnan(_quantile(look(1, 1, 1), look(1, 1, 1), "s", 0.5))


def tally_figures(**changes: object) -> dict[str, object]:
    tally = Tally(latencies=[0.01], checked=1, seconds=1.0)
    tally.statuses[200] = 1
    return {**tally.figures(), **changes}


def test_lines_that_are_not_met_are_returned_and_stand_in_the_page(tmp_path: Path) -> None:
    stop = {"jobs": tally_figures(), "ready_after_signal": 503, "exit_code": 0, "stop_seconds": 1.0}
    results = {
        "date": "2026-01-01",
        "machine": {"cpu": "a CPU", "cpus": 2, "load": 1.0, "versions": {"Python": "3"}},
        "seconds": 1.0,
        "shapes": {"mix": {**tally_figures(), "padding": 1.1}, "stop": {**tally_figures(), **stop}},
    }
    assert report.write(tmp_path, results) == []
    results["shapes"]["mix"] |= {"wrong": 1, "padding": 1.4}
    results["shapes"]["stop"] |= {"statuses": {"200": 5, str(CUT): 1}}
    results["peers"] = {
        "failed": {"a peer": "no such program"},
        "rows": {
            name: {
                "short": speed, "mix": speed, "short_cpu_ms": 1.0, "mix_cpu_ms": 1.0, "largest_difference": 0.0,
                "rounds": [{"short": speed, "mix": speed, "resident_mb": 1.0}],
            }
            for name, speed in (("stonnx int8", 15.0), ("other", 10.0))
        },
    }  # fmt: skip
    missed = report.write(tmp_path, results)
    assert [line.asked.split(" ")[0] for line in missed] == ["no", "padding", "SIGTERM", "requests", "a"]
    assert (tmp_path / "serving-load.md").read_text().count("**no**") == len(missed)
