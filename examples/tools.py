"""Tools: the model asks for a function's result, the program gives it, and the model answers with it.

Needs a model whose chat template shows tools, such as Qwen3 (SmolLM2's does not):

    quartet serve Qwen/Qwen3-8B      # in another terminal
    python examples/tools.py
"""

import json
import os

from openai import OpenAI

server = os.environ.get("QUARTET_URL", "http://127.0.0.1:30000")
client = OpenAI(base_url=f"{server}/v1", api_key=os.environ.get("QUARTET_API_KEY", "none"))
model = client.models.list().data[0].id


def weather(city: str) -> str:
    """Return what a real program would look up."""
    return f"14 degrees and rain in {city}"


# What the model is told about the function. `strict` makes a grammar hold the arguments to the schema.
parameters = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
function = {"name": "weather", "description": "The weather in a city", "parameters": parameters, "strict": True}
tools = [{"type": "function", "function": function}]

messages = [{"role": "user", "content": "What is the weather in Paris?"}]
answer = client.chat.completions.create(model=model, messages=messages, tools=tools).choices[0].message
while answer.tool_calls:
    # The call and its result are turns of the conversation, like any other.
    messages.append(answer.model_dump(exclude_none=True))
    for call in answer.tool_calls:
        arguments = json.loads(call.function.arguments)
        print(f"the model calls {call.function.name}({arguments})")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": weather(**arguments)})
    answer = client.chat.completions.create(model=model, messages=messages, tools=tools).choices[0].message
print(answer.content)
