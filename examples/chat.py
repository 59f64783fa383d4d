"""A streamed chat with OpenAI's client: the answer as it arrives, and what it took.

quartet serve smollm2            # in another terminal
python examples/chat.py "Why is the sky blue?"
"""

import os
import sys

from openai import OpenAI

# Any OpenAI client works with another base URL. A server without --api-key takes any key.
server = os.environ.get("QUARTET_URL", "http://127.0.0.1:30000")
client = OpenAI(base_url=f"{server}/v1", api_key=os.environ.get("QUARTET_API_KEY", "none"))
model = client.models.list().data[0].id

question = " ".join(sys.argv[1:]) or "Why is the sky blue?"
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    stream=True,
    # Without this a stream has no token counts.
    stream_options={"include_usage": True},
)
for event in stream:
    for choice in event.choices:
        print(choice.delta.content or "", end="", flush=True)
    if event.usage:
        # `timings` is Quartet's addition: where the time of this request went, in milliseconds.
        timings = (event.model_extra or {})["timings"]
        print(f"\n\n{event.usage.completion_tokens} tokens in {timings['total_ms']:.0f} ms,", end=" ")
        print(f"the first after {timings['ttft_ms']:.0f} ms")
