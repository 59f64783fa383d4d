"""The render child: the kernel ends what no deadline in Python can end, and the next conversation is rendered."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quartet.wire.errors import ModelError
from tokenizer_proc.chat_template import ChatTemplate, SpecialNames
from tokenizer_proc.render_process import RenderProcess
from tokenizer_proc.renderer import RenderError

MESSAGES = {"messages": [{"role": "user", "content": "{{ 7 * 7 }}"}]}
DOUBLE = "{% set a = namespace(x=(1,), y=(1,)) %}{% for i in range(60) %}{% set a.x = (a.x, a.x) %}"
DOUBLE += "{% set a.y = (a.y, a.y) %}{% endfor %}"
BOMBS = [
    "{{ ([[0] * 1000] * 100000) | sum(start=[]) | length }}",
    DOUBLE + "{{ a.x == a.y }}",
    DOUBLE + "{{ a.x in [a.y] }}",
    DOUBLE + "{{ [a.x, a.y] | sort | length }}",
    DOUBLE + "{{ {a.x: 1} | length }}",
    DOUBLE + "{{ a.x | string | length }}",
    DOUBLE + "{{ a.x | tojson | length }}",
    "{{ (['x' * 1000000] * 100000) | join | length }}",
    "{{ ('a' * 16000000).replace('a', 'b' * 1000) | length }}",
    "{{ ('a' * 16000000) | replace('a', 'b' * 1000) | length }}",
    "{% set b = range(100000) | list * 160 %}{{ (b + b[:1]) | sort | sum }}{{ b | unique | list | sum }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 'a' * 10**10 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ '\\ud800' }}",
]


@pytest.fixture(scope="module")
def renderer() -> Iterator[RenderProcess]:
    made = RenderProcess()
    yield made
    made.close()


def child(renderer: RenderProcess) -> int:
    return renderer._child.pid


@pytest.mark.parametrize("source", BOMBS)
def test_a_bomb_is_its_requests_error_and_the_next_is_rendered(renderer: RenderProcess, source: str) -> None:
    renderer.load("{% if bomb %}" + source + "{% endif %}{{ messages[0].content }}")
    begin_s = time.monotonic()
    try:
        found = renderer.render({**MESSAGES, "bomb": True}, deadline_s=0.1)
    except RenderError as error:
        assert error.kind in ("too_much", "unsafe", "failed") and "/" not in error.reason
    else:
        assert len(found) < 20, found[:80]
    took_s = time.monotonic() - begin_s
    # Within 2 s on an idle machine, with the deadline of 1 s; much of it is the start of the next child.
    assert took_s < 10.0
    assert renderer.render(MESSAGES) == "{{ 7 * 7 }}"


def test_what_the_kernel_ends_is_reported_as_such(renderer: RenderProcess) -> None:
    renderer.load(DOUBLE + "{{ a.x == a.y }}")
    before = child(renderer)
    with pytest.raises(RenderError, match="too much processor time") as caught:
        renderer.render(MESSAGES, deadline_s=0.1)
    assert caught.value.kind == "too_much" and child(renderer) != before


def test_a_child_that_is_killed_is_replaced_and_the_conversation_rendered(renderer: RenderProcess) -> None:
    renderer.load("{{ messages[0].content }}")
    os.kill(child(renderer), signal.SIGKILL)
    assert renderer.render(MESSAGES) == "{{ 7 * 7 }}"


def test_a_template_that_bombs_at_load_is_a_model_error(renderer: RenderProcess) -> None:
    with pytest.raises(ModelError, match="--chat-template"):
        ChatTemplate(DOUBLE + "{{ a.x == a.y }}", SpecialNames({}), renderer)


def test_the_child_has_a_bound_on_its_memory_and_dies_with_its_parent(renderer: RenderProcess) -> None:
    renderer.load("x")
    limits = Path(f"/proc/{child(renderer)}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert line.split()[3] != "unlimited"
    last = child(renderer)
    other = RenderProcess()
    other.load("x")
    pid = child(other)
    other.close()
    assert not Path(f"/proc/{pid}").exists() and Path(f"/proc/{last}").exists()
