"""When a dead process is started again, and which processes there are in the first place."""

import importlib.util

import pytest

from quartet.supervisor.plan import DRAIN_ORDER, plan_processes
from quartet.supervisor.restart import BACKOFF_S, HEALTHY_S, WINDOW_S, RestartPolicy
from quartet.wire.config import Config, ServerConfig
from quartet.wire.ids import Role


def test_the_first_restarts_are_immediate_and_the_later_ones_ever_slower() -> None:
    policy = RestartPolicy(limit=100)
    delays = [policy.on_death(float(now), 1.0, True) for now in range(11)]
    assert delays == [0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert list(BACKOFF_S) == sorted(BACKOFF_S)


def test_a_useful_process_is_never_given_up() -> None:
    policy = RestartPolicy(limit=0)
    assert all(policy.on_death(0.0, 1.0, True) is not None for _ in range(50))


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_useless_deaths_are_restarted_up_to_the_limit(limit: int) -> None:
    policy = RestartPolicy(limit)
    delays = [policy.on_death(float(now), 0.1, False) for now in range(limit + 1)]
    assert None not in delays[:limit] and delays[limit] is None


def test_deaths_of_useful_processes_do_not_count_towards_the_limit() -> None:
    policy = RestartPolicy(limit=1)
    assert policy.on_death(0.0, 0.1, False) is not None
    for _ in range(10):
        assert policy.on_death(1.0, 5.0, True) is not None
    assert policy.on_death(2.0, 0.1, False) is None


def test_useless_deaths_do_not_count_after_the_window() -> None:
    policy = RestartPolicy(limit=1)
    assert policy.on_death(0.0, 0.1, False) is not None
    assert policy.on_death(WINDOW_S, 0.1, False) is not None
    assert policy.on_death(2 * WINDOW_S - 0.1, 0.1, False) is None


def test_a_healthy_life_starts_the_series_again() -> None:
    policy = RestartPolicy(limit=100)
    for _ in range(6):
        policy.on_death(0.0, 1.0, True)
    assert policy.on_death(0.0, HEALTHY_S, True) == 4.0, "just not long enough"
    assert policy.on_death(0.0, HEALTHY_S + 0.1, True) == 0.0
    assert [policy.on_death(0.0, 1.0, True) for _ in range(2)] == [0.0, 0.25]


def test_processes_do_not_share_their_history() -> None:
    first, second = RestartPolicy(0), RestartPolicy(0)
    assert first.on_death(0.0, 0.1, False) is None
    assert second.on_death(0.0, 0.1, True) == 0.0


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
    }
    assert len({spec.name for spec in plan}) == len(plan)
    assert plan[0].role is Role.WORKER, "it takes longest to get ready"


def test_every_planned_module_can_be_run() -> None:
    for spec in plan_processes(Config()):
        assert importlib.util.find_spec(f"{spec.module}.__main__") is not None, spec.module


def test_every_planned_role_is_drained_once_and_clients_first() -> None:
    assert sorted(DRAIN_ORDER) == sorted({spec.role for spec in plan_processes(Config())})
    assert DRAIN_ORDER[0] is Role.API and DRAIN_ORDER[-1] is Role.WORKER
