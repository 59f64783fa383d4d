"""Short runs of the nemesis against a real launch; `python -m tests.fault.nemesis` has the long ones."""

import pytest

from tests.fault.nemesis import FLAGS, Nemesis
from tests.support.server import Server

pytestmark = pytest.mark.e2e


async def shaken(seed: int, clients: int, seconds: float, *flags: str) -> None:
    with Server(*FLAGS, *flags) as server:
        report = await Nemesis(server, seed, clients, tokens=80, gap_s=1.2, pool=16).run(seconds)
    assert report.is_good, "\n".join([*report.lines(), *server.output[-40:]])
    assert report.answered >= clients and report.injected


async def test_a_few_seconds() -> None:
    await shaken(seed=3, clients=12, seconds=5.0)


async def test_a_few_seconds_with_a_standby() -> None:
    await shaken(4, 12, 5.0, "--standby")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_half_a_minute(seed: int) -> None:
    await shaken(seed, clients=50, seconds=30.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_half_a_minute_with_a_standby(seed: int) -> None:
    await shaken(seed, 50, 30.0, "--standby")
