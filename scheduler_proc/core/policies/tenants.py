"""Tenants that wait get equal service by weight, within a quantum (rules POL-8 to POL-10, INV-9).

Virtual counters are those of VTC (Sheng et al., arXiv 2401.00588), the quantum inside which the cache decides is that
of DLPM (arXiv 2501.14312). The proof of the bound is in docs/scheduling-rules.md, INV-9.
"""

import math
from dataclasses import dataclass

from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import InvariantViolation
from quartet.wire.tenants import DEFAULT, parse_tenant_weights, tenant_named
from scheduler_proc.core.request import Request

UNITS_OF_AN_OUTPUT = 4
"""Service is counted in prompt tokens; decoding a token counts for as many as in lpm-aging."""
UNITS_OF_A_KV_TOKEN_SECOND = 1 / 16
"""So a full pool of half a million tokens counts for about what the device computes in the same second."""
MOST_IDLE_ACCOUNTS = 256
SLACK = 1e-6
"""Relative error that sums of floats may have."""


@dataclass(slots=True)
class _Account:
    """`served` is the service of one tenant by its weight, `at_pass` what it was when the queue was last ordered,
    `waiting` and `on_board` count its requests."""

    weight: float
    served: float = 0.0
    at_pass: float = 0.0
    waiting: int = 0
    on_board: int = 0


@dataclass(slots=True)
class _Stay:
    """One stay of a request in the batch, accounted for until `until_s`. `cached` tokens of it were in the tree."""

    request: Request
    account: _Account
    cached: int
    tokens: int
    until_s: float


