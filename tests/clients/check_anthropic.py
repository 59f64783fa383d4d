"""Anthropic's own client: messages, streams, tools, its tool runner, token counts, errors."""

import anthropic
from anthropic import Anthropic, beta_tool
from checks import (
    CAPITAL_ANSWER,
    CAPITAL_QUESTION,
    KEY,
    MODEL,
    WEATHER_ANSWER,
    WEATHER_ARGUMENTS,
    WEATHER_PARAMETERS,
    WEATHER_QUESTION,
    check,
    equal,
    get_weather,
    main,
    one_is_refused,
    raises,
)

TOOL = {"name": "get_weather", "description": "Look up the weather", "input_schema": WEATHER_PARAMETERS}


def client(url: str, key: str = KEY) -> Anthropic:
    return Anthropic(base_url=url, api_key=key, max_retries=0, timeout=60)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@check("messages: answer, usage, stop reasons, system as text and blocks")
def messages(url: str) -> None:
    create = client(url).messages.create
    answer = create(model=MODEL, max_tokens=200, messages=user(CAPITAL_QUESTION), system="Be short.")
    equal((answer.content[0].text, answer.stop_reason, answer.role), (CAPITAL_ANSWER, "end_turn", "assistant"))
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 10, answer.usage
    assert answer._request_id
    blocks = [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]
    content = [{"type": "text", "text": CAPITAL_QUESTION}]
    again = create(model=MODEL, max_tokens=200, messages=[{"role": "user", "content": content}], system=blocks)
    equal(again.content[0].text, CAPITAL_ANSWER)
    equal(create(model=MODEL, max_tokens=3, messages=user(CAPITAL_QUESTION)).stop_reason, "max_tokens")
    stopped = create(model=MODEL, max_tokens=200, messages=user(CAPITAL_QUESTION), stop_sequences=["Paris"])
    equal((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", "Paris"))


@check("messages, streamed: pieces joined, final message")
def stream(url: str) -> None:
    with client(url).messages.stream(model=MODEL, max_tokens=200, messages=user(CAPITAL_QUESTION)) as events:
        equal("".join(events.text_stream), CAPITAL_ANSWER)
        final = events.get_final_message()
    equal((final.content[0].text, final.stop_reason), (CAPITAL_ANSWER, "end_turn"))
    assert final.usage.input_tokens > 0 and final.usage.output_tokens > 10, final.usage


@check("messages with tools: call, result, answer")
def tools(url: str) -> None:
    create, conversation = client(url).messages.create, user(WEATHER_QUESTION)
    answer = create(model=MODEL, max_tokens=200, messages=conversation, tools=[TOOL])
    equal(answer.stop_reason, "tool_use")
    (call,) = (block for block in answer.content if block.type == "tool_use")
    equal((call.name, call.input), ("get_weather", WEATHER_ARGUMENTS))
    result = {"type": "tool_result", "tool_use_id": call.id, "content": get_weather(**call.input)}
    conversation += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    final = create(model=MODEL, max_tokens=200, messages=conversation, tools=[TOOL])
    equal(final.content[0].text, WEATHER_ANSWER)


@check("messages with tools, streamed: input from its pieces; two calls")
def tools_stream(url: str) -> None:
    question = user("What is the weather in Oslo and Rome?")
    with client(url).messages.stream(model=MODEL, max_tokens=200, messages=question, tools=[TOOL]) as events:
        pieces = [event.partial_json for event in events if event.type == "input_json"]
        final = events.get_final_message()
    equal([block.input["city"] for block in final.content if block.type == "tool_use"], ["Oslo", "Rome"])
    equal(final.stop_reason, "tool_use")
    assert "Oslo" in "".join(pieces)


@check("its tool runner, which calls the function itself")
def runner(url: str) -> None:
    called = []

    @beta_tool(name="get_weather")
    def weather(city: str, unit: str) -> str:
        """Look up the weather.

        Args:
            city: name of the city
            unit: celsius or fahrenheit
        """
        called.append(city)
        return get_weather(city, unit)

    final = client(url).beta.messages.tool_runner(
        model=MODEL, max_tokens=200, messages=user(WEATHER_QUESTION), tools=[weather]
    )
    equal(final.until_done().content[0].text, WEATHER_ANSWER)
    equal(called, ["Zürich"])


@check("a tool that it must call, by SmolLM2", on="model")
def forced(url: str) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    tool = {"name": "pick", "description": "Pick a colour", "input_schema": schema}
    for choice in ({"type": "any"}, {"type": "tool", "name": "pick"}):
        answer = client(url).messages.create(
            model=MODEL,
            max_tokens=80,
            messages=user("Pick a colour."),
            tools=[tool],
            tool_choice=choice,
            extra_body={"temperature": 0},
        )
        calls = [block.input for block in answer.content if block.type == "tool_use"]
        assert calls and all(call["colour"] in ("red", "green") for call in calls), calls


@check("messages.count_tokens")
def count(url: str) -> None:
    api = client(url).messages
    counted = api.count_tokens(model=MODEL, messages=user(CAPITAL_QUESTION), system="Be short.", tools=[TOOL])
    answer = api.create(model=MODEL, max_tokens=4, messages=user(CAPITAL_QUESTION), system="Be short.", tools=[TOOL])
    equal(counted.input_tokens, answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0))


@check("models")
def models(url: str) -> None:
    equal([model.id for model in client(url).models.list()], [MODEL])


@check("errors: 400, 401, 404, 429 as its own classes")
def errors(url: str) -> None:
    create = client(url).messages.create
    with raises(anthropic.BadRequestError, 400):
        create(model=MODEL, max_tokens=4, messages=user("x"), extra_body={"temperature": 9})
    with raises(anthropic.AuthenticationError, 401):
        client(url, "wrong").messages.create(model=MODEL, max_tokens=4, messages=user("x"))
    with raises(anthropic.NotFoundError, 404):
        create(model="unknown", max_tokens=4, messages=user("x"))

    question = user("An answer without meaning")
    one_is_refused(lambda: create(model=MODEL, messages=question, max_tokens=120), anthropic.RateLimitError)


if __name__ == "__main__":
    main("anthropic", "anthropic")
