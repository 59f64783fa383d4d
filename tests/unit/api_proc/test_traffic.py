"""The steady-state line: what it says, when there is none, and the warning about retractions."""

import logging

from api_proc.server.traffic import Traffic
from quartet.wire.frames import Snapshot
from quartet.wire.ids import Epoch, Role

BUSY = {"num_running_reqs": 3.0, "num_queue_reqs": 2.0, "token_usage": 0.25, "new_token_ratio": 0.4}


def snapshot(gauges: dict[str, float], epoch: int = 1, **counters: float) -> Snapshot:
    return Snapshot(Role.SCHEDULER, 0, Epoch(epoch), gauges, counters)


def test_rates_are_those_of_the_period() -> None:
    traffic = Traffic()
    assert traffic.lines(snapshot(BUSY, input_tokens=100, cached_tokens=90, output_tokens=50), 0.0) == []
    (line,) = traffic.lines(snapshot(BUSY, input_tokens=500, cached_tokens=190, output_tokens=1050), 10.0)
    assert line.level == logging.INFO
    assert line.text == (
        "running 3, queued 2, KV used 25.0%, cache hit 25.0%, "
        "prompt 40.0 tok/s, output 100.0 tok/s, new-token ratio 0.4"
    )
    assert line.fields["gen_throughput"] == 100.0 and line.fields["num_queue_reqs"] == 2


def test_an_idle_engine_is_silent() -> None:
    traffic = Traffic()
    for now in range(3):
        assert traffic.lines(snapshot({"token_usage": 0.5}, output_tokens=7), float(now)) == []


def test_a_scheduler_that_was_replaced_begins_anew() -> None:
    traffic = Traffic()
    traffic.lines(snapshot(BUSY, output_tokens=1000), 0.0)
    assert traffic.lines(snapshot(BUSY, 2, output_tokens=10), 10.0) == []
    assert traffic.lines(snapshot(BUSY, 2, output_tokens=20), 20.0)[0].fields["gen_throughput"] == 1.0


def test_retractions_are_a_warning_that_says_what_to_change() -> None:
    traffic = Traffic()
    traffic.lines(snapshot(BUSY, retractions=2, recomputed_tokens=10), 0.0)
    later = {**BUSY, "new_token_ratio": 0.7}
    _, warning = traffic.lines(snapshot(later, retractions=7, recomputed_tokens=110), 10.0)
    assert warning.level == logging.WARNING
    assert "5 requests were put back in 10 s, 100 tokens" in warning.text and "0.40 -> 0.70" in warning.text
    assert "--max-running-requests" in warning.text
    assert len(traffic.lines(snapshot(later, retractions=7, recomputed_tokens=110), 20.0)) == 1
