"""When a dead process is started again, and which processes there are in the first place."""

import importlib.util

import msgspec
import pytest

from quartet.supervisor.plan import DRAIN_ORDER, plan_processes
from quartet.supervisor.restart import BACKOFF_S, BACKOFF_WINDOW_S, USELESS_WINDOW_S, RestartPolicy
from quartet.wire.config import Config, ServerConfig, WorkerConfig
from quartet.wire.ids import Role

WITH_STANDBY = Config(server=ServerConfig(standby=True))


def test_the_first_restarts_are_immediate_and_the_later_ones_ever_slower() -> None:
    policy = RestartPolicy(limit=100)
    delays = [policy.on_death(float(now), now, True) for now in range(11)]
    assert delays == [0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert list(BACKOFF_S) == sorted(BACKOFF_S)


@pytest.mark.parametrize("life_s", [0.0, 1.0, 5.0])
def test_useful_deaths_are_never_given_up_and_their_rate_is_bounded(life_s: float) -> None:
    policy = RestartPolicy(limit=0)
    now, starts = 0.0, []
    for epoch in range(200):
        delay_s = policy.on_death(now, epoch, True)
        assert delay_s is not None
        starts.append(now + delay_s)
        now += delay_s + life_s
    per_minute = [sum(start <= other < start + 60 for other in starts) for start in starts[10:]]
    assert max(per_minute) <= 9


@pytest.mark.parametrize("limit", [0, 1, 5])
@pytest.mark.parametrize("period_s", [0.1, 15.0, 90.0])
def test_useless_deaths_are_restarted_up_to_the_limit(limit: int, period_s: float) -> None:
    """A process that becomes ready, and ends each 15 s without having done anything, is one that cannot run."""
    policy = RestartPolicy(limit)
    delays = [policy.on_death(n * period_s, n, False) for n in range(limit + 1)]
    assert None not in delays[:limit] and delays[limit] is None


def test_a_useful_life_ends_the_row() -> None:
    policy = RestartPolicy(limit=1)
    for epoch in range(0, 20, 2):
        assert policy.on_death(float(epoch), epoch, False) is not None
        assert policy.on_death(float(epoch), epoch + 1, True) is not None
    assert policy.on_death(21.0, 21, False) is not None
    assert policy.on_death(22.0, 22, False) is None


def test_useless_deaths_do_not_count_after_the_window() -> None:
    policy = RestartPolicy(limit=1)
    assert policy.on_death(0.0, 1, False) is not None
    assert policy.on_death(USELESS_WINDOW_S, 2, False) is not None
    assert policy.on_death(2 * USELESS_WINDOW_S - 0.1, 3, False) is None


def test_a_death_that_is_pinned_on_a_request_does_not_count() -> None:
    policy = RestartPolicy(limit=1)
    for epoch in range(20):
        assert policy.on_death(0.0, epoch, False) == 0.0
        policy.forgive(epoch)
    assert policy.on_death(0.0, 20, False) == 0.0
    policy.forgive(3)
    assert policy.on_death(0.0, 21, False) is None


def test_a_quiet_minute_starts_the_series_again() -> None:
    policy = RestartPolicy(limit=100)
    for epoch in range(6):
        policy.on_death(0.0, epoch, True)
    assert policy.on_death(BACKOFF_WINDOW_S - 0.1, 7, True) == 4.0
    assert policy.on_death(2 * BACKOFF_WINDOW_S, 8, True) == 0.0


def test_processes_do_not_share_their_history() -> None:
    first, second = RestartPolicy(0), RestartPolicy(0)
    assert first.on_death(0.0, 1, False) is None
    assert second.on_death(0.0, 1, True) == 0.0


def test_the_plan_of_a_small_launch() -> None:
    names = [spec.name for spec in plan_processes(Config())]
    assert names == ["worker-0", "api-0", "tokenizer-0", "scheduler-0", "detok-0"]


def test_the_plan_has_the_configured_numbers_of_processes() -> None:
    server = ServerConfig(api_procs=2, tokenizer_procs=3, detok_procs=4)
    plan = plan_processes(Config(server=server))
    counts = {role: [spec.rank for spec in plan if spec.role is role] for role in Role}
    assert counts == {
        Role.SUPERVISOR: [],
        Role.API: [0, 1],
        Role.TOKENIZER: [0, 1, 2],
        Role.SCHEDULER: [0],
        Role.WORKER: [0],
        Role.DETOK: [0, 1, 2, 3],
        Role.WEIGHTS: [],
        Role.STANDBY: [],
    }
    assert len({spec.name for spec in plan}) == len(plan)
    assert plan[0].role is Role.WORKER, "it takes longest to get ready"


def test_every_planned_module_can_be_run() -> None:
    for spec in plan_processes(WITH_STANDBY):
        entry = spec.module if spec.role is Role.WEIGHTS else f"{spec.module}.__main__"
        assert importlib.util.find_spec(entry) is not None, spec.module


def test_every_planned_role_is_drained_once_and_clients_first() -> None:
    assert sorted(DRAIN_ORDER) == sorted({spec.role for spec in plan_processes(WITH_STANDBY)})
    assert DRAIN_ORDER[0] is Role.API and DRAIN_ORDER[-2:] == (Role.WORKER, Role.WEIGHTS)


def test_a_standby_comes_with_a_holder_of_the_weights_where_there_are_weights() -> None:
    roles = [spec.role for spec in plan_processes(WITH_STANDBY)]
    assert roles[0] is Role.WEIGHTS and roles[-1] is Role.STANDBY
    assert [spec.role for spec in plan_processes(WITH_STANDBY) if spec.is_spare] == [Role.STANDBY]
    simulated = msgspec.structs.replace(WITH_STANDBY, worker=WorkerConfig(simulated_worker=True))
    assert [spec.role for spec in plan_processes(simulated)] == roles[1:]
