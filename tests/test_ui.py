"""The page in a real browser, against a real server: what a person sees of an answer, of a mistake, of an attack.

Needs Debian's Chromium, which dev/test.sh installs where it may; $CHROMIUM names another one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.server import ChatService
from tests.support.chat_server import serving
from tests.support.scripted_engine import GatedEngine, ScriptedEngine, last_user_text, reply_ids

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ADVICE = "`apt install chromium` (Debian), or name another browser of its kind in $CHROMIUM"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on the PATH: {ADVICE}")

PATIENCE = 60  # seconds that anything may take on a busy machine

ATTACK = '<script>window.hit = 1</script><img src=x onerror="window.hit = 2"> **&lt;b&gt;** €🙂'
TOOL = [
    {"type": "text", "text": "Let me see: "},
    {"type": "python", "text": "17 + 25"},
    {"type": "python_output", "text": "42"},
    {"type": "text", "text": "\nIt is 42."},
]
NO_RESULT = [{"type": "python", "text": "<b>1</b> / 0"}, {"type": "text", "text": "I do not know."}]
ANSWERS = {"tool": TOOL, "no result": NO_RESULT, "attack": ATTACK, "nothing": ""}
# The bytes of a stream, one at a time, as an unkind network might deliver them
SPLIT = """
const original = window.fetch;
window.fetch = async (...args) => {
  const response = await original(...args);
  if (!(response.headers.get("content-type") || "").startsWith("text/event-stream")) return response;
  const single = new TransformStream({transform(chunk, controller) {
    for (const byte of chunk) controller.enqueue(new Uint8Array([byte]));
  }});
  return new Response(response.body.pipeThrough(single), {status: response.status, headers: response.headers});
};
"""


class Talker(GatedEngine):
    """Answers by the last question: from ANSWERS, slowly for ever if asked for something long, else an echo of it."""

    def _tokens(self, prompt: list[int]) -> Iterator[int]:
        text = last_user_text(prompt)
        if "long" in text:
            yield from super()._tokens(prompt)
        if "breaks" in text:
            yield from b"so far "
            raise RuntimeError("this model is broken on purpose")
        content = next((answer for word, answer in ANSWERS.items() if word in text), f"You said: {text}")
        yield from reply_ids(content)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # as root, in a container
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        except Error as error:
            pytest.skip(f"{CHROMIUM} does not start ({error.message.splitlines()[0]}): {ADVICE}")
        expect.set_options(timeout=PATIENCE * 1000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, ChatService, Talker]]:
    talker = Talker()
    with serving(talker, defaults=SamplingParams(0.7, top_k=40, max_tokens=300, seed=None)) as (address, service):
        yield address, service, talker


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE * 1000)
    return context


@pytest.fixture
def page(browser: Browser, server: tuple[str, ChatService, Talker]) -> Iterator[Page]:
    """The page, opened; at the end there must have been no error in it and no request to elsewhere."""
    context = new_context(browser, viewport={"width": 900, "height": 700})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on("request", lambda r: None if r.url.startswith((server[0], "data:")) else problems.append(r.url))
    page.goto(server[0])
    expect(page.locator("#model")).to_have_text("scripted")
    yield page
    context.close()
    assert not problems


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def last_answer(page: Page) -> str:
    """The text of the last answer, when it is whole."""
    answer = page.locator(".assistant").last
    expect(answer).to_have_attribute("aria-busy", "false")
    return answer.locator(".said").inner_text()


def let_stop(service: ChatService, talker: Talker) -> None:
    """Let the model come to its next token, where it sees that nobody wants it, and wait until its place is free."""
    end = time.monotonic() + PATIENCE
    while service.stats.snapshot()["in_flight"]:
        assert time.monotonic() < end, "it writes on"
        talker.permits.release()
        time.sleep(0.01)
    while talker.permits.acquire(blocking=False):
        pass


def test_a_conversation(page: Page, server: tuple[str, ChatService, Talker]) -> None:
    box = page.get_by_label("Your message")
    expect(box).to_be_focused()
    box.press_sequentially("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    box.press("Enter")
    assert last_answer(page) == "You said: one\ntwo"
    assert page.locator(".user .said").inner_text() == "one\ntwo"
    expect(box).to_have_value("")
    box.fill("and three")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".assistant")).to_have_count(2)
    assert last_answer(page) == "You said: and three"
    prompt = server[2].calls[-1][0]
    text = server[2].tokenizer.decode(prompt)
    assert "one\ntwo" in text
    assert "You said: one\ntwo<|assistant_end|>" in text
    assert server[2].calls[-1][1] == SamplingParams(0.7, top_k=40, max_tokens=300, seed=None)


def test_an_answer_streams_and_stops(page: Page, server: tuple[str, ChatService, Talker]) -> None:
    _, service, talker = server
    ask(page, "something long")
    said = page.locator(".assistant .said")
    for count in (1, 2, 3):
        talker.permits.release()
        expect(said).to_have_text("a" * count)
    assert service.stats.snapshot()["in_flight"] == 1
    expect(page.get_by_role("button", name="Send")).to_be_hidden()
    ask(page, "something else")  # not now: it stays in the box
    expect(page.locator(".user")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped.")).to_be_visible()
    let_stop(service, talker)
    assert service.stats.snapshot()["stopped"] >= 1
    page.get_by_role("button", name="Send").click()
    assert last_answer(page) == "You said: something else"
    assert "aaa<|assistant_end|>" in talker.tokenizer.decode(talker.calls[-1][0])  # what was said before stays said


def test_stopped_before_the_first_word(page: Page, server: tuple[str, ChatService, Talker]) -> None:
    ask(page, "something long")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_label("Your message")).to_have_value("something long")  # as if it had not been sent
    expect(page.locator(".message")).to_have_count(0)
    let_stop(server[1], server[2])


def test_a_tool_call(page: Page, server: tuple[str, ChatService, Talker], tmp_path: Path) -> None:
    ask(page, "use the tool")
    last_answer(page)
    tool = page.locator(".tool")
    assert tool.locator("summary .call").inner_text() == "17 + 25"
    assert tool.locator("summary .result").inner_text() == "42"
    expect(tool.locator("dl")).to_be_hidden()
    page.screenshot(path=tmp_path / "tool.png")
    assert (tmp_path / "tool.png").stat().st_size > 10_000
    tool.locator("summary").click()
    expect(tool.locator("dd").first).to_have_text("17 + 25")
    ask(page, "no result")
    last_answer(page)
    assert page.locator(".tool summary .result").last.inner_text() == "nothing"
    assert page.locator(".tool summary .call").last.inner_text() == "<b>1</b> / 0"
    ask(page, "thanks")
    last_answer(page)
    history = server[2].tokenizer.decode(server[2].calls[-1][0])
    assert "Let me see: <|python_start|>17 + 25<|python_end|><|output_start|>42<|output_end|>\nIt is 42." in history
    assert "<|python_start|><b>1</b> / 0<|python_end|>I do not know." in history


def test_nothing_that_is_said_becomes_part_of_the_page(page: Page) -> None:
    ask(page, f"attack {ATTACK}")
    assert last_answer(page) == ATTACK
    assert page.locator(".user .said").inner_text() == f"attack {ATTACK}"
    assert page.locator("#log img, #log script, #log b").count() == 0
    assert page.evaluate("window.hit") is None


def test_an_injected_script_would_not_run_either(page: Page) -> None:
    page.evaluate("""document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="window.hit = 3">')""")
    page.evaluate("""document.body.append(Object.assign(document.createElement("script"), {text: "window.hit = 4"}))""")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None


