"""Chat templates: what they may use, and what hostile ones cannot do."""

import json
import time
from datetime import datetime
from typing import Any

import pytest

from quartet.wire.errors import ModelError, RequestError
from quartet.wire.frames import ChatPrompt
from tokenizer_proc.chat_template import ChatTemplate, SpecialNames
from tokenizer_proc.renderer import LocalRenderer

NAMES = SpecialNames({"bos_token": "<s>", "eos_token": "</s>"})


def rendered(source: str, content: str = "hi", **more: Any) -> str:
    """Return what the template makes of one user message."""
    messages = json.dumps([{"role": "user", "content": content}]).encode()
    template = ChatTemplate(source, NAMES, LocalRenderer(lambda: datetime(2026, 11, 21)))
    return template.render(ChatPrompt(messages, **more), lambda value: value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>hi</s>"),
        ("{{ messages[0].content }}", "hi"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ [1, 2] | tojson(indent=1) }}", "[\n 1,\n 2\n]"),
        ("{{ strftime_now('%Y-%m-%d') }}", "2026-11-21"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ 'x' }}{% endgeneration %}", "x"),
        ("{%- set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ 'a' ~ 1 ~ messages[0].role }}", "a1user"),
        ("{{ '%s-%d' % ('a', 3) }}{{ '%s' | format('b') }}{{ '{}'.format('c') }}", "a-3bc"),
        ("{{ '-' * 5 }}{{ 'ab'.upper() }}{{ ' x ' | trim }}", "-----ABx"),
        ("{{ messages[::-1][0].content.split('i')[0] }}", "h"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
    ],
)
def test_what_templates_of_models_use(source: str, expected: str) -> None:
    assert rendered(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{{ (messages|attr('app'~'end'))(1) }}",
        "{{ messages.append(1) }}",
        "{{ self._TemplateReference__context.environment }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ range(10**9) | list }}",
        "{{ 'a' * 10**10 }}",
        "{{ 'a' * 9999999999 }}",
        "{{ [0] * 9999999999 }}",
        "{{ 9**99999999 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=3) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'a'.center(9999999999) }}{{ 'a' | center(9999999999) }}",
        "{{ 'a' | indent(9999999999) }}",
        "{{ [1] | batch(9999999999, 'x') | list }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 9999999999) }}",
        "{{ '{:>{w}}'.format(1, w=9999999999) }}",
        "{{ '{:>{w}}'.format_map({'w': 9999999999}) }}",
        "{{ '%(a)9999999999d' % {'a': 1} }}",
        "{{ 'a'.ljust(width=9999999999) }}{{ 'a'.zfill(9999999999) }}{{ '\t'.expandtabs(9999999999) }}",
        "{{ [1] | tojson(indent=9999999999) }}",
        "{{ 'a b' | wordwrap(9999999999, wrapstring='x' * 16000000) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ ('a,' * 2000000).split(',') | map('upper') | unique | map('lower') | list | length }}",
        "{{ lipsum(n=10**6) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ undefined_thing.attribute }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_hostile_or_broken_templates_fail_their_request_only(source: str) -> None:
    # The time of a machine that is busy with other work does not count.
    started = time.process_time()
    try:
        found = rendered(source)
    except (RequestError, ModelError) as error:
        assert "Traceback" not in str(error) and "/" not in str(error).replace("/v1/", "")
    else:
        assert found.strip() == "", f"a template got away with {found[:80]!r}"
    assert time.process_time() - started < 2.0


def test_the_deadline_counts_processor_time() -> None:
    """A machine that is busy with other work delays a template; it does not make it hostile."""
    source = "{% for m in messages %}{{ strftime_now('') }}{% endfor %}done"
    waits_s = 0.0

    def now() -> datetime:
        time.sleep(waits_s)
        return datetime(2026, 11, 21)

    template = ChatTemplate(source, NAMES, LocalRenderer(now))
    waits_s = 0.25
    messages = json.dumps([{"role": "user", "content": "hi"}] * 5).encode()
    assert template.render(ChatPrompt(messages), lambda value: value) == "done"


def test_a_long_conversation_has_time() -> None:
    source = (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('role') }}{% endif %}"
        "{% set x = m.content | trim %}{{ '<|' + m.role + '|>' + x }}{% endfor %}"
    )
    messages = json.dumps([{"role": "user", "content": "hi there"}] * 64_000).encode()
    assert len(ChatTemplate(source, NAMES).render(ChatPrompt(messages), lambda value: value)) == 64_000 * 16


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        ("{{ messages[0].content.strip() }}", "{1:2345678} %9999999d", "{1:2345678} %9999999d"),
        ("{{ messages[0].content.split('x', 1000000)[0] }}", "hi", "hi"),
        ("{{ '%d of %s' % (1000000, messages[0].content) }}", "hi", "1000000 of hi"),
        ("{{ '%s' | format(1000000) }}{{ '{:,}'.format(1000000) }}", "hi", "10000001,000,000"),
        (
            "{{ none | default(1000000, true) }}{{ [1000000] | sum }}{{ 'x' | int(1000000) }}",
            "hi",
            "100000010000001000000",
        ),
        ("{{ messages[0].content | truncate(1000000) }}", "hi", "hi"),
        ("{{ '%s' % messages[0].content }}{{ '{}'.format(messages[0].content) }}", "%9999999d", "%9999999d" * 2),
    ],
)
def test_large_numbers_that_make_nothing_large_are_no_bound(source: str, content: str, expected: str) -> None:
    assert rendered(source, content) == expected


def test_what_users_write_is_never_template_code() -> None:
    assert rendered("{{ messages[0].content }}", "{{ 7 * 7 }}{% raw %}") == "{{ 7 * 7 }}{% raw %}"


def test_a_refusal_by_the_template_reaches_the_client() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        rendered("{{ raise_exception('roles must alternate') }}")
    assert (caught.value.status, caught.value.code) == (400, "chat_template_error")


def test_a_template_that_does_not_compile_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="--chat-template"):
        ChatTemplate("{% for %}", NAMES)


def test_rendering_leaves_no_trace_function_behind() -> None:
    import sys

    before = sys.gettrace()
    rendered("{{ 1 }}")
    with pytest.raises(RequestError):
        rendered("{{ raise_exception('x') }}")
    assert sys.gettrace() is before


TOOLS = b'[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]'


@pytest.mark.parametrize(
    "source",
    [
        "{{ tools | tojson }}",
        "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ tools }}{% endif %}look",
        "{% if messages | length == 1 %}{{ tools }}{% endif %}{{ raise_exception('no') if messages | length > 1 }}",
    ],
)
def test_tools_for_a_template_that_shows_them(source: str) -> None:
    assert "look" in rendered(source, tools=TOOLS)


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}", "{% if tools %}tools{% endif %}", "{{ raise_exception('no') if tools }}"]
)
def test_tools_that_the_template_does_not_show_are_refused(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        rendered(source, tools=TOOLS)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")
    assert "--chat-template" in caught.value.message
    rendered(source, tools=b"[]")
