"""Grammars of every kind as llguidance compiles them, and what is refused with which words."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_rig import VOCAB_SIZE, MakeCore

from quartet.wire.frames import ChatPrompt, Encode, Encoded, EncodeFailed, Grammar, SamplingParams, TextPrompt
from tests.support.grammar_walk import Walker
from tokenizer_proc.grammar_bounds import GrammarError
from tokenizer_proc.grammars import GrammarCompiler, load_compiler
from tokenizer_proc.thinking import Thinking
from tokenizer_proc.verdicts import Verdicts

START, END = 263, 264


@pytest.fixture(scope="module")
def compiler(byte_level_folder: Any) -> GrammarCompiler:
    return load_compiler(byte_level_folder, VOCAB_SIZE, (END,))


@pytest.fixture(scope="module")
def walker(byte_level_folder: Any) -> Walker:
    return Walker(byte_level_folder, VOCAB_SIZE, (END,))


def schema(value: Any, **more: Any) -> Grammar:
    """Return the grammar of a JSON schema."""
    return Grammar("json_schema", json.dumps(value), **more)


@pytest.mark.parametrize(
    ("grammar", "accepted", "refused"),
    [
        (Grammar("json_object", ""), ["{}", '{"a": [1, {}]}', '{\n  "a": 1\n}'], ["[]", "1", "", '{"a":\n\n1}']),
        (Grammar("json_object", "", whitespace=""), ['{"a":1}'], ['{"a": 1}']),
        (Grammar("json_object", "", whitespace="\t"), ['{"a":\t1}'], ['{"a": 1}']),
        (schema({}), ["1", '"x"', "null", "[1]", "{}"], ["x"]),
        (schema({"type": "string", "format": "password"}), ['"x"'], ["1"]),
        (schema({"properties": {"format": {"const": {"format": 1}}}}), ['{"format":{"format":1}}'], ['{"format":1}']),
        (schema({"type": "array", "uniqueItems": False}), ["[1,1]"], []),
        (schema({"properties": {"a": {}}}), ['{"a":1}', "{}"], ['{"b":1}']),
        (schema({"properties": {"a": {}}, "additionalProperties": True}), ['{"b":1}'], []),
        (schema({"properties": {"a": {}}, "required": ["b"]}), ['{"a":1,"b":1}'], ['{"a":1}']),
        (schema({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}), ['{"a":1,"b":1}'], []),
        (schema({"$defs": {"a": {"properties": {"a": {}}}}, "$ref": "#/$defs/a", "required": ["b"]}), ['{"b":1}'], []),
        (Grammar("regex", r"[a-c]+/\d"), ["ab/1"], ["ab", "ab/1x"]),
        (Grammar("regex", "(a+)+b"), ["aab"], ["aa"]),
        (Grammar("regex", "a{0,1000000000}"), ["", "aaa"], ["b"]),
        (Grammar("choice", '["a","ab","é\\n\\"/"]'), ["a", "ab", 'é\n"/'], ["", "b"]),
        (Grammar("lark", 'start: "a" b\nb: /[0-9]/+'), ["a12"], ["a"]),
        (Grammar("gbnf", 'root ::= "a" [0-9]+ # digits\n'), ["a12"], ["a"]),
        (Grammar("tools", 'start: marker_0 "x" marker_1', ("<|start|>", "[T]")), ["<|start|>x[T]"], ["x"]),
        (Grammar("tools", 'start: "[" %json {"type": "object"} "]"', alternative=schema({"type": "object"})),
         ["[{}]", '{"a": 1}'], ["[{}", '{"a": 1}]', ""]),
        (Grammar("regex", "ab", alternative=Grammar("choice", '["abc", "x"]')), ["ab", "abc", "x"], ["a", "abx"]),
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_grammar(
    compiler: GrammarCompiler, walker: Walker, grammar: Grammar, accepted: list[str], refused: list[str]
) -> None:
    source = compiler.compile(grammar, Thinking.CLOSED)
    assert [text for text in accepted if not walker.accepts(source, text)] == []
    assert [text for text in refused if walker.accepts(source, text)] == []


def test_text_that_only_looks_like_a_special_token_is_none(compiler: GrammarCompiler, walker: Walker) -> None:
    source = compiler.compile(Grammar("tools", "start: marker_0", ("<|start|>",)), Thinking.CLOSED)
    assert walker.accepts_ids(source, [START]) and not walker.accepts_ids(source, list(b"<|start|>"))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (schema({"type": "objekt"}), "objekt"),
        (schema({"type": "string", "pattern": "("}), "unclosed group"),
        (schema({"type": "string", "pattern": "^(?=a)"}), "look-around"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"$ref": "http://127.0.0.1/x"}), "only followed within"),
        (schema({"properties": {"a": {"$ref": "file:///etc/passwd"}}}), "only followed within"),
        (schema({"$ref": "#/$defs/none"}), "none"),
        (schema({"$ref": "#"}), "no output matches"),
        (schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "no output"),
        (schema({"x-guidance": {"lenient": True}}), "x-guidance"),
        (schema(False), "not"),
        (schema({"type": "integer", "minimum": 3, "maximum": 2}), "minimum"),
        (schema({"oneOf": [{"type": "number"}, {"type": "integer"}]}), "oneOf"),
        (schema({"enum": [str(n) for n in range(6000)]}), "values in enum"),
        (schema({"properties": {f"p{n}": {} for n in range(1001)}}), "1000 properties"),
        (Grammar("json_schema", '{"type":"array","items":' * 33 + "{}" + "}" * 33), "32 schemas"),
        (Grammar("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000), "nested too deeply"),
        (Grammar("json_schema", "{"), "not valid JSON"),
        (Grammar("json_schema", "[]"), "is an object"),
        (schema({"type": "string", "pattern": "a" * 4097}), "4096 bytes"),
        (schema({"title": "a" * 65536}), "65536 bytes"),
        (Grammar("regex", "a" * 4097), "4096 bytes"),
        (Grammar("regex", "a(b"), "unclosed group"),
        (Grammar("regex", r"(a)\1"), "backreferences"),
        (Grammar("regex", r"[^\s\S]"), "no output matches"),
        (Grammar("choice", json.dumps(["a"] * 1001)), "1000 choices"),
        (Grammar("lark", 'begin: "a"'), "start"),
        (Grammar("lark", "start: <|nothing|>"), "unknown special token"),
        (Grammar("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000), "deeply nested"),
        (Grammar("lark", "start: @output"), "output"),
        (Grammar("lark", 'start: a "b"\na[lazy]: /.*/ ""'), "cannot compile"),
        (Grammar("gbnf", 'root ::= "a'), "."),
        (Grammar("gbnf", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000), "nested too deeply"),
        (Grammar("tools", "start: marker_1", ("a",)), "marker_1"),
        (Grammar("tools", 'start: "a"', ("a",) * 65), "64 markers"),
        (Grammar("tools", 'start: "a"', alternative=Grammar("regex", "a" * 5000)), "4096 bytes"),
        (Grammar("other", ""), "no kind"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(compiler: GrammarCompiler, grammar: Grammar, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as caught:
        compiler.compile(grammar, Thinking.CLOSED)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def job(grammar: Grammar | None) -> Encode:
    """Return a job with a grammar."""
    return Encode(5, "api-0", TextPrompt("hello"), SamplingParams(grammar=grammar))


def test_the_grammar_of_a_job_comes_back_compiled(core: Any) -> None:
    found = core.answer(job(Grammar("regex", "a+", param="guided_regex")))
    assert isinstance(found, Encoded) and found.params.grammar is not None
    assert (found.params.grammar.kind, found.params.grammar.param) == ("llguidance", "guided_regex")
    assert json.loads(found.params.grammar.source)["grammars"][0]["lark_grammar"]
    plain = core.answer(job(None))
    assert isinstance(plain, Encoded) and plain.params.grammar is None


def test_an_error_names_the_field(core: Any) -> None:
    found = core.answer(job(Grammar("regex", "(", param="structured_outputs.regex")))
    assert isinstance(found, EncodeFailed)
    assert (found.status, found.code, found.param) == (400, "invalid_grammar", "structured_outputs.regex")
    assert found.message.startswith("structured_outputs.regex: ")


def test_a_tokenizer_that_cannot_be_read_refuses_grammars_alone(make_core: MakeCore) -> None:
    small = make_core(vocab_size=264, chat_template=None)
    found = small.answer(job(Grammar("regex", "a")))
    assert isinstance(found, EncodeFailed) and (found.status, found.code) == (400, "unsupported_parameter")
    assert isinstance(small.answer(job(None)), Encoded)


def test_thinking_is_found_at_the_end_of_the_rendered_prompt(make_core: MakeCore) -> None:
    template = "{{ messages[0]['content'] }}{% if thinks %}<think>\n{% endif %}"
    core = make_core(chat_template=template)
    grammar = Grammar("choice", '["x"]', after="</think>", opening="<think>")

    def parts(content: str, **arguments: Any) -> int:
        prompt = ChatPrompt(
            json.dumps([{"role": "user", "content": content}]).encode(), template_args=json.dumps(arguments).encode()
        )
        found = core.answer(Encode(5, "api-0", prompt, SamplingParams(grammar=grammar)))
        assert isinstance(found, Encoded) and found.params.grammar is not None
        return len(json.loads(found.params.grammar.source)["grammars"])

    assert (parts("hi", thinks=True), parts("<think>\n\n</think>\n\n"), parts("hi")) == (2, 1, 2)


class Counting:
    """Counts what is compiled."""

    def __init__(self) -> None:
        self.compiled: list[Grammar] = []

    def compile(self, grammar: Grammar, thinking: Thinking) -> str:
        self.compiled.append(grammar)
        if grammar.source == "bad":
            raise GrammarError("no")
        return grammar.source


def test_a_grammar_that_comes_again_costs_nothing() -> None:
    compiler = Counting()
    verdicts = Verdicts(compiler, max_bytes=10_000)
    good, bad = Grammar("lark", "x" * 100), Grammar("lark", "bad")
    for _ in range(3):
        assert verdicts.find(good, Thinking.CLOSED).source == good.source
        assert verdicts.find(msgspec.structs.replace(bad, param="regex"), Thinking.CLOSED).refusal == "no"
    assert len(compiler.compiled) == 2
    verdicts.find(good, Thinking.OPEN)
    verdicts.find(msgspec.structs.replace(good, whitespace=""), Thinking.CLOSED)
    assert len(compiler.compiled) == 4
    for number in range(50):
        verdicts.find(Grammar("lark", str(number) * 100), Thinking.CLOSED)
    assert verdicts.known(Grammar("lark", "49" * 100), Thinking.CLOSED)
    assert verdicts.known(good, Thinking.CLOSED) is None


_WORDS = [
    *(
        "type",
        "properties",
        "items",
        "enum",
        "const",
        "$ref",
        "$defs",
        "allOf",
        "anyOf",
        "oneOf",
        "required",
        "pattern",
    ),
    *("format", "minimum", "maxItems", "additionalProperties", "patternProperties", "minLength", "multipleOf", "not"),
    *("object", "string", "integer", "array", "#", "#/$defs/a", "a", "^a", "date", "("),
]
_VALUES = st.recursive(
    st.sampled_from(_WORDS) | st.integers(-3, 9) | st.booleans() | st.none() | st.floats(-9, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.dictionaries(st.sampled_from(_WORDS), _VALUES, max_size=5))
def test_any_json_is_a_schema_or_a_refusal(compiler: GrammarCompiler, value: dict[str, Any]) -> None:
    with contextlib.suppress(GrammarError):
        assert compiler.compile(schema(value), Thinking.CLOSED)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["regex", "lark", "gbnf", "tools"]),
    source=st.text(st.sampled_from('start:root=|"()[]{}+*?/\\~&<>@%json#\n 0ax_,-.é'), max_size=40),
)
def test_any_text_is_a_grammar_or_a_refusal(compiler: GrammarCompiler, kind: str, source: str) -> None:
    for text in (source, f"start: {source}\n", f"root ::= {source}\n"):
        with contextlib.suppress(GrammarError):
            assert compiler.compile(Grammar(kind, text), Thinking.CLOSED)