def test_a_stream_that_comes_byte_by_byte(page: Page) -> None:
    page.evaluate(SPLIT)
    ask(page, "€🙂 attack")
    assert last_answer(page) == ATTACK
    ask(page, "tool")
    assert last_answer(page).split("\n")[-1] == "It is 42."


def test_the_buffer_of_events(page: Page) -> None:
    pieces = page.evaluate("""() => {
      const text = 'data: a\\n\\n: note\\r\\n\\r\\ndata:b\\r\\ndata: c\\r\\n\\r\\nevent: x\\ndata: d\\r\\rdata: rest';
      const found = [];
      for (let cut = 0; cut <= text.length; cut++) {
        for (let next = cut; next <= text.length; next++) {
          const buffer = new EventBuffer();
          const parts = [text.slice(0, cut), text.slice(cut, next), text.slice(next)];
          const events = parts.flatMap((part) => buffer.feed(part));
          found.push(JSON.stringify([events, buffer.text]));
        }
      }
      return [...new Set(found)];
    }""")
    assert pieces == ['[["a","b\\nc","d"],"data: rest"]']


def test_a_new_conversation(page: Page, server: tuple[str, ChatService, Talker]) -> None:
    ask(page, "first")
    last_answer(page)
    ask(page, "something long")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    let_stop(server[1], server[2])
    ask(page, "second")
    assert last_answer(page) == "You said: second"
    assert "first" not in server[2].tokenizer.decode(server[2].calls[-1][0])


