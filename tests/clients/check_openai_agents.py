"""OpenAI's agents SDK: an agent with a tool and a typed output, on the chat and on the Responses model."""

from typing import Literal

from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents import OpenAIChatCompletionsModel as ChatModel
from agents import OpenAIResponsesModel as ResponsesModel
from checks import (
    CAPITAL_ANSWER,
    CAPITAL_QUESTION,
    KEY,
    MODEL,
    PERSON,
    PERSON_QUESTION,
    WEATHER_ANSWER,
    WEATHER_QUESTION,
    check,
    equal,
    main,
    raises,
)
from checks import get_weather as answer_weather
from openai import AsyncOpenAI, AuthenticationError
from pydantic import BaseModel

set_tracing_disabled(True)


class Person(BaseModel):
    name: str
    age: int
    skills: list[str]


@function_tool
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """Look up the weather.

    Args:
        city: name of the city
        unit: of the temperature
    """
    return answer_weather(city, unit)


def model(kind: type, url: str, key: str = KEY) -> object:
    return kind(model=MODEL, openai_client=AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))


async def tool_agent(kind: type, url: str) -> None:
    agent = Agent("weather", instructions="Use the tool.", model=model(kind, url), tools=[get_weather])
    result = await Runner.run(agent, WEATHER_QUESTION)
    equal(result.final_output, WEATHER_ANSWER)
    assert result.context_wrapper.usage.output_tokens > 10 and result.context_wrapper.usage.requests == 2


async def typed_agent(kind: type, url: str) -> None:
    agent = Agent("person", model=model(kind, url), output_type=Person)
    equal((await Runner.run(agent, PERSON_QUESTION)).final_output, Person(**PERSON))


async def streamed_agent(kind: type, url: str) -> None:
    agent = Agent("weather", model=model(kind, url), tools=[get_weather])
    result = Runner.run_streamed(agent, CAPITAL_QUESTION)
    pieces = []
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            pieces.append(event.data.delta)
    equal("".join(pieces), CAPITAL_ANSWER)
    equal(result.final_output, CAPITAL_ANSWER)
    result = Runner.run_streamed(agent, WEATHER_QUESTION)
    async for _ in result.stream_events():
        pass
    equal(result.final_output, WEATHER_ANSWER)


for kind, name in ((ChatModel, "chat"), (ResponsesModel, "responses")):
    for function, what in (
        (tool_agent, "an agent with a tool"),
        (typed_agent, "an agent with a typed output"),
        (streamed_agent, "a streamed agent with a tool"),
    ):
        check(f"{name} model: {what}")(lambda url, function=function, kind=kind: function(kind, url))


@check("errors: 401 as the client's class")
async def errors(url: str) -> None:
    for kind in (ChatModel, ResponsesModel):
        with raises(AuthenticationError, 401):
            await Runner.run(Agent("x", model=model(kind, url, "wrong")), "x")


if __name__ == "__main__":
    main("openai-agents", "openai-agents", "openai")
