"""The codec: whole frames come back as they were, and nothing but FrameError comes out of what is damaged."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quartet.wire import codec
from quartet.wire.codec import HEADER, MAX_FRAME_BYTES, VERSION, Decoder, Encoder, Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import Abort, LiveRequests, QueryReply, SchedulerInbound, Submit
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import BOOT, INBOXES, RID, SAMPLES, inbox_of, kinds, sealed, tag

SENDER = Source(Role.API, 3, Epoch(41))
ENCODER = Encoder(SENDER, BOOT)
DECODERS: dict[str, Decoder[Any]] = {name: Decoder(inbound, BOOT) for name, inbound in INBOXES.items()}
ABORT = ENCODER.encode(Abort(RID))
ABORT_BODY = ABORT[HEADER.size :]


def refusal(data: bytes) -> str:
    """Return why the scheduler's inbox refuses these bytes."""
    with pytest.raises(FrameError) as caught:
        DECODERS["scheduler"].decode(data)
    return caught.value.reason


def decode_or_refuse(decoder: Decoder[Any], data: bytes) -> None:
    """Decode; FrameError is the only way in which this may fail."""
    try:
        source, frame = decoder.decode(data)
    except FrameError:
        return
    assert isinstance(source, Source) and isinstance(frame, msgspec.Struct)


def test_every_frame_type_has_a_sample() -> None:
    assert {kind for inbound in INBOXES.values() for kind in kinds(inbound)} == {type(frame) for frame in SAMPLES}


def test_no_two_frame_types_share_a_tag() -> None:
    tags = [tag(frame) for frame in SAMPLES]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
def test_round_trip(frame: msgspec.Struct) -> None:
    assert Decoder(inbox_of(frame), BOOT).decode(ENCODER.encode(frame)) == (SENDER, frame)


