"""SmolLM2 served as a newcomer would: chat over OpenAI's client, probes, metrics, processes, the terminal chat."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.client import Answer, stream_completion
from tests.support.server import Server

pytestmark = pytest.mark.e2e
QUESTION = [{"role": "user", "content": "Hi!"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--max-total-tokens", "16384") as running:
        yield running


def metric(server: Server, name: str) -> float:
    """Return the sum of a metric over its labels."""
    status, text = server.get("/metrics")
    assert status == 200
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
    assert samples, f"{name} is not exported"
    return sum(sample.value for sample in samples)


async def test_a_streamed_chat_makes_sense(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="smollm2",
            messages=QUESTION,  # type: ignore[arg-type]
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, pieces, usage = "", 0, None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                pieces += 1
    # The oracle is sure of its first words by 0.97 and more, so bf16 says them too.
    assert text.startswith("Hello! How can I") and pieces >= 5
    assert usage is not None and usage.prompt_tokens == 32 and usage.completion_tokens >= 5


async def test_the_first_answer_is_right(server: Server) -> None:
    """By the defaults alone: float32 on the CPU, and sampling that suits the model."""
    body: Any = {"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        asked = [client.chat.completions.create(**body, max_tokens=24, seed=seed) for seed in range(4)]
        answers = [answer.choices[0].message.content or "" for answer in await asyncio.gather(*asked)]
    assert all("Paris" in answer for answer in answers), answers
    assert server.get("/model_info")[1]["preferred_sampling_params"] == {"temperature": 0.2, "top_p": 0.5}


async def test_the_same_question_again_comes_from_the_cache(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for _ in range(2):
            answer = await client.chat.completions.create(
                model="smollm2",
                messages=QUESTION,  # type: ignore[arg-type]
                temperature=0,
                max_tokens=4,
            )
        usage = answer.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 16


async def test_every_api_gives_the_same_answer(server: Server) -> None:
    question: Any = QUESTION
    asked: Any = {"model": "smollm2", "messages": question, "max_tokens": 8}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        chat = await client.chat.completions.create(**asked, temperature=0)
        response = await client.responses.create(model="smollm2", input=question, max_output_tokens=8, temperature=0)
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as claude:
        message = await claude.messages.create(**asked, extra_body={"temperature": 0})
        async with claude.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
            streamed = await stream.get_final_message()
        counted = await claude.messages.count_tokens(model="smollm2", messages=question)
    text = chat.choices[0].message.content
    assert text and response.output_text == text
    for one in (message, streamed):
        (block,) = one.content
        assert block.type == "text" and block.text == text
        assert (one.stop_reason, one.usage.output_tokens) == ("max_tokens", 8)
        assert one.usage.input_tokens + (one.usage.cache_read_input_tokens or 0) == counted.input_tokens == 32


async def test_a_client_that_leaves_frees_its_request_within_two_seconds(server: Server) -> None:
    body = {"model": "smollm2", "prompt": "Once", "max_tokens": 2000, "ignore_eos": True}

    async def leave(answer: Answer) -> None:
        if answer.events == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await stream_completion(server.url, body, leave)
    left_s = time.monotonic()
    wanted = ("quartet_num_running_reqs", "quartet_api_live_requests")
    while any(metric(server, name) for name in wanted):
        # Metrics travel once a second, so one more second may pass before the freed state shows.
        assert time.monotonic() - left_s < 3.5
        await asyncio.sleep(0.1)


def test_probes_processes_and_models(server: Server) -> None:
    assert server.get("/health")[0] == 200 and server.get("/ready")[0] == 200
    table = server.topology()
    assert {row["role"] for row in table.values()} == {"api", "tokenizer", "scheduler", "worker", "detok"}
    assert all(row["state"] == "ready" and row["pid"] > 0 and row["epoch"] == 1 for row in table.values())
    status, models = server.get("/v1/models")
    assert status == 200 and models["data"][0]["id"] == "smollm2" and models["data"][0]["max_model_len"] == 8192


def test_settings_and_timelines_can_be_seen(server: Server) -> None:
    status, config = server.get("/config")
    assert status == 200 and config["schedule_policy"] == "fcfs" and config["kv_capacity_tokens"] == 16384
    status, trace = server.get("/trace")
    assert status == 200 and {event["name"] for event in trace["traceEvents"]} >= {"queued", "admitted", "ended"}


def test_quartet_ps_and_chat(server: Server) -> None:
    command = [sys.executable, "-m", "quartet.cli.main"]
    listed = subprocess.run([*command, "ps", "--url", server.url], capture_output=True, text=True, timeout=30)
    assert listed.returncode == 0 and listed.stdout.count("ready") == 5
    chat = subprocess.run(
        [*command, "chat", "--url", server.url, "--max-tokens", "24", "What is the capital of France?"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert chat.returncode == 0 and "Paris" in chat.stdout
