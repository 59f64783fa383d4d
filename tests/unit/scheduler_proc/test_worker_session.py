"""The scheduler's view of its worker: hellos, questions about long steps, and what the answers show."""

import pytest

from quartet.wire.codec import Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import SchedulerHello, WorkerHello
from quartet.wire.ids import Epoch, Role
from scheduler_proc.core.events import StepsLost, WorkerUp
from scheduler_proc.core.in_flight import IssuedStep
from scheduler_proc.worker_session import QUERY_S, WorkerSession

WORKER = Source(Role.WORKER, 0, Epoch(4))


def hello(is_ready: bool = True, **fields: int) -> WorkerHello:
    return WorkerHello(Epoch(2), is_ready, 16, 100, 8, 512, 1024, "cpu", **fields)


@pytest.fixture
def session() -> WorkerSession:
    session = WorkerSession(Epoch(2))
    assert session.on_hello(WORKER, hello(False), 0, None) == SchedulerHello(Epoch(4), 100)
    assert isinstance(session.on_hello(WORKER, hello(), 0, None), WorkerUp)
    return session


def asked(session: WorkerSession, oldest: IssuedStep, last_step: int) -> SchedulerHello:
    due_s = session.query_due_s(oldest)
    assert due_s == oldest.issued_s + QUERY_S
    return session.query(last_step, due_s)


def answer(session: WorkerSession, oldest: IssuedStep, **fields: int) -> object:
    query = asked(session, oldest, 6).query
    return session.on_hello(WORKER, hello(query=query, **fields), 6, oldest)


def test_a_step_that_takes_long_is_asked_about_after_1_2_4_seconds(session: WorkerSession) -> None:
    oldest = IssuedStep(5, 10.0, [])
    assert asked(session, oldest, 6).query == 1
    assert session.query_due_s(oldest) == 12.0
    session.query(6, 12.0)
    assert session.query_due_s(oldest) == 14.0
    assert session.query_due_s(None) is None


def test_a_step_in_progress_is_left_alone(session: WorkerSession) -> None:
    assert answer(session, IssuedStep(5, 10.0, []), last_step=6, steps_in_flight=2) is None


def test_a_step_that_has_not_arrived_is_lost(session: WorkerSession) -> None:
    assert answer(session, IssuedStep(5, 10.0, []), last_step=5, steps_in_flight=1) == StepsLost()


def test_a_result_that_has_not_arrived_is_lost(session: WorkerSession) -> None:
    assert answer(session, IssuedStep(5, 10.0, []), last_step=6, steps_in_flight=1) == StepsLost()


def test_an_answer_to_an_earlier_question_shows_nothing(session: WorkerSession) -> None:
    oldest = IssuedStep(5, 10.0, [])
    first = asked(session, oldest, 5).query
    session.query(6, 12.0)
    assert session.on_hello(WORKER, hello(query=first, last_step=5), 6, oldest) is None


def test_the_next_session_is_announced_until_it_is_confirmed(session: WorkerSession) -> None:
    assert session.begin_again(6, 20.0) == SchedulerHello(Epoch(4), 100, 1, 6)
    assert session.query_due_s(None) == 20.0 + QUERY_S
    assert session.query(6, 21.0) == SchedulerHello(Epoch(4), 100, 1, 6)
    with pytest.raises(FrameError):
        session.on_hello(WORKER, hello(), 6, None)
    assert isinstance(session.on_hello(WORKER, hello(session=1), 6, None), WorkerUp)
    assert session.query_due_s(None) is None
