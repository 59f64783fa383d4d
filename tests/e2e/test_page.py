"""The page at `/` in headless Chromium, in front of a real launch: chat, scheduler, requests, processes."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.chromium import CHROMIUM, Page, chromium_page
from tests.support.server import Server
from tests.support.thinking_template import TEMPLATE

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

ATTACK = "<img src=x onerror='window.pwned=1'>"
LONG = " ".join(f"word{number}" for number in range(150))
SCRIPT = [
    {"contains": "greet", "reply": "Good morning."},
    {"contains": "long", "reply": LONG},
    {"contains": "attack", "reply": f"<script>window.pwned=1</script>{ATTACK}\n\n```html\n{ATTACK}\n```\n**{ATTACK}**"},
    {
        "contains": "weather",
        "reply": "<think>\nI look it up.\n</think>\n\n"
        f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "Paris{ATTACK}"}}}}\n</tool_call>',
    },
]
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(
    one => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('thead')).length"""
"""How many elements reach beyond the window."""
WIDTHS = (1280, 390)
VIEWS = ("chat", "scheduler", "requests", "processes")
NAME = "<img/src=x/onerror=window.pwned=1>"
"""A client's id of its request, without a space."""
PICTURES = os.environ.get("QUARTET_PICTURES")
"""A folder for pictures of what is tested."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    script, template = folder / "script.json", folder / "template.jinja"
    script.write_text(json.dumps(SCRIPT))
    template.write_text(TEMPLATE)
    worker = ("--simulated-worker", "--simulated-step-ms", "25", "--simulated-script", str(script))
    with Server("smollm2", "--demo", *worker, "--chat-template", str(template)) as started:
        yield started


@pytest.fixture
async def page(server: Server) -> AsyncIterator[Page]:
    """The page as it is once it shows the engine; at the end of a test it must have complained of nothing."""
    server.wait_until(server.is_complete)
    async with chromium_page() as opened:
        await opened.open(server.url + "/")
        await opened.until(shows("#state", "ready"))
        yield opened
        assert await opened.evaluate("window.pwned === undefined")
        assert opened.complaints == []


def shows(selector: str, text: str) -> str:
    """Return the condition that the last such element contains a text."""
    return f"[...document.querySelectorAll({json.dumps(selector)})].at(-1)?.textContent.includes({json.dumps(text)})"


async def say(page: Page, text: str) -> None:
    await page.write("#prompt", text)
    await page.press("Enter", 13)


async def picture(page: Page, name: str) -> None:
    if PICTURES:
        await page.picture(Path(PICTURES, f"{name}.png"))


@contextlib.asynccontextmanager
async def streams(server: Server, count: int, **more: Any) -> AsyncIterator[list[asyncio.Task[bytes]]]:
    """Have requests with long answers in progress; gives what comes of each."""
    body = {"messages": [{"role": "user", "content": "long"}], "stream": True, **more}

    async def one(http: aiohttp.ClientSession) -> bytes:
        async with http.post(server.url + "/v1/chat/completions", json=body) as response:
            return await response.read()

    async with aiohttp.ClientSession() as http:
        tasks = [asyncio.create_task(one(http)) for _ in range(count)]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_it_chats_and_says_where_the_time_went(page: Page) -> None:
    await say(page, "greet me")
    await page.until(shows(".reply .text", "Good morning."))
    for word in ("queue", "first token", "tok/s", "cached", "retractions 0"):
        await page.until(shows(".reply .meta", word))
    await page.click(".reply .meta button")
    await page.until(shows("#story", "Admitted after"))
    await page.until(shows("#story", "Ended (stop)"))
    await page.until(shows("#story .parts", "its output was computed"))
    await page.click("#why-close")
    await say(page, "greet me again")
    await page.until("document.querySelectorAll('.reply').length === 2")
    await page.until(shows(".reply .meta", "retractions"))
    await picture(page, "chat")


async def test_stop_aborts_the_request(page: Page, server: Server) -> None:
    await say(page, "a long one")
    await page.until(shows(".reply .text", "word3 "))
    await page.press("Escape", 27)
    await page.until(shows(".reply .meta", "stopped"))
    await page.until("document.getElementById('stop').hidden && !document.getElementById('send').disabled")
    server.wait_until(lambda: server.get("/v1/loads")[1]["loads"][0]["num_running_reqs"] == 0)
    assert not await page.evaluate(shows(".reply .text", "word149"))


async def test_clear_stops_and_begins_another_conversation(page: Page) -> None:
    await say(page, "a long one")
    await page.until(shows(".reply .text", "word3 "))
    await page.click("#clear")
    await page.until("document.getElementById('stop').hidden && !document.querySelector('.reply')")
    assert await page.evaluate("conversation.length") == 0
    await say(page, "greet me")
    await page.until(shows(".reply .meta", "retractions"))
    assert await page.evaluate("conversation.length") == 2


async def test_live_requests_are_shown_told_and_aborted(page: Page, server: Server) -> None:
    async with streams(server, 3, request_id=NAME) as tasks:
        await page.until("document.querySelectorAll('#requests tbody tr').length === 3")
        server.wait_until(lambda: server.get("/v1/loads")[1]["loads"][0]["num_running_reqs"] == 3)
        await page.until("document.getElementById('c-running').textContent === '3'")
        assert await page.evaluate("document.getElementById('c-waiting').textContent === '0'")
        await picture(page, "requests")
        await page.click("#requests tbody tr button")
        await page.until(shows("#story", "Admitted after"))
        await page.click("#why-close")
        await page.click("#requests tbody tr button.danger")
        # All three have the same id of the client, and the page aborts by the engine's.
        await page.until("document.querySelectorAll('#requests tbody tr').length === 2")
        (ended,) = await asyncio.wait_for(_first(tasks), 10)
        assert b"request_aborted" in ended
    await page.until("document.querySelectorAll('#requests tbody tr').length === 0")


async def _first(tasks: list[asyncio.Task[bytes]]) -> list[bytes]:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return [task.result() for task in done]


async def test_a_killed_worker_is_shown_and_the_reply_goes_on(page: Page, server: Server) -> None:
    before = server.topology()["worker-0"]["restarts"]
    row = "[...document.querySelectorAll('#processes tbody tr')].find(row => row.textContent.startsWith('worker-0'))"
    await say(page, "a long one")
    await page.until(shows(".reply .text", "word3 "))
    await page.evaluate(f"{row}.querySelector('button').click()")
    await page.until(f"{row}.cells[3].textContent === '{before + 1}'")
    await page.until(f"{row}.cells[4].textContent === 'signal SIGKILL' && {row}.cells[1].textContent === 'ready'")
    await page.until(shows(".reply .text", "word149"), 60)
    assert await page.evaluate("[...document.querySelectorAll('.reply .text')].at(-1).textContent") == LONG
    await picture(page, "killed")


async def test_the_stream_comes_back_after_the_death_of_its_process(page: Page, server: Server) -> None:
    server.kill("api-0")
    await page.until(shows("#state", "not connected"))
    await page.until(shows("#state", "ready"))
    page.complaints[:] = [one for one in page.complaints if "Failed to load resource" not in one]


async def test_text_is_never_html(page: Page) -> None:
    await say(page, f"attack {ATTACK}")
    await page.until(shows(".reply .meta", "retractions"))
    assert ATTACK in await page.evaluate("document.querySelector('.reply .text').textContent")
    await page.evaluate("document.getElementById('f-tools').value = JSON.stringify([{type: 'function', function: "
                        "{name: 'weather', parameters: {type: 'object'}}}])")  # fmt: skip
    await say(page, "weather")
    await page.until(shows(".reply .meta", "retractions"))
    await page.until(shows(".reply .thinking div", "I look it up."))
    assert not await page.evaluate("[...document.querySelectorAll('.reply .thinking')].at(-1).open")
    await page.until(shows(".reply .call", "Paris"))
    assert await page.evaluate("document.querySelectorAll('img, script').length === 1")


async def test_the_policy_of_the_page_blocks_what_is_injected(page: Page) -> None:
    told = await page.evaluate(
        "(() => { try { document.body.innerHTML = '<p>'; return 'taken'; } catch (e) { return e.name; } })()"
    )
    assert told == "TypeError"
    await page.evaluate("document.body.append(Object.assign(document.createElement('img'), {src: '/x.png'}))")
    await page.until("true")
    assert page.complaints and all("Content Security Policy" in one or "Trusted" in one for one in page.complaints)
    page.complaints.clear()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_and_follows_the_scheme(page: Page, server: Server, width: int, scheme: str) -> None:
    await page.prefer(scheme)
    await page.resize(width, 800)
    async with streams(server, 2):
        await say(page, "greet me")
        await page.until(shows(".reply .meta", "retractions"))
        await page.until("document.querySelectorAll('#requests tbody tr').length === 2")
        for view in VIEWS:
            await page.click(f"nav button[data-view={view}]")
            assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), view
            assert await page.evaluate(TOO_WIDE) == 0, view
            await picture(page, f"{scheme}-{width}-{view}")
    shade = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (shade < 60) == (scheme == "dark")
    await page.evaluate("for (const _ of 'xx') document.getElementById('theme').click()")
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]") < 60


async def test_it_is_used_by_the_keyboard(page: Page) -> None:
    reached = set()
    for _ in range(40):
        await page.press("Tab", 9)
        reached.add(await page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"prompt", "send", "curl", "python", "address", "key", "theme", "Kill me"} <= reached
    await page.resize(390, 800)
    await page.evaluate("document.querySelector('nav button').focus()")
    await page.press("ArrowRight", 39)
    assert await page.evaluate("document.body.dataset.view") == "scheduler"


async def test_the_request_is_copied_as_a_program(page: Page) -> None:
    await page.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    await page.evaluate("document.getElementById('f-priority').value = '7'")
    await page.write("#prompt", 'it\'s "greet"')
    copied = {}
    for name in ("curl", "python"):
        await page.click(f"#{name}")
        await page.until("!document.getElementById('toast').hidden")
        copied[name] = await page.evaluate("navigator.clipboard.readText()")
    compile(copied["python"], "copied", "exec")
    assert 'extra_body={"priority": 7}' in copied["python"]
    process = await asyncio.create_subprocess_shell(copied["curl"], stdout=asyncio.subprocess.PIPE,
                                                    stderr=asyncio.subprocess.DEVNULL)  # fmt: skip
    told, _ = await process.communicate()
    assert b"data: " in told and b"[DONE]" in told


async def test_it_asks_for_the_key() -> None:
    with Server("smollm2", "--simulated-worker", "--api-key", "sesame", "--admin-api-key", "root", "--demo") as server:
        async with chromium_page() as page:
            await page.open(server.url + "/")
            for key, kind in (("wrong", "needs a key"), ("sesame", "ready")):
                await page.until("document.getElementById('ask').open")
                await page.write("#ask-key", key)
                await page.press("Enter", 13)
                await page.until(shows("#state", kind))
            await page.click("#processes tbody button")
            await page.until(shows("#ask-why", "admin key"))
            assert await page.evaluate("JSON.stringify(Object.values(sessionStorage))") == '["sesame"]'
            assert await page.evaluate("!Object.values(localStorage).includes('sesame') && !document.cookie")
            assert all("401" in one or "403" in one for one in page.complaints), page.complaints
