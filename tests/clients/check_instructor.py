"""instructor: objects by every mode that an OpenAI server has, whole and partial, and by Responses and Anthropic."""

from typing import Literal

import instructor
from checks import KEY, MODEL, PERSON, PERSON_QUESTION, check, equal, main, raises
from openai import AuthenticationError, OpenAI
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


TOOL_MODES = ("TOOLS", "TOOLS_STRICT", "RESPONSES_TOOLS")
MODES = ("JSON", "JSON_SCHEMA", "MD_JSON", *TOOL_MODES)


def client(url: str, mode: str, key: str = KEY) -> instructor.Instructor:
    openai = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    return instructor.from_openai(openai, mode=getattr(instructor.Mode, mode))


def question(mode: str, tool: str = "Person") -> list[dict[str, str]]:
    return [{"role": "user", "content": PERSON_QUESTION + (f" By {tool}." if mode in TOOL_MODES else "")}]


def whole(url: str, mode: str) -> None:
    create = client(url, mode).chat.completions.create_with_completion
    found, answer = create(model=MODEL, messages=question(mode), response_model=Person, max_retries=0)
    equal(found.model_dump(), PERSON)
    assert answer.usage is not None


def by_model(url: str, mode: str) -> None:
    found = client(url, mode).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Pick a colour and a count."}],
        response_model=Pick,
        max_retries=0,
        max_tokens=120,
        temperature=0,
    )
    assert found.colour in ("red", "green") and 1 <= found.count <= 9, found


for name in MODES:
    check(f"{name}: an object")(lambda url, name=name: whole(url, name))
for name in ("JSON_SCHEMA", "TOOLS", "TOOLS_STRICT"):
    check(f"{name}: an object", on="model")(lambda url, name=name: by_model(url, name))


@check("create_partial: a streamed object in JSON, JSON_SCHEMA and TOOLS")
def partial(url: str) -> None:
    for mode in ("JSON", "JSON_SCHEMA", "TOOLS"):
        stream = client(url, mode).chat.completions.create_partial(
            model=MODEL, messages=question(mode, "PartialPerson"), response_model=Person, max_retries=0
        )
        states = [*stream]
        equal(states[-1].model_dump(), PERSON)
        assert len(states) > 3, "the object came at once"


@check("errors: 401 as the client's class")
def errors(url: str) -> None:
    with raises((AuthenticationError, instructor.core.InstructorRetryException)):
        client(url, "TOOLS", "wrong").chat.completions.create(
            model=MODEL, messages=question("TOOLS"), response_model=Person, max_retries=0
        )


if __name__ == "__main__":
    main("instructor", "instructor", "openai")
