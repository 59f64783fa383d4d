"""Prefill and the form of a message's content: what of a conversation reaches the prompt."""

import json
from typing import Any

import pytest

from quartet.wire.errors import ModelError, RequestError
from quartet.wire.frames import ChatPrompt
from tokenizer_proc.chat_template import ChatTemplate, SpecialNames

PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TRIMS = PLAIN.replace("m.content", "m.content | trim")
WALKS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
)
WALKS_STRICTLY = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{% if part.type != 'text' %}"
    "{{ raise_exception('only text') }}{% endif %}[{{ part.text }}]{% endfor %}<|end|>{% endfor %}"
)
TAKES_BOTH = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}<|end|>{% endfor %}"
)
USER_WALKS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'user' %}{% for part in m.content %}{{ part.text }}"
    "{% endfor %}{% else %}{{ m.content + '!' }}{% endif %}<|end|>{% endfor %}"
)
STARTS_WITH_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + WALKS
DUMPS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | tojson }}<|end|>{% endfor %}"


def rendered(source: str, messages: list[Any], **more: Any) -> str:
    """Return the prompt that the template makes of `messages`."""
    template = ChatTemplate(source, SpecialNames({}))
    return template.render(ChatPrompt(json.dumps(messages).encode(), **more), lambda value: value)


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize("prefill", ["<", "|", "m", "end", "_", "Q", "1", "assistant", "<|end|>", "1 2 ", "\n", "é\n"])
@pytest.mark.parametrize("form", [str, parts])
@pytest.mark.parametrize("source", [PLAIN, TAKES_BOTH.replace("[", "").replace("]", ""), WALKS])
def test_a_prefilled_answer_ends_the_prompt(source: str, form: Any, prefill: str) -> None:
    messages = [message("user", "Q"), message("assistant", form(prefill))]
    assert rendered(source, messages, continue_final_message=True) == f"<|user|>Q<|end|><|assistant|>{prefill}"


@pytest.mark.parametrize("prefill", ["<", "|", "m", "end", "_", "end \n"])
def test_a_template_that_trims_trims_the_prefilled_answer(prefill: str) -> None:
    messages = [message("user", "Q"), message("assistant", prefill)]
    assert rendered(TRIMS, messages, continue_final_message=True) == f"<|user|>Q<|end|><|assistant|>{prefill.strip()}"


def test_a_prefilled_answer_that_the_template_drops_is_refused() -> None:
    messages = [message("user", "Q"), message("assistant", "Q")]
    for source in ("{{ messages[0].content }}", "{{ messages[0].content }}{{ messages[1].content[:1] }}"):
        with pytest.raises(RequestError, match="continue_final_message") as caught:
            rendered(source, messages, continue_final_message=True)
        assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        (PLAIN, "a b", "<|user|>a b<|end|>"),
        (PLAIN, parts("a", "b"), "<|user|>a\nb<|end|>"),
        (WALKS, "a b", "<|user|>a b<|end|>"),
        (WALKS, parts("a", "b"), "<|user|>ab<|end|>"),
        (WALKS_STRICTLY, "a b", "<|user|>[a b]<|end|>"),
        (WALKS_STRICTLY, parts("a", "b"), "<|user|>[a][b]<|end|>"),
        (TAKES_BOTH, "a b", "<|user|>a b<|end|>"),
        (TAKES_BOTH, parts("a", "b"), "<|user|>[a][b]<|end|>"),
        (USER_WALKS, "a b", "<|user|>a b<|end|>"),
        (USER_WALKS, parts("a", "b"), "<|user|>ab<|end|>"),
        (DUMPS, parts("a"), '<|user|>"a"<|end|>'),
        (WALKS, None, "<|user|><|end|>"),
        (PLAIN, None, "<|user|><|end|>"),
    ],
)
def test_content_has_the_form_that_the_template_wants(source: str, content: Any, expected: str) -> None:
    assert rendered(source, [message("user", content)], add_generation_prompt=False) == expected


def test_each_role_has_a_form_of_its_own() -> None:
    for form in (str, parts):
        messages = [message(role, form("a")) for role in ("system", "user", "assistant")]
        assert rendered(USER_WALKS, messages) == "<|system|>a!<|end|><|user|>a<|end|><|assistant|>a!<|end|>"


def test_a_part_that_the_template_would_lose_is_kept() -> None:
    first_only = "{{ messages[0].content if messages[0].content is string else messages[0].content[0].text }}"
    assert rendered(first_only, [message("user", parts("a", "b"))]) == "a\nb"


def test_the_form_is_found_though_the_template_wants_a_system_message() -> None:
    messages = [message("system", "s"), message("user", "u")]
    assert rendered(STARTS_WITH_SYSTEM, messages) == "<|system|>s<|end|><|user|>u<|end|>"


def test_results_of_tools_have_the_form_that_the_template_wants() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        message("user", "u"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
    ]
    assert rendered(WALKS, messages).endswith("<|tool|>r<|end|>")


def test_absent_fields_are_not_none_and_reasoning_has_every_name() -> None:
    shown = "{{ messages[0].name is defined }} {{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    assert rendered(shown, [{**message("user", "a"), "name": None, "reasoning": "why"}]) == "False why why"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% include 'x' %}", "include"),
        ("{% import 'x' as x %}", "import"),
        ("{% extends 'x' %}", "extends"),
        ("{{ messages.append(1) }}", "append"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
    ],
)
def test_a_template_that_can_serve_no_conversation_is_refused_at_start(source: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        ChatTemplate(source, SpecialNames({}))
    assert "--chat-template" in str(caught.value)


def test_a_template_that_needs_more_than_a_plain_conversation_is_accepted() -> None:
    assert rendered("{{ extra.x }}", [message("user", "a")], template_args=b'{"extra": {"x": "yes"}}') == "yes"


def test_what_is_set_inside_of_generation_stays_inside() -> None:
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert rendered(source, [message("user", "a")]) == "21"
