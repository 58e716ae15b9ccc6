from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nimbed.scheduling.policy import FairQueue, QueuedRow

BUDGET = 100


class Request:
    """One request of rows of the given sizes."""

    def __init__(self, *tokens: int) -> None:
        self.rows = [QueuedRow(self, index, size, None) for index, size in enumerate(tokens)]


def queue_of(*requests: Request) -> FairQueue[Request]:
    queue: FairQueue[Request] = FairQueue()
    for request in requests:
        queue.push(request.rows)
    return queue


def take(queue, look_ahead=1, is_alive=lambda request: True):
    return queue.take(BUDGET, look_ahead=look_ahead, is_alive=is_alive)


def sizes(batch):
    return [row.tokens for row in batch]


def test_rows_come_in_the_order_of_their_requests_where_lengths_do_not_matter():
    queue = queue_of(*(Request(size) for size in (50, 10, 40, 10, 50, 40)))
    assert sizes(take(queue)) == [50, 40, 10]
    assert sizes(take(queue)) == [50, 40, 10]
    assert len(queue) == queue.tokens == 0


def test_rows_of_one_length_share_a_batch_where_lengths_matter():
    queue = queue_of(*(Request(size) for size in [50, 10] * 20))
    batches = []
    while queue:
        batches.append(sizes(take(queue, look_ahead=4)))
    assert batches[0] == [50, 50]
    mixed = [batch for batch in batches if len(set(batch)) > 1]
    assert len(mixed) <= 2 < len(batches) / 4


def test_a_query_is_taken_at_once_though_the_book_before_it_has_other_lengths():
    book = Request(*[20] * 100)
    queue = queue_of(book)
    take(queue, look_ahead=4)
    query = Request(3)
    queue.push(query.rows)
    assert query.rows[0] in take(queue, look_ahead=4)


def test_a_row_of_a_rare_length_is_passed_over_three_times_at_most():
    queue = queue_of(*(Request(20) for _ in range(10)))
    rare = Request(90)
    queue.push(rare.rows)
    passed = 0
    while rare.rows[0] not in take(queue, look_ahead=4):
        passed += 1
        for _ in range(5):  # as many again, as long as the others
            queue.push(Request(20).rows)
    assert passed <= 3


def test_a_book_is_not_starved_by_queries_without_end():
    book = Request(*[50] * 20)
    queue = queue_of(Request(10), book)
    batches = done = 0
    while done < 20 and batches < 2000:
        while len(queue) < 60:  # the device is never done with them
            queue.push(Request(11).rows)
        done += sum(row.request is book for row in take(queue))
        batches += 1
    assert 20 < batches < 2000  # nor are they starved


def test_rows_nobody_waits_for_are_dropped_and_leave_their_room_to_others():
    dead = [Request(30) for _ in range(5)]
    alive = [Request(30) for _ in range(5)]
    queue = queue_of(*dead, *alive)
    batch = take(queue, is_alive=lambda request: request in alive)
    assert [row.request for row in batch] == alive[:3]
    assert queue.requests() == alive[3:]


@given(
    st.lists(
        st.lists(st.integers(1, 150), min_size=1, max_size=30).map(lambda sizes: Request(*sizes)),
        max_size=30,
    ),
    st.sampled_from([1, 4]),
)
def test_every_row_is_taken_once_in_a_batch_within_the_budget(requests, look_ahead):
    queue = queue_of(*requests)
    waiting = [row for request in requests for row in request.rows]
    taken = []
    while queue:
        batch = take(queue, look_ahead=look_ahead)
        assert sum(sizes(batch)) <= BUDGET or len(batch) == 1
        assert sizes(batch) == sorted(sizes(batch), reverse=True)
        taken += batch
    assert queue.tokens == 0
    assert queue.requests() == []
    assert sorted(map(id, taken)) == sorted(map(id, waiting))


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 150), min_size=1, max_size=12).map(lambda n: Request(*n)),
            st.sampled_from(["fairly", "in order", "not at all"]),
        ),
        max_size=30,
    )
)
def test_rows_that_a_batch_considered_and_left_still_wait(arrivals):
    queue: FairQueue[Request] = FairQueue()
    waiting: dict[Request, list[QueuedRow]] = {}
    for request, taken in arrivals:
        queue.push(request.rows)
        waiting[request] = list(request.rows)
        batch = []
        if taken == "fairly":
            batch = take(queue, look_ahead=4)
        elif taken == "in order":
            places = {each: place for place, each in enumerate(waiting)}
            batch = queue.take_in_order(BUDGET, places, is_alive=lambda each: True)
            first = next(iter(waiting))
            assert all(row.request is first for row in batch) or not set(waiting[first]) - {*batch}
        for row in batch:
            waiting[row.request].remove(row)
        waiting = {each: rows for each, rows in waiting.items() if rows}
        assert queue.pending() == {each: sum(sizes(rows)) for each, rows in waiting.items()}
        assert len(queue) == sum(map(len, waiting.values()))
        assert bool(queue) == bool(waiting)
        assert queue.tokens == sum(queue.pending().values())
        assert set(queue.requests()) == set(waiting)
