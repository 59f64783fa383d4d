"""pydantic-ai: a tool agent and every output mode, on its chat, Responses and Anthropic models."""

from typing import Any, Literal

from anthropic import AsyncAnthropic
from checks import (
    CAPITAL_ANSWER,
    CAPITAL_QUESTION,
    KEY,
    MODEL,
    PERSON,
    PERSON_QUESTION,
    WEATHER_ANSWER,
    WEATHER_AT_ONCE,
    WEATHER_QUESTION,
    check,
    equal,
    main,
    raises,
)
from checks import get_weather as answer_weather
from openai import AsyncOpenAI
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    skills: list[str]


class Pick(BaseModel):
    """A choice."""

    colour: Literal["red", "green"]
    count: int = Field(ge=1, le=9)


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """Look up the weather in a city."""
    return answer_weather(city, unit)


def model(kind: str, url: str, key: str = KEY, name: str = MODEL) -> Any:
    if kind == "anthropic":
        client = AsyncAnthropic(base_url=url, api_key=key, max_retries=0)
        return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=client))
    openai = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    chosen = OpenAIChatModel if kind == "chat" else OpenAIResponsesModel
    return chosen(name, provider=OpenAIProvider(openai_client=openai))


async def tool_agent(kind: str, url: str) -> None:
    agent = Agent(model(kind, url), tools=[get_weather], instructions="Use the tool.", retries=0)
    result = await agent.run(WEATHER_QUESTION)
    equal(result.output, WEATHER_ANSWER)
    usage = result.usage() if callable(result.usage) else result.usage
    assert usage.requests == 2 and usage.output_tokens > 10, usage


async def streamed(kind: str, url: str) -> None:
    async with Agent(model(kind, url)).run_stream(CAPITAL_QUESTION) as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    equal("".join(pieces), CAPITAL_ANSWER)
    assert len(pieces) > 3
    agent = Agent(model(kind, url), tools=[get_weather], retries=0)
    async with agent.run_stream(WEATHER_AT_ONCE) as result:
        equal(await result.get_output(), WEATHER_ANSWER)


async def output(kind: str, url: str, mode: type) -> None:
    agent = Agent(model(kind, url), output_type=mode(Person), retries=0)
    question = f"{PERSON_QUESTION} By final_result." if mode is ToolOutput else PERSON_QUESTION
    equal((await agent.run(question)).output, Person(**PERSON))


for kind in ("chat", "responses", "anthropic"):
    check(f"{kind} model: a tool agent")(lambda url, kind=kind: tool_agent(kind, url))
    check(f"{kind} model: streamed text and a streamed tool agent")(lambda url, kind=kind: streamed(kind, url))
    for mode in (ToolOutput, NativeOutput, PromptedOutput):
        if (kind, mode) != ("anthropic", NativeOutput):
            check(f"{kind} model: {mode.__name__}")(
                lambda url, kind=kind, mode=mode: output(kind, url, mode),
            )


@check("chat model: ToolOutput and NativeOutput", on="model")
async def by_model(url: str) -> None:
    for mode in (ToolOutput, NativeOutput):
        agent = Agent(
            model("chat", url), output_type=mode(Pick), retries=0, model_settings={"max_tokens": 120, "temperature": 0}
        )
        assert isinstance((await agent.run("Pick a colour and a count.")).output, Pick)


@check("errors: 400, 401, 404 as its own class")
async def errors(url: str) -> None:
    for kind in ("chat", "responses", "anthropic"):
        with raises(ModelHTTPError, 400):
            await Agent(model(kind, url)).run("x", model_settings={"temperature": 9})
        with raises(ModelHTTPError, 401):
            await Agent(model(kind, url, "wrong")).run("x")
        with raises(ModelHTTPError, 404):
            await Agent(model(kind, url, name="unknown")).run("x")


if __name__ == "__main__":
    main("pydantic-ai", "pydantic-ai-slim", "openai", "anthropic")
