"""llama-index: OpenAILike chat and streams, a function-calling agent, structured prediction."""

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
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    skills: list[str]


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """Look up the weather in a city."""
    return answer_weather(city, unit)


def llm(url: str, key: str = KEY, **more: object) -> OpenAILike:
    settings = {
        "model": MODEL,
        "api_base": f"{url}/v1",
        "api_key": key,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "context_window": 8192,
        "max_retries": 0,
        "max_tokens": 200,
    }
    return OpenAILike(**{**settings, **more})


@check("chat and stream_chat: answer, pieces joined, usage")
def chat(url: str) -> None:
    messages = [ChatMessage(role="user", content=CAPITAL_QUESTION)]
    answer = llm(url).chat(messages)
    equal(answer.message.content, CAPITAL_ANSWER)
    assert answer.raw.usage.completion_tokens > 10
    pieces = [*llm(url).stream_chat(messages)]
    equal("".join(piece.delta or "" for piece in pieces), CAPITAL_ANSWER)
    equal(pieces[-1].message.content, CAPITAL_ANSWER)


@check("chat_with_tools: call with its arguments; streamed, too")
def tools(url: str) -> None:
    tool = FunctionTool.from_defaults(get_weather)
    model = llm(url)
    answer = model.chat_with_tools([tool], user_msg=WEATHER_QUESTION)
    (call,) = model.get_tool_calls_from_response(answer)
    equal((call.tool_name, call.tool_kwargs), ("get_weather", WEATHER_ARGUMENTS))
    *_, last = model.stream_chat_with_tools([tool], user_msg=WEATHER_QUESTION)
    (call,) = model.get_tool_calls_from_response(last)
    equal(call.tool_kwargs, WEATHER_ARGUMENTS)


@check("FunctionAgent: call, result, answer")
async def agent(url: str) -> None:
    made = FunctionAgent(tools=[get_weather], llm=llm(url), system_prompt="Use the tool.")
    equal(str(await made.run(user_msg=WEATHER_QUESTION)), WEATHER_ANSWER)


@check("structured_predict: an object by a tool, and by a schema")
def structured(url: str) -> None:
    question = PromptTemplate(f"{PERSON_QUESTION} By Person.")
    equal(llm(url).structured_predict(Person, question), Person(**PERSON))
    by_schema = llm(url, should_use_structured_outputs=True)
    equal(by_schema.structured_predict(Person, PromptTemplate(PERSON_QUESTION)), Person(**PERSON))


@check("complete and stream_complete", on="model")
def complete(url: str) -> None:
    model = llm(url, is_chat_model=False, max_tokens=6, temperature=0.0)
    whole = model.complete("One, two, three,").text
    assert whole
    equal("".join(piece.delta or "" for piece in model.stream_complete("One, two, three,")), whole)


@check("errors: 400, 401, 404, 503 as the client's classes")
def errors(url: str) -> None:
    with raises(openai.BadRequestError, 400):
        llm(url, additional_kwargs={"top_p": 7}).complete("x")
    with raises(openai.AuthenticationError, 401):
        llm(url, "wrong").complete("x")
    with raises(openai.NotFoundError, 404):
        llm(url, model="unknown").complete("x")
    with raises(openai.InternalServerError, 503):
        llm(url, additional_kwargs={"n": 16}).complete("x")


if __name__ == "__main__":
    main("llama-index", "llama-index-llms-openai-like", "llama-index-core", "openai")