class TenantShares:
    """The virtual counter of each tenant, one for each urgency with priorities on.

    `floors` holds, by urgency, a bound that no waiting tenant's counter is below.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        weights = parse_tenant_weights(config.tenant_weights)
        self._default_weight = weights.pop(DEFAULT, 1.0)
        # A tenant is the digest of what a client has sent; the simulator's have their names.
        self._weights = {tenant_named(name): weight for name, weight in weights.items()} | weights
        self._quantum = float(config.tenant_quantum)
        self._is_by_urgency = config.enable_priority_scheduling
        self._accounts: dict[tuple[int, str], _Account] = {}
        self._stays: dict[int, _Stay] = {}
        self._waiting = 0
        self._behind: dict[tuple[int, str], float] = {}
        self._admitted_at: dict[int, float] = {}
        self.floors: dict[int, float] = {}

    # The queue and the batch

    def on_queued(self, request: Request, now: float) -> None:
        """A request joins the queue. A tenant of which none waited is lifted to the floor (POL-10)."""
        self.on_left(request, now)
        if not self._waiting and not self._stays:
            # No tenant is served, so none has a claim on what others got.
            self._accounts.clear()
            self.floors.clear()
        key = self._key(request)
        account = self._accounts.get(key)
        if account is None:
            self._forget_idle()
            account = self._accounts[key] = _Account(self._weights.get(key[1], self._default_weight))
        if not account.waiting:
            account.served = account.at_pass = max(account.served, self.floors.get(key[0], 0.0))
        account.waiting += 1
        self._waiting += 1

    def on_removed(self, request: Request) -> None:
        """A request leaves the queue without being admitted."""
        self._accounts[self._key(request)].waiting -= 1
        self._waiting -= 1

    def on_admitted(self, request: Request, cached: int, now: float) -> None:
        """A request enters the batch with `cached` tokens from the tree; the rest is charged the first time (POL-8)."""
        self.on_removed(request)
        key = self._key(request)
        account = self._accounts[key]
        self._admitted_at[key[0]] = max(self._admitted_at.get(key[0], 0.0), account.at_pass)
        if request.charged_outputs < 0:
            account.served += (request.total_tokens - cached) / account.weight
            request.charged_outputs = len(request.output_ids)
        account.on_board += 1
        self._stays[id(request)] = _Stay(request, account, cached, request.total_tokens, now)

    def on_left(self, request: Request, now: float) -> None:
        """A request has left the batch, if it was there."""
        stay = self._stays.pop(id(request), None)
        if stay is not None:
            self._settle(stay, now)
            stay.account.on_board -= 1

    def end_pass(self) -> None:
        """Raise the floors to what the admissions of a pass show (POL-10).

        A request that goes before the order, on trial (STEP-14) or after a retraction (RET-21), shows nothing about
        the tenants that it has overtaken, so no floor rises above a tenant that still waits.
        """
        if not self._admitted_at:
            return
        reached = {urgency: at_pass - self._quantum for urgency, at_pass in self._admitted_at.items()}
        self._admitted_at.clear()
        for (urgency, _), account in self._accounts.items():
            if account.waiting and urgency in reached:
                reached[urgency] = min(reached[urgency], account.served)
        for urgency, floor in reached.items():
            self.floors[urgency] = max(self.floors.get(urgency, 0.0), floor)

    # The order

    def take_ineligible(self, waiting: list[Request], now: float) -> list[Request]:
        """Take out of `waiting` the requests of tenants more than a quantum ahead of the least served (POL-9).

        Returns them with those of the least served first, otherwise in the order they had.
        """
        self._settle_all(now)
        limits: dict[int, float] = {}
        for (urgency, _), account in self._accounts.items():
            account.at_pass = account.served
            if account.waiting:
                limits[urgency] = min(limits.get(urgency, math.inf), account.served + self._quantum)
        self._behind = behind = {
            key: account.served
            for key, account in self._accounts.items()
            if account.waiting and account.served > limits[key[0]]
        }
        if not behind:
            return []
        key_of = self._key
        taken = [request for request in waiting if key_of(request) in behind]
        waiting[:] = [request for request in waiting if key_of(request) not in behind]
        return sorted(taken, key=lambda request: behind[key_of(request)])

    def put_behind(self, waiting: list[Request]) -> None:
        """Sort what another order has mixed: what `take_ineligible` has taken last behind the others, as it was."""
        behind, key_of = self._behind, self._key
        if behind:
            waiting.sort(key=lambda request: (key_of(request)[0], behind.get(key_of(request), -1.0)))

    def largest_gap(self, now: float) -> float:
        """Return by how much the service of two tenants that wait, with the same urgency, differs at most (INV-9)."""
        self._settle_all(now)
        served: dict[int, list[float]] = {}
        for (urgency, _), account in self._accounts.items():
            if account.waiting:
                served.setdefault(urgency, []).append(account.served)
        return max((max(found) - min(found) for found in served.values()), default=0.0)

    def served(self) -> dict[str, float]:
        """Return the counters of the tenants that wait or are served, by name; the highest of several urgencies."""
        found: dict[str, float] = {}
        for (_, tenant), account in self._accounts.items():
            if account.waiting or account.on_board:
                found[tenant] = max(found.get(tenant, 0.0), account.served)
        return found

    @property
    def account_count(self) -> int:
        """How many counters are kept."""
        return len(self._accounts)

    def audit(self, waiting: list[Request], holders: list[Request]) -> None:
        """Raise InvariantViolation where a waiting tenant is below the floor, or a request is not counted (INV-9)."""
        counts = dict.fromkeys(self._accounts, 0)
        for request in waiting:
            counts[self._key(request)] += 1
        if counts != {key: account.waiting for key, account in self._accounts.items()}:
            raise InvariantViolation("INV-9", f"accounts of waiting requests differ from the queue: {counts}")
        if self._stays.keys() != {id(request) for request in holders}:
            raise InvariantViolation("INV-9", f"{len(self._stays)} stays for {len(holders)} requests in the batch")
        for (urgency, tenant), account in self._accounts.items():
            floor = self.floors.get(urgency, 0.0)
            if account.waiting and account.served < floor * (1 - SLACK):
                raise InvariantViolation("INV-9", f"tenant {tenant!r} waits at {account.served}, below {floor}")

    def _key(self, request: Request) -> tuple[int, str]:
        return (request.urgency if self._is_by_urgency else 0), request.namespace[0]

    def _settle_all(self, now: float) -> None:
        for stay in self._stays.values():
            self._settle(stay, now)

    def _settle(self, stay: _Stay, now: float) -> None:
        """Charge the outputs since, and the time that the tokens which are not from the tree have been on board."""
        request, account = stay.request, stay.account
        outputs, tokens = len(request.output_ids), request.total_tokens
        # Outputs come at an even pace, so the mean of both ends is what was held.
        held = (stay.tokens + tokens) / 2 - stay.cached
        units = UNITS_OF_A_KV_TOKEN_SECOND * held * (now - stay.until_s)
        stay.tokens, stay.until_s = tokens, now
        if outputs > request.charged_outputs:
            units += UNITS_OF_AN_OUTPUT * (outputs - request.charged_outputs)
            request.charged_outputs = outputs
        account.served += units / account.weight

    def _forget_idle(self) -> None:
        """Drop the less served half of the idle tenants, if there are many: a return would lift them, or nearly."""
        idle = [key for key, account in self._accounts.items() if not (account.waiting or account.on_board)]
        if len(idle) < MOST_IDLE_ACCOUNTS:
            return
        for key in sorted(idle, key=lambda key: self._accounts[key].served)[: MOST_IDLE_ACCOUNTS // 2]:
            del self._accounts[key]
