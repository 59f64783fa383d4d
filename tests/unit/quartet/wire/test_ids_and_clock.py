"""Ids, packed ids, the error tree's fields, and the manual clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quartet.runtime.clock import ManualClock, MonotonicClock
from quartet.wire.codec import Source
from quartet.wire.errors import ConfigError, FrameError, InvariantViolation, ModelError, QuartetError, RequestError
from quartet.wire.frames import pack_ids, unpack_ids
from quartet.wire.ids import Epoch, Role, process_name


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20))
def test_packed_ids_come_back(ids: list[int]) -> None:
    assert unpack_ids(pack_ids(ids)) == ids


def test_packed_ids_are_little_endian() -> None:
    assert pack_ids([1, -2]) == b"\x01\0\0\0\xfe\xff\xff\xff"


def test_an_id_beyond_32_bits_is_not_packed() -> None:
    with pytest.raises(OverflowError):
        pack_ids([2**31])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_part_of_an_id_is_refused(size: int) -> None:
    with pytest.raises(ValueError):
        unpack_ids(bytes(size))


def test_roles_keep_their_numbers() -> None:
    numbers = {role.label: int(role) for role in Role}
    assert list(numbers.items()) == [
        ("supervisor", 0),
        ("api", 1),
        ("tokenizer", 2),
        ("scheduler", 3),
        ("worker", 4),
        ("detok", 5),
        ("weights", 6),
        ("standby", 7),
    ]


def test_a_process_is_addressed_by_role_and_rank() -> None:
    assert process_name(Role.DETOK, 12) == "detok-12"


def test_a_source_cannot_be_changed() -> None:
    source = Source(Role.API, 0, Epoch(1))
    with pytest.raises(AttributeError):
        source.rank = 1  # type: ignore[misc]
    assert source == Source(Role.API, 0, Epoch(1))
    assert source != Source(Role.API, 0, Epoch(2))


def test_the_manual_clock_moves_by_advance() -> None:
    clock = ManualClock(5.0)
    assert clock.now() == 5.0
    clock.advance(0.25)
    clock.advance(0)
    assert clock.now() == 5.25


def test_the_manual_clock_never_goes_back() -> None:
    clock = ManualClock()
    with pytest.raises(ValueError):
        clock.advance(-0.1)
    assert clock.now() == 0.0


def test_the_real_clock_does_not_go_back() -> None:
    clock = MonotonicClock()
    before = clock.now()
    assert clock.now() >= before


def test_every_error_has_one_root() -> None:
    errors = [
        ConfigError(""),
        ModelError(""),
        FrameError("crc"),
        InvariantViolation("INV-1", ""),
        RequestError(400, "", ""),
    ]
    assert all(isinstance(error, QuartetError) for error in errors)


def test_errors_carry_their_fields() -> None:
    assert (str(FrameError("type", "99")), FrameError("type", "99").reason) == ("type: 99", "type")
    assert str(FrameError("crc")) == "crc"
    violation = InvariantViolation("INV-3", "page 7 has two owners")
    assert (violation.name, str(violation)) == ("INV-3", "INV-3: page 7 has two owners")
    error = RequestError(503, "queue_full", "full", "n", 2.0)
    assert (error.status, error.code, error.message, error.param, error.retry_after_s) == (
        503, "queue_full", "full", "n", 2.0,
    )  # fmt: skip
    assert str(error) == "full"
