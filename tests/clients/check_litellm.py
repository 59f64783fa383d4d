"""litellm: completion, streams and tools by its OpenAI route, and its Anthropic messages."""

import json

import litellm
from checks import (
    CAPITAL_ANSWER,
    CAPITAL_QUESTION,
    KEY,
    MODEL,
    PERSON,
    PERSON_QUESTION,
    WEATHER_ANSWER,
    WEATHER_ARGUMENTS,
    WEATHER_PARAMETERS,
    WEATHER_QUESTION,
    check,
    equal,
    get_weather,
    main,
    raises,
)
from pydantic import BaseModel

litellm.telemetry = False
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Look up the weather", "parameters": WEATHER_PARAMETERS},
}


class Person(BaseModel):
    name: str
    age: int
    skills: list[str]


def ask(url: str, text: str | list, key: str = KEY, model: str = MODEL, **more: object) -> object:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    return litellm.completion(
        model=f"hosted_vllm/{model}", api_base=f"{url}/v1", api_key=key, messages=messages, num_retries=0, **more
    )


@check("completion: answer, usage")
def completion(url: str) -> None:
    answer = ask(url, CAPITAL_QUESTION)
    equal((answer.choices[0].message.content, answer.choices[0].finish_reason), (CAPITAL_ANSWER, "stop"))
    assert answer.usage.completion_tokens > 10
    same = litellm.completion(
        model=f"openai/{MODEL}",
        api_base=f"{url}/v1",
        api_key=KEY,
        messages=[{"role": "user", "content": CAPITAL_QUESTION}],
    )
    equal(same.choices[0].message.content, CAPITAL_ANSWER)


@check("completion, streamed: pieces joined, usage")
def stream(url: str) -> None:
    chunks = [*ask(url, CAPITAL_QUESTION, stream=True, stream_options={"include_usage": True})]
    equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), CAPITAL_ANSWER)
    whole = litellm.stream_chunk_builder(chunks)
    equal(whole.choices[0].message.content, CAPITAL_ANSWER)
    assert whole.usage.completion_tokens > 10


@check("completion with tools: call, result, answer; streamed, too")
def tools(url: str) -> None:
    conversation = [{"role": "user", "content": WEATHER_QUESTION}]
    answer = ask(url, conversation, tools=[TOOL])
    (call,) = answer.choices[0].message.tool_calls
    equal(json.loads(call.function.arguments), WEATHER_ARGUMENTS)
    conversation.append(answer.choices[0].message.model_dump())
    result = get_weather(**json.loads(call.function.arguments))
    conversation.append({"role": "tool", "tool_call_id": call.id, "content": result})
    equal(ask(url, conversation, tools=[TOOL]).choices[0].message.content, WEATHER_ANSWER)
    whole = litellm.stream_chunk_builder([*ask(url, WEATHER_QUESTION, tools=[TOOL], stream=True)])
    (streamed,) = whole.choices[0].message.tool_calls
    equal(json.loads(streamed.function.arguments), WEATHER_ARGUMENTS)
    equal(whole.choices[0].finish_reason, "tool_calls")


@check("completion with response_format: an object")
def structured(url: str) -> None:
    answer = ask(url, PERSON_QUESTION, response_format=Person)
    equal(Person.model_validate_json(answer.choices[0].message.content), Person(**PERSON))


@check("text_completion", on="model")
def text_completion(url: str) -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", api_base=f"{url}/v1", api_key=KEY, prompt="One, two,", max_tokens=5
    )
    assert answer.choices[0].text and answer.usage.completion_tokens == 5


async def messages(url: str, model: str, base: str, **more: object) -> object:
    return await litellm.anthropic_messages(model=model, api_base=base, api_key=KEY, max_tokens=200, **more)


@check("anthropic_messages by /v1/messages: answer, tools, stream")
async def anthropic(url: str) -> None:
    model, question = f"anthropic/{MODEL}", [{"role": "user", "content": WEATHER_QUESTION}]
    answer = await messages(url, model, url, messages=[{"role": "user", "content": CAPITAL_QUESTION}])
    equal(answer["content"][0]["text"], CAPITAL_ANSWER)
    tool = {"name": "get_weather", "description": "Look up", "input_schema": WEATHER_PARAMETERS}
    answer = await messages(url, model, url, messages=question, tools=[tool])
    (call,) = (block for block in answer["content"] if block["type"] == "tool_use")
    equal((call["input"], answer["stop_reason"]), (WEATHER_ARGUMENTS, "tool_use"))
    events = await messages(url, model, url, messages=[{"role": "user", "content": CAPITAL_QUESTION}], stream=True)
    text = "".join([part.decode() if isinstance(part, bytes) else str(part) async for part in events])
    assert "message_stop" in text and "event: content_block_delta" in text, text[-400:]


@check("anthropic_messages by /v1/chat/completions: answer, tools")
async def anthropic_by_chat(url: str) -> None:
    model, base = f"hosted_vllm/{MODEL}", f"{url}/v1"
    answer = await messages(url, model, base, messages=[{"role": "user", "content": CAPITAL_QUESTION}])
    equal(answer["content"][0]["text"], CAPITAL_ANSWER)
    tool = {"name": "get_weather", "description": "Look up", "input_schema": WEATHER_PARAMETERS}
    question = [{"role": "user", "content": WEATHER_QUESTION}]
    answer = await messages(url, model, base, messages=question, tools=[tool])
    (call,) = (block for block in answer["content"] if block["type"] == "tool_use")
    equal(call["input"], WEATHER_ARGUMENTS)


@check("responses")
def responses(url: str) -> None:
    answer = litellm.responses(model=f"openai/{MODEL}", api_base=f"{url}/v1", api_key=KEY, input=CAPITAL_QUESTION)
    equal(answer.output[-1].content[0].text, CAPITAL_ANSWER)


@check("errors: 400, 401, 404, 503 as its own classes")
def errors(url: str) -> None:
    with raises(litellm.BadRequestError, 400):
        ask(url, "x", temperature=9)
    with raises(litellm.AuthenticationError, 401):
        ask(url, "x", key="wrong")
    with raises(litellm.NotFoundError, 404):
        ask(url, "x", model="unknown")
    with raises(litellm.ServiceUnavailableError, 503):
        ask(url, "x", n=16, max_tokens=4)


if __name__ == "__main__":
    main("litellm", "litellm", "openai")