def test_the_header_holds_source_and_type() -> None:
    magic, version, kind, role, rank, boot, epoch, length, _ = HEADER.unpack_from(ABORT)
    assert (magic, version, kind, role, rank, boot, epoch) == (b"QRTT", VERSION, 13, Role.API, 3, BOOT, 41)
    assert length == len(ABORT) - HEADER.size


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("short", b""),
        ("short", ABORT[: HEADER.size - 1]),
        ("magic", sealed(ABORT_BODY, 13, magic=b"HTTP")),
        ("version", sealed(ABORT_BODY, 13, version=VERSION + 1)),
        ("boot", sealed(ABORT_BODY, 13, boot=BOOT + 1)),
        ("type", sealed(ABORT_BODY, 12)),
        ("type", sealed(ABORT_BODY, 250)),
        ("length", sealed(ABORT_BODY, 13, length=len(ABORT_BODY) - 1)),
        ("length", ABORT[:-1]),
        ("length", ABORT + b"\0"),
        ("crc", ABORT[:-1] + bytes([ABORT[-1] ^ 1])),
        ("body", sealed(b"", 13)),
        ("body", sealed(b"\x92\x0d\xa5hello", 13)),
        ("body", sealed(b"\x91\x0d", 13)),
        ("body", sealed(msgspec.msgpack.encode([13, RID, "surplus"]), 13)),
        ("body", sealed(msgspec.msgpack.encode([99, RID]), 13)),
        ("body", sealed(msgspec.msgpack.encode({"rid": RID}), 13)),
        ("body", sealed(ABORT_BODY + b"\0", 13)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(reason: str, data: bytes) -> None:
    assert refusal(data) == reason


def test_a_role_that_is_none_has_its_own_reason() -> None:
    assert refusal(sealed(ABORT_BODY, 13, role=99)) == "role"


def test_header_and_body_agree_on_the_type() -> None:
    refusal(sealed(ABORT_BODY, tag(LiveRequests("", []))))


def test_the_other_launch_is_refused_before_anything_else_is_looked_at() -> None:
    assert refusal(sealed(b"\xc1", 13, boot=BOOT + 1, crc=0)) == "boot"


def test_bad_utf8_is_refused() -> None:
    assert refusal(sealed(b"\x93\x0e\xa2\xff\xfe\x90", 14)) == "body"


@pytest.mark.parametrize("opening", [b"", b"\x93\x0e\xa1a", b"\x93\x0e\xa1a\x91"])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    assert refusal(sealed(opening + b"\x91" * 100_000 + b"\x01", 14)) == "body"


@pytest.mark.parametrize("size", [b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff"])
def test_a_list_that_claims_billions_is_refused(size: bytes) -> None:
    assert refusal(sealed(b"\x93\x0e\xa1a" + size, 14)) == "body"


def test_a_frame_above_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = ENCODER.encode(QueryReply(1, bytes(100)))
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", len(fits))
    assert ENCODER.encode(QueryReply(1, bytes(100))) == fits
    with pytest.raises(FrameError) as caught:
        ENCODER.encode(QueryReply(1, bytes(101)))
    assert caught.value.reason == "too_big" and "QueryReply" in str(caught.value)


def test_the_longest_prompt_fits() -> None:
    million_ids = bytes(4 << 20)
    data = ENCODER.encode(
        msgspec.structs.replace(
            next(one for one in SAMPLES if isinstance(one, Submit)), prompt_ids=million_ids, output_ids=million_ids
        )
    )
    assert len(data) < MAX_FRAME_BYTES
    assert isinstance(DECODERS["scheduler"].decode(data)[1], Submit)


@pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
def test_a_flipped_byte_of_the_body_is_refused(frame: msgspec.Struct) -> None:
    data, decoder = ENCODER.encode(frame), Decoder[Any](inbox_of(frame), BOOT)
    for at in range(HEADER.size, len(data)):
        with pytest.raises(FrameError, match="crc"):
            decoder.decode(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_of_the_header_is_refused(flip: int) -> None:
    for at in range(HEADER.size):
        assert refusal(ABORT[:at] + bytes([ABORT[at] ^ flip]) + ABORT[at + 1 :])


def test_every_cut_is_refused() -> None:
    assert {refusal(ABORT[:length]) for length in range(len(ABORT))} == {"short", "length"}


@given(data=st.binary(max_size=200), name=st.sampled_from(sorted(INBOXES)))
@settings(max_examples=150, deadline=None)
def test_random_bytes_raise_nothing_else(data: bytes, name: str) -> None:
    decode_or_refuse(DECODERS[name], data)


@given(body=st.binary(max_size=60), kind=st.sampled_from([13, 14, 17]), role=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_random_bodies_under_a_good_header_raise_nothing_else(body: bytes, kind: int, role: int) -> None:
    decode_or_refuse(DECODERS["scheduler"], sealed(body, kind, role=role))


@given(
    frame=st.sampled_from(SAMPLES),
    where=st.floats(0, 1, exclude_max=True),
    value=st.integers(0, 255),
    insert=st.binary(max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_damage_that_the_checksum_hides_raises_nothing_else(
    frame: msgspec.Struct, where: float, value: int, insert: bytes
) -> None:
    body = msgspec.msgpack.encode(frame)
    at = int(where * len(body))
    damaged = body[:at] + bytes([value]) + insert + body[at + 1 :]
    decode_or_refuse(Decoder(inbox_of(frame), BOOT), sealed(damaged, tag(frame)))


def test_decoders_take_what_their_inbox_takes_and_no_more() -> None:
    for frame in SAMPLES:
        data = ENCODER.encode(frame)
        takers = [name for name, decoder in DECODERS.items() if _takes(decoder, data)]
        assert takers == [name for name, inbound in INBOXES.items() if type(frame) in kinds(inbound)]


def _takes(decoder: Decoder[Any], data: bytes) -> bool:
    try:
        decoder.decode(data)
    except FrameError as error:
        assert error.reason == "type"
        return False
    return True


def test_the_union_of_an_inbox_is_what_is_decoded() -> None:
    _, frame = Decoder[Any](SchedulerInbound, BOOT).decode(ABORT)
    assert isinstance(frame, Abort)
