"""Several questions about one document: it is computed once, and then read from the prefix cache.

The server finds shared beginnings by itself. All that a program has to do is put what is shared first: instructions,
then the document, then the question. `cached_tokens` shows that it worked.

    quartet serve smollm2            # in another terminal
    python examples/shared_prefix.py [FILE]
"""

import os
import pathlib
import sys
import time

from openai import OpenAI

server = os.environ.get("QUARTET_URL", "http://127.0.0.1:30000")
client = OpenAI(base_url=f"{server}/v1", api_key=os.environ.get("QUARTET_API_KEY", "none"))
model = client.models.list().data[0].id

document = "\n".join(f"Section {number}: the lamp in room {number} is {number * 7} years old." for number in range(40))
if len(sys.argv) > 1:
    document = pathlib.Path(sys.argv[1]).read_text()

for question in ("How old is the lamp in room 3?", "Which lamp is the oldest?", "How many rooms are there?"):
    started = time.monotonic()
    answer = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": f"Answer by this document alone.\n\n{document}"},
            {"role": "user", "content": question},
        ],
        max_tokens=32,
    )
    usage, seconds = answer.usage, time.monotonic() - started
    cached = usage.prompt_tokens_details.cached_tokens
    print(f"{question} {answer.choices[0].message.content}")
    print(f"  {cached} of {usage.prompt_tokens} prompt tokens were cached; {seconds:.2f} s")
