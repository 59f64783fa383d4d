"""Structured output: an answer that is a Python object, one of a few words, or text of a pattern.

Only tokens that fit are sampled, so even a small model keeps to the form (what it says may still be wrong).

    quartet serve smollm2            # in another terminal
    python examples/structured_output.py
"""

import os

from openai import OpenAI
from pydantic import BaseModel, Field

server = os.environ.get("QUARTET_URL", "http://127.0.0.1:30000")
client = OpenAI(base_url=f"{server}/v1", api_key=os.environ.get("QUARTET_API_KEY", "none"))
model = client.models.list().data[0].id


class City(BaseModel):
    """The form of the answer; openai turns it into a JSON schema."""

    name: str = Field(max_length=40)
    country: str = Field(max_length=40)
    inhabitants: int = Field(ge=0, le=50_000_000)


messages = [{"role": "user", "content": "Describe Paris as JSON."}]
answer = client.chat.completions.parse(model=model, messages=messages, response_format=City, max_tokens=200)
city = answer.choices[0].message.parsed
print(f"{city.name} in {city.country} has {city.inhabitants:,} inhabitants")

# `choice` and `regex` are extensions: OpenAI's client sends them from extra_body.
messages = [{"role": "user", "content": "Is 'I love this!' positive, negative or neutral?"}]
extra = {"choice": ["positive", "negative", "neutral"]}
answer = client.chat.completions.create(model=model, messages=messages, extra_body=extra)
print(answer.choices[0].message.content)

messages = [{"role": "user", "content": "When did the first human walk on the moon?"}]
extra = {"regex": r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"}
answer = client.chat.completions.create(model=model, messages=messages, extra_body=extra)
print(answer.choices[0].message.content)
