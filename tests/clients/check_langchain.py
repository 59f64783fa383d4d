"""langchain-openai: chat, structured output by its three methods, bound tools, an agent."""

import json
from typing import Literal

import openai
from checks import (
    CAPITAL_ANSWER,
    CAPITAL_QUESTION,
    KEY,
    MODEL,
    PERSON,
    PERSON_QUESTION,
    WEATHER_ANSWER,
    WEATHER_ARGUMENTS,
    WEATHER_QUESTION,
    check,
    equal,
    main,
    raises,
)
from checks import get_weather as answer_weather
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    skills: list[str]


class Pick(BaseModel):
    """A choice."""

    colour: Literal["red", "green"]
    count: int = Field(ge=1, le=9)


@tool
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """Look up the weather in a city."""
    return answer_weather(city, unit)


def chat(url: str, key: str = KEY, **more: object) -> ChatOpenAI:
    return ChatOpenAI(
        **{"model": MODEL, "base_url": f"{url}/v1", "api_key": key, "max_retries": 0, "stream_usage": True, **more}
    )


@check("invoke and stream: answer, pieces joined, usage")
def invoke(url: str) -> None:
    answer = chat(url).invoke(CAPITAL_QUESTION)
    equal(answer.content, CAPITAL_ANSWER)
    assert answer.usage_metadata["output_tokens"] > 10
    chunks = [*chat(url).stream(CAPITAL_QUESTION)]
    equal("".join(chunk.text for chunk in chunks), CAPITAL_ANSWER)
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.usage_metadata["output_tokens"] > 10


def structured(url: str, method: str) -> None:
    question = f"{PERSON_QUESTION} By Person." if method == "function_calling" else f"{PERSON_QUESTION} As JSON."
    found = chat(url).with_structured_output(Person, method=method).invoke(question)
    equal(found, Person(**PERSON))


def structured_by_model(url: str, method: str) -> None:
    model = chat(url, max_tokens=120, temperature=0)
    found = model.with_structured_output(Pick, method=method).invoke("Pick a colour and a count.")
    assert isinstance(found, Pick)


for name in ("json_schema", "function_calling", "json_mode"):
    check(f"with_structured_output: {name}")(lambda url, name=name: structured(url, name))
    if name != "json_mode":  # No schema bounds what it writes.
        check(f"with_structured_output: {name}", on="model")(lambda url, name=name: structured_by_model(url, name))


@check("bind_tools: call, result, answer; streamed, too")
def bind_tools(url: str) -> None:
    model = chat(url).bind_tools([get_weather])
    conversation = [HumanMessage(WEATHER_QUESTION)]
    answer = model.invoke(conversation)
    (call,) = answer.tool_calls
    equal((call["name"], call["args"]), ("get_weather", WEATHER_ARGUMENTS))
    conversation += [answer, ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])]
    equal(model.invoke(conversation).content, WEATHER_ANSWER)
    pieces = [piece for chunk in model.stream(WEATHER_QUESTION) for piece in chunk.tool_call_chunks]
    equal(json.loads("".join(piece["args"] or "" for piece in pieces)), WEATHER_ARGUMENTS)


@check("a tool that it must call", on="model")
def must_call(url: str) -> None:
    for choice in ("any", "Pick"):
        model = chat(url, max_tokens=120, temperature=0).bind_tools([Pick], tool_choice=choice, strict=True)
        # It may call more than once.
        calls = model.invoke("Pick a colour and a count.").tool_calls
        assert calls and all(Pick(**call["args"]) for call in calls)


@check("create_agent: a tool agent, and one with an object as its answer")
def agent(url: str) -> None:
    made = create_agent(chat(url), [get_weather], system_prompt="Use the tool.")
    equal(made.invoke({"messages": [("user", WEATHER_QUESTION)]})["messages"][-1].content, WEATHER_ANSWER)
    typed = create_agent(chat(url), [], response_format=Person)
    state = typed.invoke({"messages": [("user", f"{PERSON_QUESTION} By Person.")]})
    equal(state["structured_response"], Person(**PERSON))


@check("the Responses API: answer, tools, object")
def responses(url: str) -> None:
    model = chat(url, use_responses_api=True)
    equal(model.invoke(CAPITAL_QUESTION).text, CAPITAL_ANSWER)
    equal("".join(chunk.text for chunk in model.stream(CAPITAL_QUESTION)), CAPITAL_ANSWER)
    equal(model.with_structured_output(Person).invoke(PERSON_QUESTION), Person(**PERSON))
    made = create_agent(model, [get_weather])
    equal(made.invoke({"messages": [("user", WEATHER_QUESTION)]})["messages"][-1].text, WEATHER_ANSWER)


@check("text completions and log-probabilities", on="model")
def completions(url: str) -> None:
    text = OpenAI(model=MODEL, base_url=f"{url}/v1", api_key=KEY, max_tokens=5, temperature=0).invoke("One, two,")
    assert text
    answer = chat(url, max_tokens=5, logprobs=True, top_logprobs=2).invoke("Hello")
    equal(len(answer.response_metadata["logprobs"]["content"]), 5)


@check("errors: 400, 401, 404, 503 as the client's classes")
def errors(url: str) -> None:
    with raises(openai.BadRequestError, 400):
        chat(url, temperature=9).invoke("x")
    with raises(openai.AuthenticationError, 401):
        chat(url, "wrong").invoke("x")
    with raises(openai.NotFoundError, 404):
        chat(url, model="unknown").invoke("x")
    with raises(openai.InternalServerError, 503):
        chat(url, n=16, max_tokens=4).invoke("x")


if __name__ == "__main__":
    main("langchain-openai", "langchain-openai", "langchain", "langgraph", "openai")
