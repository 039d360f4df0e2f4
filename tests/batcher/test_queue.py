"""The queue of a batcher, with a clock that the tests turn: who goes next, and that nothing is lost."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stonnx._batcher.queue import BULK_EVERY, Queue
from stonnx._batcher.waiting import Group, Lane, Pace, Request, Run

_GROUP = Group("minilm", tokens=320, texts=64)


def add(queue: Queue, lengths: list[int], lane: Lane | None = None, *, now: float = 0.0, group: Group = _GROUP, **more):
    """A request of texts of these lengths, each different."""
    chosen = lane or (Lane.INTERACTIVE if len(lengths) <= 8 else Lane.BULK)
    request = Request(chosen, **more)
    queue.add(request, [(group, length, (request, index), None) for index, length in enumerate(lengths)], now)
    return request


def run_next(queue: Queue, now: float = 0.0) -> tuple[Run, list[Any]]:
    """Run the next texts, and say which they were."""
    run = queue.take(now)
    assert run is not None
    payloads = [entry.payload for entry in run.entries]
    queue.finish(run, now + 0.1)
    return run, payloads


def drain(queue: Queue, seconds: float = 0.1, now: float = 0.0) -> list[Run]:
    """Run everything, one run after the other."""
    runs = []
    while run := queue.take(now):
        runs.append(run)
        now += seconds
        queue.finish(run, now)
    return runs


def assert_empty(queue: Queue) -> None:
    """Nothing waits, and nothing is remembered of what did."""
    assert (queue.tokens(), queue.texts, queue.running_tokens) == (0, 0, 0)
    assert queue.take(1e9) is None
    assert not queue._by_key
    for lane in queue._lanes.values():
        assert not lane.buckets
        assert not lane.heap
        assert not lane.tokens_of


def test_a_run_keeps_to_its_budget_and_a_long_text_runs_by_itself() -> None:
    """Pain 28: the budget holds whatever requests carry."""
    queue = Queue(1)
    add(queue, [14] * 100)
    add(queue, [900])
    runs = drain(queue)
    assert [run.padded_tokens for run in runs if len(run.entries) == 1] == [900]
    assert max(run.padded_tokens for run in runs if len(run.entries) > 1) <= 320
    assert sum(len(run.entries) for run in runs) == 101
    assert_empty(queue)


def test_a_run_has_no_more_texts_than_its_group_allows() -> None:
    queue = Queue(1)
    add(queue, [2] * 200)
    assert max(len(run.entries) for run in drain(queue)) == 64


def test_texts_of_other_groups_never_share_a_run() -> None:
    queue = Queue(1)
    other = Group("reranker", 320, 64)
    add(queue, [10] * 20)
    add(queue, [10] * 20, group=other)
    assert all(len({entry.group.key for entry in run.entries}) == 1 for run in drain(queue))


def test_padding_stays_small_for_lengths_as_they_occur() -> None:
    """Pain 8: padded over real tokens stays under 1.3."""
    rng = random.Random(7)
    queue = Queue(2)
    for _ in range(40):
        add(queue, [max(1, min(256, int(rng.lognormvariate(3.5, 1)))) for _ in range(25)])
    runs = drain(queue)
    assert sum(run.padded_tokens for run in runs) < 1.2 * sum(run.tokens for run in runs)


def test_a_long_text_does_not_pad_the_short_ones() -> None:
    queue = Queue(1)
    add(queue, [250])
    add(queue, [10] * 8)
    runs = drain(queue)
    assert sum(run.padded_tokens for run in runs) == 250 + 80


def test_few_tokens_of_another_length_are_cheaper_in_one_run() -> None:
    queue = Queue(1)
    for length in (5, 7, 9):
        add(queue, [length])
    assert len(drain(queue)) == 1


def test_a_single_query_waits_for_one_run_of_a_bulk_job_at_most() -> None:
    """A query that comes while a job of 2,048 texts runs is in one of the next two runs."""
    queue = Queue(1)
    add(queue, [100] * 2048)
    now = 0.0
    for _ in range(50):
        run = queue.take(now)
        assert run is not None
        query = add(queue, [14], now=now)
        queue.finish(run, now + 0.1)
        next_two = [*run_next(queue, now)[1], *run_next(queue, now)[1]]
        assert query in [request for request, _ in next_two]


def test_bulk_work_goes_on_beside_queries_without_end() -> None:
    """While queries of another length never stop, a bulk request leads one run of every four."""
    queue = Queue(1)
    job = add(queue, [200] * 100)
    led_by_job = 0
    for number in range(40):
        add(queue, [3] * 8, now=float(number))
        run, _ = run_next(queue, float(number))
        led_by_job += run.entries[0].tokens == 200
    assert led_by_job == 40 // BULK_EVERY
    assert job.entries


@pytest.mark.parametrize("length", [8, 30, 200])
def test_bulk_work_gets_its_share_of_the_time_beside_queries_of_the_same_length(length: int) -> None:
    """A run that a bulk request leads is filled with bulk texts, even if as many queries as can run wait for ever. With
    one text of each such run, a job of 2,048 texts would take eight times as long, and end after its deadline.
    """
    queue = Queue(1)
    job = add(queue, [length] * 2048)
    per_run = _GROUP.tokens // length
    runs = 0
    while job.entries:
        while queue.tokens(Lane.INTERACTIVE) < 4 * _GROUP.tokens:
            add(queue, [length] * 4)
        run_next(queue)
        runs += 1
    assert runs <= BULK_EVERY * -(-2048 // per_run)


def test_requests_take_turns_by_tokens() -> None:
    """Two jobs that compete get as many tokens each, however long their texts are."""
    queue = Queue(1)
    short, long = add(queue, [10] * 4000), add(queue, [200] * 200)
    given = {short: 0, long: 0}
    for _ in range(60):
        run, payloads = run_next(queue)
        for request, _ in payloads:
            given[request] += run.entries[0].tokens
    assert 0.8 < given[short] / given[long] < 1.25


def test_a_request_that_comes_later_does_not_wait_for_an_older_one_to_end() -> None:
    queue = Queue(1)
    add(queue, [100] * 500, Lane.BULK)
    run_next(queue)
    late = add(queue, [100] * 500, Lane.BULK)
    requests = [request for _ in range(20) for request, _ in run_next(queue)[1]]
    assert 0.4 < requests.count(late) / len(requests) < 0.6


def test_texts_of_a_cancelled_request_never_run() -> None:
    """Pains 4 and 5: they leave before the next run, and are counted."""
    queue = Queue(1)
    requests = [add(queue, [20]) for _ in range(100)]
    kept = add(queue, [20])
    for request in requests:
        queue.cancel(request)
    assert (queue.tokens(), queue.cancelled_texts) == (20, 100)
    assert [request for request, _ in run_next(queue)[1]] == [kept]
    assert_empty(queue)


def test_a_request_that_is_cancelled_while_it_runs_is_not_told() -> None:
    queue = Queue(1)
    request = add(queue, [20])
    run = queue.take(0.0)
    assert run is not None
    queue.cancel(request)
    assert [waiters for _, waiters in queue.finish(run, 0.1)] == [{}]
    assert_empty(queue)


def test_a_request_that_has_expired_is_dropped_before_the_next_run() -> None:
    queue = Queue(1)
    expired, other = add(queue, [20], deadline=1.0), add(queue, [20], deadline=10.0)
    run = queue.take(2.0)
    assert run is not None
    assert [entry.payload[0] for entry in run.entries] == [other]
    assert queue.expired == [expired]


def test_equal_texts_are_run_once_and_everybody_gets_the_result() -> None:
    queue = Queue(1)
    requests = [Request(Lane.INTERACTIVE) for _ in range(3)]
    for request in requests[:2]:
        queue.add(request, [(_GROUP, 10, "text", "text"), (_GROUP, 10, "text", "text")], 0.0)
    assert queue.tokens() == 10
    run = queue.take(0.0)
    assert run is not None
    # While it runs, too.
    queue.add(requests[2], [(_GROUP, 10, "text", "text")], 0.0)
    assert queue.take(0.0) is None
    ((_, waiters),) = queue.finish(run, 0.1)
    assert waiters == {requests[0]: [0, 1], requests[1]: [0, 1], requests[2]: [0]}
    assert_empty(queue)


def test_a_text_is_run_while_anybody_waits_for_it() -> None:
    queue = Queue(1)
    first, second = Request(Lane.BULK), Request(Lane.INTERACTIVE)
    queue.add(first, [(_GROUP, 10, "text", "text")], 0.0)
    queue.add(second, [(_GROUP, 10, "text", "text")], 0.0)
    queue.cancel(first)
    run = queue.take(0.0)
    assert run is not None
    assert [list(waiters) for _, waiters in queue.finish(run, 0.1)] == [[second]]
    assert_empty(queue)


def test_a_query_pulls_the_equal_text_of_a_bulk_job_forward() -> None:
    queue = Queue(1)
    job = Request(Lane.BULK)
    queue.add(job, [(_GROUP, 200, text, text) for text in range(100)], 0.0)
    query = Request(Lane.INTERACTIVE)
    queue.add(query, [(_GROUP, 200, 99, 99)], 0.0)
    run = queue.take(0.0)
    assert run is not None
    assert run.entries[0].payload == 99


def test_a_run_is_alone_only_if_nothing_else_waits_or_runs() -> None:
    queue = Queue(2)
    add(queue, [14])
    alone = queue.take(0.0)
    assert alone is not None
    assert alone.alone
    add(queue, [14])
    # It has all threads: nothing starts beside it.
    assert queue.take(0.0) is None
    queue.finish(alone, 0.1)
    add(queue, [200])
    first, second = queue.take(0.1), queue.take(0.1)
    assert first is not None
    assert second is not None
    assert not first.alone
    assert not second.alone


def test_few_texts_are_shared_out_to_the_free_slots() -> None:
    queue = Queue(2)
    add(queue, [20] * 20)
    assert [len(run.entries) for run in (queue.take(0.0), queue.take(0.0)) if run] == [10, 10]


def test_texts_that_come_later_belong_to_the_same_request() -> None:
    queue = Queue(1)
    request = add(queue, [10] * 3)
    run = queue.take(0.0)
    assert run is not None
    queue.add(request, [(_GROUP, 10, "late", None)], 0.0, start=3)
    queue.finish(run, 0.1)
    (last,) = drain(queue)
    assert [list(entry.waiters.values()) for entry in last.entries] == [[[3]]]
    assert_empty(queue)


def test_the_pace_follows_what_is_measured_and_says_how_long_a_queue_takes() -> None:
    pace = Pace()
    queue, group = Queue(2), Group("minilm", 320, 64, pace)
    assert queue.seconds_until(Lane.BULK, pace, 0, 0.0) == 0.0
    add(queue, [160] * 400, group=group)
    for _ in range(100):
        run = queue.take(0.0)
        assert run is not None
        queue.finish(run, 0.032)
    # 320 tokens in 32 ms, in two slots.
    assert pace.tokens_per_second == pytest.approx(20_000)
    assert queue.tokens(Lane.BULK) == 32_000
    assert queue.seconds_until(Lane.BULK, pace, 0, 0.0) == pytest.approx(1.6)
    assert queue.seconds_until(Lane.BULK, pace, 0, 0.5) == pytest.approx(0.8)
    # Beside queries it has a quarter of the runs.
    add(queue, [10], group=group)
    assert queue.seconds_until(Lane.BULK, pace, 0, 0.5) == pytest.approx(3.2)
    assert queue.seconds_until(Lane.INTERACTIVE, pace, 15_000, 1.0) == pytest.approx(1.0)


def test_failures_are_counted_until_a_run_succeeds() -> None:
    queue = Queue(1)
    for failed, expected in ((True, 1), (True, 2), (False, 0)):
        add(queue, [10])
        run = queue.take(0.0)
        assert run is not None
        queue.finish(run, 0.1, failed=failed)
        assert queue.failures == expected


_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.lists(st.tuples(st.integers(1, 400), st.integers(0, 12)), min_size=1, max_size=12),
            st.sampled_from([None, 3.0, 20.0]),
        ),
        st.tuples(st.just("more"), st.integers(0, 30), st.integers(1, 400)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("take")),
        st.tuples(st.just("finish"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 5.0])),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(_OPERATIONS, st.integers(1, 3))
def test_every_text_that_somebody_waits_for_is_answered_once(operations: list[tuple], slots: int) -> None:
    """Whatever comes, goes, expires and is cancelled in whatever order: no text is lost, none is run for nobody."""
    queue, now = Queue(slots), 0.0
    requests: list[Request] = []
    missing: dict[Request, set[int]] = {}
    running: list[Run] = []

    def finish(run: Run) -> None:
        for _, waiters in queue.finish(run, now):
            for request, positions in waiters.items():
                assert not request.cancelled
                assert set(positions) <= missing[request]
                missing[request] -= set(positions)

    def take() -> bool:
        run = queue.take(now)
        if run is None:
            return False
        assert len(run.entries) == 1 or run.padded_tokens <= 320
        assert all(entry.waiters for entry in run.entries)
        running.append(run)
        return True

    for operation in operations:
        match operation:
            case ("add", texts, seconds):
                deadline = None if seconds is None else now + seconds
                request = Request(Lane.BULK if len(texts) > 8 else Lane.INTERACTIVE, deadline)
                requests.append(request)
                missing[request] = set(range(len(texts)))
                # The key stands for the text, so that equal ones have equal lengths.
                queue.add(request, [(_GROUP, 1 + 30 * key if key else n, None, key or None) for n, key in texts], now)
            case ("more", number, length) if number < len(requests):
                request = requests[number]
                if not request.cancelled:
                    start = max(missing[request], default=99) + 1
                    missing[request].add(start)
                    queue.add(request, [(_GROUP, length, None, None)], now, start)
            case ("cancel", number) if number < len(requests):
                queue.cancel(requests[number])
            case ("take",):
                take()
            case ("finish", number) if running:
                finish(running.pop(number % len(running)))
            case ("wait", seconds):
                now += seconds
        assert queue.tokens() >= 0
    while running or take():
        finish(running.pop())
    for request in requests:
        assert request.cancelled or not missing[request]
    assert_empty(queue)
