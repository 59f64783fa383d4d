"""Nothing is ignored in silence: each field of other servers is served, without effect here, or refused by its name."""

import logging
from typing import Any

import known_fields as known
import msgspec
import pytest
from error_shape import CHAT, COMPLETIONS, MESSAGES, assert_error

from api_proc.openai import other_fields
from api_proc.openai.schema import ChatRequest, CompletionRequest

CHAT_BODY: dict[str, Any] = {"messages": MESSAGES}
TEXT_BODY: dict[str, Any] = {"prompt": "x"}

REFUSED = [
    *[(CHAT, CHAT_BODY, *one) for one in (known.REFUSED_BOTH | known.REFUSED_CHAT).items()],
    *[(COMPLETIONS, TEXT_BODY, *one) for one in (known.REFUSED_BOTH | known.REFUSED_COMPLETIONS).items()],
]


@pytest.mark.parametrize(("path", "body", "name", "value"), REFUSED)
async def test_what_would_change_the_answer_is_refused(
    api: Any, path: str, body: dict[str, Any], name: str, value: Any
) -> None:
    status, answer, _ = await api.post(path, {**body, name: value})
    assert status == 400, answer
    assert_error(answer, "unsupported_parameter", name)
    assert name in answer["error"]["message"]
    assert not api.engine.outputs


async def test_what_requests_nothing_is_accepted(api: Any) -> None:
    for path, body, name, _ in REFUSED:
        for value in (None, known.NEUTRAL.get(name)):
            status, answer, _ = await api.post(path, {**body, name: value})
            assert status == 200, (name, value, answer)


async def test_what_has_no_effect_is_accepted_and_changes_nothing(api: Any) -> None:
    assert known.WITHOUT_EFFECT.keys() == other_fields.WITHOUT_EFFECT.keys()
    for path, body in ((CHAT, CHAT_BODY), (COMPLETIONS, TEXT_BODY)):
        for name, value in known.WITHOUT_EFFECT.items():
            for more in ({}, {name: value}):
                assert (await api.post(path, {**body, **more, "seed": 1, "rid": "r"}))[0] == 200, name
            one, other = (output.request for output in api.engine.outputs[-2:])
            assert one == other, name


def test_every_field_is_in_one_class() -> None:
    for kind, served, refused in (
        (ChatRequest, known.SERVED_CHAT, known.REFUSED_CHAT),
        (CompletionRequest, known.SERVED_COMPLETIONS, known.REFUSED_COMPLETIONS),
    ):
        names = {field.name for field in msgspec.structs.fields(kind)}
        served_here = {*known.SERVED_BOTH, *served}
        assert served_here <= names, served_here - names
        refused_here = known.REFUSED_BOTH.keys() | refused.keys()
        # best_of is served where it equals n.
        assert not (served_here & refused_here) - {"best_of"}
        assert not known.WITHOUT_EFFECT.keys() & (names | refused_here)
        # A field of the schemas that is refused stands in the table, too.
        assert other_fields.REFUSED.keys() <= known.REFUSED_BOTH.keys() | known.REFUSED_CHAT.keys()
    assert not other_fields.REFUSED.keys() & other_fields.WITHOUT_EFFECT.keys()


async def test_unknown_names_are_accepted_and_logged_once_without_values(
    api: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert (await api.post(CHAT, {**CHAT_BODY, "frobnicate": "secret", "bad\nname": 1}))[0] == 200
    (record,) = [one for one in caplog.records if "frobnicate" in one.getMessage()]
    assert "secret" not in record.getMessage()
    assert not [one for one in caplog.records if "bad" in one.getMessage() and one.name != "quartet.access"]


async def test_the_names_that_are_logged_are_bounded(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for start in (0, 400):
        names = {f"name_{number}": 1 for number in range(start, start + 400)}
        assert (await api.post(COMPLETIONS, {**TEXT_BODY, **names}))[0] == 200
    assert sum("unknown field" in one.getMessage() for one in caplog.records) == 256


async def test_bool_and_number_are_told_apart(api: Any) -> None:
    assert (await api.post(CHAT, {**CHAT_BODY, "routed_experts_start_len": False}))[0] == 400
    assert (await api.post(CHAT, {**CHAT_BODY, "return_hidden_states": 0}))[0] == 400
    assert (await api.post(CHAT, {**CHAT_BODY, "return_hidden_states": "last"}))[0] == 400