def test_a_limit_is_told_and_the_question_kept(page: Page) -> None:
    ask(page, "x" * 8001)
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("message 1 has 8001 characters: at most 8000 are allowed")
    expect(page.get_by_label("Your message")).to_have_value("x" * 8001)
    ask(page, "short")
    assert last_answer(page) == "You said: short"
    expect(alert).to_have_count(0)
    page.get_by_label("Settings").click()
    page.get_by_label("Top-k").fill("500")
    page.keyboard.press("Escape")
    ask(page, "again")
    expect(alert).to_have_text("top_k is 500: must be a whole number from 1 to 200")


def test_what_was_said_before_a_failure_stays(page: Page) -> None:
    ask(page, "this breaks")
    expect(page.get_by_role("alert")).to_contain_text("the reply failed")
    assert last_answer(page) == "so far "
    ask(page, "nothing")
    expect(page.get_by_text("The model had nothing to say.")).to_be_visible()


def test_a_long_conversation_is_sent_without_its_beginning(page: Page, server: tuple[str, ChatService, Talker]) -> None:
    page.evaluate("""() => {
      for (let i = 0; i < 300; i++) messages.push({role: "user", content: `q${i} `}, {role: "assistant", content: "a"});
      messages[599].content = "x".repeat(8001);  // an answer that is longer than a message may be
      for (let i = 0; i < 3; i++) messages.push({role: "user", content: `late${i}`}, {role: "assistant", content: "a"});
    }""")
    ask(page, "last")
    assert last_answer(page) == "You said: last"
    sent = server[2].tokenizer.decode(server[2].calls[-1][0])
    assert "late0" in sent
    assert "q299" not in sent


@pytest.mark.parametrize("width", [320, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen(
    browser: Browser, server: tuple[str, ChatService, Talker], tmp_path: Path, width: int, scheme: str
) -> None:
    context = new_context(browser, viewport={"width": width, "height": 640}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server[0])
    ask(page, "tool " + "wide" * 60)
    last_answer(page)
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("find('log').getBoundingClientRect().right <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128")
    assert dark == (scheme == "dark")
    context.close()


def test_a_server_that_is_gone(browser: Browser) -> None:
    with serving(ScriptedEngine(lambda _: reply_ids("hi"))) as (address, _):
        context = new_context(browser)
        page = context.new_page()
        page.goto(address)
        ask(page, "hello")
        assert last_answer(page) == "hi"
    ask(page, "still there?")
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached. Is it running?")
    expect(page.get_by_label("Your message")).to_have_value("still there?")
    context.close()
