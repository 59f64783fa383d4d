"""The engine in this process, without a server: texts and a chat.

python examples/offline.py
"""

from quartet import LLM, SamplingParams

llm = LLM("smollm2")

# All prompts are computed together; answers come in the order of the prompts.
prompts = ["The capital of France is", "Water boils at"]
for answer in llm.generate(prompts, SamplingParams(max_new_tokens=16, temperature=0.0)):
    print(f"{answer.text!r}: {answer.finish_reason}")

(answer,) = llm.chat([[{"role": "user", "content": "What is the capital of France?"}]])
print(answer.text)
