"""OpenAI's own client: chat, streams, tools, parsed objects, Responses, errors."""

import json

import openai
from checks import (
    CAPITAL_ANSWER,
    CAPITAL_QUESTION,
    KEY,
    MODEL,
    PERSON,
    PERSON_QUESTION,
    PERSON_SCHEMA,
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
from openai import OpenAI
from pydantic import BaseModel

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Look up the weather", "parameters": WEATHER_PARAMETERS},
}
RESPONSES_TOOL = {"type": "function", "strict": True, **TOOL["function"]}


class Person(BaseModel):
    name: str
    age: int
    skills: list[str]


def client(url: str, key: str = KEY) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@check("models")
def models(url: str) -> None:
    (model,) = client(url).models.list().data
    equal(client(url).models.retrieve(model.id).id, MODEL)


@check("chat: answer, usage, request id")
def chat(url: str) -> None:
    answer = client(url).chat.completions.create(model=MODEL, messages=user(CAPITAL_QUESTION))
    equal((answer.choices[0].message.content, answer.choices[0].finish_reason), (CAPITAL_ANSWER, "stop"))
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 10, usage
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
    assert answer._request_id


@check("chat, streamed: pieces joined, usage")
def chat_stream(url: str) -> None:
    chunks = [
        *client(url).chat.completions.create(
            model=MODEL, messages=user(CAPITAL_QUESTION), stream=True, stream_options={"include_usage": True}
        )
    ]
    equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), CAPITAL_ANSWER)
    assert chunks[-1].usage.completion_tokens > 10 and not chunks[-1].choices
    equal([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")


@check("chat with tools: call, result, answer")
def tools(url: str) -> None:
    messages = user(WEATHER_QUESTION)
    api = client(url).chat.completions
    answer = api.create(model=MODEL, messages=messages, tools=[TOOL])
    equal(answer.choices[0].finish_reason, "tool_calls")
    (call,) = answer.choices[0].message.tool_calls
    equal(json.loads(call.function.arguments), WEATHER_ARGUMENTS)
    messages.append(answer.choices[0].message)
    result = get_weather(**json.loads(call.function.arguments))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    equal(api.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0].message.content, WEATHER_ANSWER)


@check("chat with tools, streamed by its helper; two calls")
def tools_stream(url: str) -> None:
    arguments = {}
    with client(url).chat.completions.stream(
        model=MODEL, messages=user("What is the weather in Oslo and Rome?"), tools=[TOOL]
    ) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                arguments[event.index] = arguments.get(event.index, "") + event.arguments_delta
        final = stream.get_final_completion().choices[0]
    equal(final.finish_reason, "tool_calls")
    equal([call.function.arguments for call in final.message.tool_calls], [arguments[0], arguments[1]])
    equal([json.loads(text)["city"] for text in arguments.values()], ["Oslo", "Rome"])
    assert len({call.id for call in final.message.tool_calls}) == 2


@check("chat.completions.parse: an object")
def parse(url: str) -> None:
    api = client(url).chat.completions
    parsed = api.parse(model=MODEL, messages=user(PERSON_QUESTION), response_format=Person)
    equal(parsed.choices[0].message.parsed, Person(**PERSON))


@check("chat.completions.parse: a named tool")
def named_tool(url: str) -> None:
    tool = openai.pydantic_function_tool(Person)
    choice = {"type": "function", "function": {"name": "Person"}}
    answer = client(url).chat.completions.parse(
        model=MODEL, messages=user(f"{PERSON_QUESTION} By Person."), tools=[tool], tool_choice=choice
    )
    equal(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Person(**PERSON))


@check("an object and a required tool, by SmolLM2", on="model")
def forced(url: str) -> None:
    api = client(url).chat.completions
    schema = {
        "type": "object",
        "properties": {
            "colour": {"type": "string", "enum": ["red", "green"]},
            "count": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    found = api.create(
        model=MODEL,
        messages=user("Pick a colour and a count."),
        response_format={"type": "json_schema", "json_schema": {"name": "pick", "schema": schema, "strict": True}},
        max_tokens=60,
        temperature=0,
    )
    picked = json.loads(found.choices[0].message.content)
    assert picked["colour"] in ("red", "green") and 1 <= picked["count"] <= 9, picked
    parameters = {**schema, "properties": {**schema["properties"]}}
    tool = {"type": "function", "function": {"name": "pick", "parameters": parameters, "strict": True}}
    found = api.create(
        model=MODEL,
        messages=user("Pick a colour and a count."),
        tools=[tool],
        tool_choice="required",
        max_tokens=120,
        temperature=0,
    )
    picked = json.loads(found.choices[0].message.tool_calls[0].function.arguments)
    assert picked["colour"] in ("red", "green") and 1 <= picked["count"] <= 9, picked


@check("completions: n, logprobs, stop, seed", on="model")
def completions(url: str) -> None:
    answer = client(url).completions.create(
        model=MODEL, prompt="One, two, three,", max_tokens=8, n=2, logprobs=2, seed=1, temperature=0.7
    )
    equal(len(answer.choices), 2)
    for choice in answer.choices:
        equal("".join(choice.logprobs.tokens), choice.text)
    stopped = client(url).completions.create(model=MODEL, prompt="1 2 3 4 5", max_tokens=20, stop=["8"], temperature=0)
    assert "8" not in stopped.choices[0].text


@check("responses: text, streamed events, usage")
def responses(url: str) -> None:
    api = client(url).responses
    answer = api.create(model=MODEL, input=CAPITAL_QUESTION, instructions="Be short.")
    equal((answer.output_text, answer.status), (CAPITAL_ANSWER, "completed"))
    assert answer.usage.output_tokens > 10 and answer.usage.input_tokens > 0
    with api.stream(model=MODEL, input=CAPITAL_QUESTION) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        equal("".join(pieces), CAPITAL_ANSWER)
        equal(stream.get_final_response().output_text, CAPITAL_ANSWER)


@check("responses with tools: call, result, answer")
def responses_tools(url: str) -> None:
    api = client(url).responses
    conversation = user(WEATHER_QUESTION)
    answer = api.create(model=MODEL, input=conversation, tools=[RESPONSES_TOOL])
    (call,) = (item for item in answer.output if item.type == "function_call")
    equal(json.loads(call.arguments), WEATHER_ARGUMENTS)
    conversation += [item.model_dump(exclude_none=True) for item in answer.output]
    conversation.append({"type": "function_call_output", "call_id": call.call_id, "output": "14 degrees"})
    equal(api.create(model=MODEL, input=conversation, tools=[RESPONSES_TOOL]).output_text, WEATHER_ANSWER)
    with api.stream(model=MODEL, input=WEATHER_QUESTION, tools=[RESPONSES_TOOL]) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
    equal(json.loads("".join(pieces)), WEATHER_ARGUMENTS)


@check("responses.parse: an object")
def responses_parse(url: str) -> None:
    answer = client(url).responses.parse(model=MODEL, input=PERSON_QUESTION, text_format=Person)
    equal(answer.output_parsed, Person(**PERSON))
    shape = {"type": "json_schema", "name": "person", "schema": PERSON_SCHEMA, "strict": True}
    plain = client(url).responses.create(model=MODEL, input=PERSON_QUESTION, text={"format": shape})
    equal(json.loads(plain.output_text), PERSON)


@check("errors: 400, 401, 404, 429, 503 as its own classes")
def errors(url: str) -> None:
    ask = client(url).chat.completions.create
    with raises(openai.BadRequestError, 400):
        ask(model=MODEL, messages=user("x"), temperature=9)
    with raises(openai.AuthenticationError, 401):
        client(url, "wrong").chat.completions.create(model=MODEL, messages=user("x"))
    with raises(openai.NotFoundError, 404):
        ask(model="unknown", messages=user("x"))
    with raises(openai.InternalServerError, 503):
        ask(model=MODEL, messages=user("x"), n=16, max_tokens=4)

    question = user("An answer without meaning")
    one_is_refused(lambda: ask(model=MODEL, messages=question, max_tokens=120), openai.RateLimitError)


if __name__ == "__main__":
    main("openai", "openai")
