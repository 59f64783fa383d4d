"""The replies of the simulated worker for the checks, and both servers' flags; `python -m tests.clients.script` prints
the replies for --simulated-script."""

import json
from typing import Any

from tests.clients.checks import (
    CAPITAL_ANSWER,
    CAPITAL_QUESTION,
    PERSON,
    PERSON_QUESTION,
    WEATHER_ANSWER,
    WEATHER_ARGUMENTS,
    WEATHER_AT_ONCE,
    WEATHER_QUESTION,
)

FINAL_TOOLS = ("Person", "PartialPerson", "final_result")
"""Names of the tools by which clients ask for an object, as the prompt of the check says: `by NAME`."""


def call(name: str, arguments: Any) -> str:
    """Return a call in the format of the Hermes and Qwen models."""
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{text}\n</tool_call>"


def replies() -> list[dict[str, str]]:
    """Return the entries of the script."""
    oslo, rome = ({"city": city, "unit": "celsius"} for city in ("Oslo", "Rome"))
    pairs = [
        (CAPITAL_QUESTION, CAPITAL_ANSWER),
        (WEATHER_QUESTION, "Let me look.\n" + call("get_weather", WEATHER_ARGUMENTS)),
        (WEATHER_AT_ONCE, call("get_weather", WEATHER_ARGUMENTS)),
        ("14 degrees", WEATHER_ANSWER),
        ("the weather in Oslo and Rome?", call("get_weather", oslo) + "\n" + call("get_weather", rome)),
        ("21 degrees", "Oslo has 3 degrees, Rome has 21 degrees."),
        (PERSON_QUESTION, json.dumps(PERSON)),
        *((f"{PERSON_QUESTION} By {name}.", call(name, PERSON)) for name in FINAL_TOOLS),
    ]
    return [{"contains": contains, "reply": reply} for contains, reply in pairs]


if __name__ == "__main__":
    print(json.dumps(replies(), ensure_ascii=False, indent=1))
