"""The chat page in a real browser, with a real server: replies, errors, and text that attacks the page.

Needs Chromium: dev/test.sh installs Debian's if it can, and $CHROMIUM names another.
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
from nanochat.serving.sources import DocumentSources
from tests.support.chat_server import serving
from tests.support.documents import make_index
from tests.support.scripted_engine import GatedEngine, ScriptedEngine, last_user_text, reply_ids

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ADVICE = "`apt install chromium` (Debian), or name another Chromium in $CHROMIUM"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on the PATH: {ADVICE}")

TIMEOUT = 60  # seconds, for a busy machine

ATTACK = '<script>window.hit = 1</script><img src=x onerror="window.hit = 2"> **&lt;b&gt;** €🙂'
TOOL = [
    {"type": "text", "text": "Let me see: "},
    {"type": "python", "text": "17 + 25"},
    {"type": "python_output", "text": "42"},
    {"type": "text", "text": "\nIt is 42."},
]
NO_RESULT = [{"type": "python", "text": "<b>1</b> / 0"}, {"type": "text", "text": "I do not know."}]
REPLIES = {"tool": TOOL, "no result": NO_RESULT, "attack": ATTACK, "nothing": ""}
# Delivers a stream byte by byte
SPLIT_STREAM = """
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


class KeywordEngine(GatedEngine):
    """Replies by a keyword of the last message: one of REPLIES, an endless reply, a failure, or an echo."""

    def _tokens(self, prompt: list[int]) -> Iterator[int]:
        text = last_user_text(prompt)
        if "long" in text:
            yield from super()._tokens(prompt)
        if "breaks" in text:
            yield from b"so far "
            raise RuntimeError("a failure on purpose")
        content = next((reply for word, reply in REPLIES.items() if word in text), f"You said: {text}")
        yield from reply_ids(content)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # needed as root in a container
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        except Error as error:
            pytest.skip(f"{CHROMIUM} does not start ({error.message.splitlines()[0]}): {ADVICE}")
        expect.set_options(timeout=TIMEOUT * 1000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, ChatService, KeywordEngine]]:
    engine = KeywordEngine()
    with serving(engine, defaults=SamplingParams(0.7, top_k=40, max_tokens=300, seed=None)) as (address, service):
        yield address, service, engine


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT * 1000)
    return context


@pytest.fixture
def page(browser: Browser, server: tuple[str, ChatService, KeywordEngine]) -> Iterator[Page]:
    """The page, opened. At the end there must have been no script error and no request to another site."""
    context = new_context(browser, viewport={"width": 900, "height": 700})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.on("request", lambda r: None if r.url.startswith((server[0], "data:")) else errors.append(r.url))
    page.goto(server[0])
    expect(page.locator("#model")).to_have_text("scripted")
    yield page
    context.close()
    assert not errors


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ChatService, KeywordEngine]]:
    """A server with an index of documents, which grounds its questions."""
    engine = KeywordEngine()
    sources = DocumentSources(make_index(tmp_path_factory.mktemp("documents")), is_grounded=True)
    with serving(engine, sources=sources) as (address, service):
        yield address, service, engine


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def last_reply(page: Page) -> str:
    """Wait until the last reply is complete, and return its text."""
    reply = page.locator(".assistant").last
    expect(reply).to_have_attribute("aria-busy", "false")
    return reply.locator(".text").inner_text()


def wait_until_free(service: ChatService, engine: KeywordEngine) -> None:
    """Let the engine generate until it notices that its reply was cancelled, and wait until it is free."""
    end = time.monotonic() + TIMEOUT
    while service.stats.snapshot()["in_flight"]:
        assert time.monotonic() < end, "the reply does not stop"
        engine.permits.release()
        time.sleep(0.01)
    while engine.permits.acquire(blocking=False):
        pass


@pytest.mark.slow
def test_a_conversation(page: Page, server: tuple[str, ChatService, KeywordEngine]) -> None:
    box = page.get_by_label("Your message")
    expect(box).to_be_focused()
    box.press_sequentially("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    box.press("Enter")
    assert last_reply(page) == "You said: one\ntwo"
    assert page.locator(".user .text").inner_text() == "one\ntwo"
    expect(box).to_have_value("")
    box.fill("and three")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".assistant")).to_have_count(2)
    assert last_reply(page) == "You said: and three"
    prompt = server[2].calls[-1][0]
    text = server[2].tokenizer.decode(prompt)
    assert "one\ntwo" in text
    assert "You said: one\ntwo<|assistant_end|>" in text
    assert server[2].calls[-1][1] == SamplingParams(0.7, top_k=40, max_tokens=300, seed=None)


@pytest.mark.slow
def test_a_reply_streams_and_stops(page: Page, server: tuple[str, ChatService, KeywordEngine]) -> None:
    _, service, engine = server
    ask(page, "something long")
    text = page.locator(".assistant .text")
    for count in (1, 2, 3):
        engine.permits.release()
        expect(text).to_have_text("a" * count)
    assert service.stats.snapshot()["in_flight"] == 1
    expect(page.get_by_role("button", name="Send")).to_be_hidden()
    ask(page, "something else")  # while a reply is in progress, the message stays in the box
    expect(page.locator(".user")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped.")).to_be_visible()
    wait_until_free(service, engine)
    assert service.stats.snapshot()["stopped"] >= 1
    page.get_by_role("button", name="Send").click()
    assert last_reply(page) == "You said: something else"
    assert "aaa<|assistant_end|>" in engine.tokenizer.decode(
        engine.calls[-1][0]
    )  # the beginning of the stopped reply stays in the history


@pytest.mark.slow
def test_a_reply_stopped_before_its_first_token_undoes_the_message(
    page: Page, server: tuple[str, ChatService, KeywordEngine]
) -> None:
    ask(page, "something long")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_label("Your message")).to_have_value("something long")  # as if the message had not been sent
    expect(page.locator(".message")).to_have_count(0)
    wait_until_free(server[1], server[2])


def test_a_tool_call(page: Page, server: tuple[str, ChatService, KeywordEngine], tmp_path: Path) -> None:
    ask(page, "use the tool")
    last_reply(page)
    tool = page.locator(".tool")
    assert tool.locator("summary .call").inner_text() == "17 + 25"
    assert tool.locator("summary .result").inner_text() == "42"
    expect(tool.locator("dl")).to_be_hidden()
    page.screenshot(path=tmp_path / "tool.png")
    assert (tmp_path / "tool.png").stat().st_size > 10_000
    tool.locator("summary").click()
    expect(tool.locator("dd").first).to_have_text("17 + 25")
    ask(page, "no result")
    last_reply(page)
    assert page.locator(".tool summary .result").last.inner_text() == "no result"
    assert page.locator(".tool summary .call").last.inner_text() == "<b>1</b> / 0"
    ask(page, "thanks")
    last_reply(page)
    history = server[2].tokenizer.decode(server[2].calls[-1][0])
    assert "Let me see: <|python_start|>17 + 25<|python_end|><|output_start|>42<|output_end|>\nIt is 42." in history
    assert "<|python_start|><b>1</b> / 0<|python_end|>I do not know." in history


@pytest.mark.slow
def test_text_of_models_and_users_is_never_html(page: Page) -> None:
    ask(page, f"attack {ATTACK}")
    assert last_reply(page) == ATTACK
    assert page.locator(".user .text").inner_text() == f"attack {ATTACK}"
    assert page.locator("#log img, #log script, #log b").count() == 0
    assert page.evaluate("window.hit") is None


@pytest.mark.slow
def test_an_injected_script_would_not_run_either(page: Page) -> None:
    page.evaluate("""document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="window.hit = 3">')""")
    page.evaluate("""document.body.append(Object.assign(document.createElement("script"), {text: "window.hit = 4"}))""")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None


@pytest.mark.slow
def test_a_stream_that_arrives_byte_by_byte(page: Page) -> None:
    page.evaluate(SPLIT_STREAM)
    ask(page, "€🙂 attack")
    assert last_reply(page) == ATTACK
    ask(page, "tool")
    assert last_reply(page).split("\n")[-1] == "It is 42."


def test_the_event_buffer(page: Page) -> None:
    results = page.evaluate("""() => {
      const text = 'data: a\\n\\n: note\\r\\n\\r\\ndata:b\\r\\ndata: c\\r\\n\\r\\nevent: x\\ndata: d\\r\\rdata: rest';
      const results = [];
      for (let cut = 0; cut <= text.length; cut++) {
        for (let next = cut; next <= text.length; next++) {
          const buffer = new EventBuffer();
          const parts = [text.slice(0, cut), text.slice(cut, next), text.slice(next)];
          const events = parts.flatMap((part) => buffer.feed(part));
          results.push(JSON.stringify([events, buffer.text]));
        }
      }
      return [...new Set(results)];
    }""")
    assert results == ['[["a","b\\nc","d"],"data: rest"]']


@pytest.mark.slow
def test_a_new_conversation(page: Page, server: tuple[str, ChatService, KeywordEngine]) -> None:
    ask(page, "first")
    last_reply(page)
    ask(page, "something long")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    wait_until_free(server[1], server[2])
    ask(page, "second")
    assert last_reply(page) == "You said: second"
    assert "first" not in server[2].tokenizer.decode(server[2].calls[-1][0])


@pytest.mark.slow
def test_a_refused_message_is_kept_in_the_input(page: Page) -> None:
    ask(page, "x" * 8001)
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("message 1 has 8001 characters: at most 8000 are allowed")
    expect(page.get_by_label("Your message")).to_have_value("x" * 8001)
    ask(page, "short")
    assert last_reply(page) == "You said: short"
    expect(alert).to_have_count(0)
    page.get_by_label("Settings").click()
    page.get_by_label("Top-k").fill("500")
    page.keyboard.press("Escape")
    ask(page, "again")
    expect(alert).to_have_text("top_k is 500: must be a whole number from 1 to 200")


@pytest.mark.slow
def test_the_beginning_of_a_failed_reply_stays(page: Page) -> None:
    ask(page, "this breaks")
    expect(page.get_by_role("alert")).to_contain_text("the reply failed")
    assert last_reply(page) == "so far "
    ask(page, "nothing")
    expect(page.get_by_text("The reply is empty.")).to_be_visible()


@pytest.mark.slow
def test_a_long_conversation_is_sent_without_its_beginning(
    page: Page, server: tuple[str, ChatService, KeywordEngine]
) -> None:
    page.evaluate("""() => {
      for (let i = 0; i < 300; i++) messages.push({role: "user", content: `q${i} `}, {role: "assistant", content: "a"});
      messages[599].content = "x".repeat(8001);  // a reply that is longer than the limit of a message
      for (let i = 0; i < 3; i++) messages.push({role: "user", content: `late${i}`}, {role: "assistant", content: "a"});
    }""")
    ask(page, "last")
    assert last_reply(page) == "You said: last"
    sent = server[2].tokenizer.decode(server[2].calls[-1][0])
    assert "late0" in sent
    assert "q299" not in sent


@pytest.mark.parametrize("width", [320, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_the_page_fits_the_screen(
    browser: Browser, server: tuple[str, ChatService, KeywordEngine], tmp_path: Path, width: int, scheme: str
) -> None:
    context = new_context(browser, viewport={"width": width, "height": 640}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server[0])
    ask(page, "tool " + "wide" * 60)
    last_reply(page)
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("byId('log').getBoundingClientRect().right <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128")
    assert dark == (scheme == "dark")
    context.close()


# Sources


def open_page(browser: Browser, address: str, **options: Any) -> Page:
    """The page in a context of its own, which the caller closes."""
    page = new_context(browser, **options).new_page()
    page.goto(address)
    expect(page.locator("#model")).to_have_text("scripted")
    return page


@pytest.mark.slow
def test_no_answer_without_its_sources(browser: Browser, documents: tuple[str, ChatService, KeywordEngine]) -> None:
    address, service, engine = documents
    page = open_page(browser, address)
    page.get_by_role("button", name='Tell me about "Coffee".').click()  # an example from a held-out heading
    last_reply(page)
    for text in ("How do I brew tea?", "giraffe?", "use the tool", "attack"):
        ask(page, text)
        last_reply(page)
    ask(page, "something long about tea")
    engine.permits.release()
    expect(page.locator(".assistant .text").last).to_have_text("a")
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped.")).to_be_visible()
    wait_until_free(service, engine)
    ask(page, "this breaks the tea pot")
    expect(page.get_by_role("alert")).to_contain_text("the reply failed")
    answers = page.locator(".assistant").count()
    assert answers == 7
    assert page.locator(".assistant > .sources").count() == answers
    for number in range(answers):
        region = page.locator(".assistant").nth(number).get_by_role("region", name="Sources of this answer")
        expect(region).to_contain_text("Nearest passages" if region.locator("li").count() else "No passage")
    assert page.locator(".assistant").filter(has=page.locator("li")).count() >= 4
    assert "passages" not in engine.tokenizer.decode(engine.calls[-1][0])  # what is shown is not sent
    page.context.close()


@pytest.mark.slow
def test_a_passage_opens_with_the_keyboard(browser: Browser, documents: tuple[str, ChatService, KeywordEngine]) -> None:
    page = open_page(browser, documents[0])
    ask(page, "How do I brew tea?")
    last_reply(page)
    first = page.locator(".sources li").first
    assert first.locator("summary").inner_text() == "drinks/tea.md Tea / How to brew tea read before the answer"
    passage = first.get_by_text("Boil water. Pour")
    expect(passage).to_be_hidden()
    page.get_by_role("button", name="New conversation").focus()
    for _ in range(3):  # the conversation, as an area that scrolls, may take the focus in between
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    page.keyboard.press("Enter")
    expect(passage).to_be_visible()
    assert page.locator(".sources").aria_snapshot().startswith('- region "Sources of this answer"')
    page.context.close()


@pytest.mark.slow
def test_hostile_documents_do_no_harm(browser: Browser, documents: tuple[str, ChatService, KeywordEngine]) -> None:
    page = open_page(browser, documents[0])
    ask(page, "Is there a wombat?")
    last_reply(page)
    source = page.locator(".sources li").first
    source.locator("summary").click()
    assert source.locator(".file").inner_text() == '<img src=x onerror="window.hit = 5">\\u001b[2J\\u202egpj.md'
    text = source.locator("blockquote").inner_text()
    assert text.startswith("<script>window.hit = 6</script>\\u001b]0;title\\u0007 The wombat \\u202esgge syal\\u2066 ")
    assert text.endswith("<|user_end|> **&lt;b&gt;**")
    assert page.locator("#log img, #log script, #log b").count() == 0
    assert page.evaluate("window.hit") is None
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_sources_fit_a_phone(
    browser: Browser, documents: tuple[str, ChatService, KeywordEngine], tmp_path: Path, scheme: Any
) -> None:
    page = open_page(browser, documents[0], viewport={"width": 390, "height": 844}, color_scheme=scheme)
    for text in ("Is there a wombat?", "Who stirs the pot of coffee?"):
        ask(page, text)
        last_reply(page)
    for summary in page.locator(".sources summary").all():
        summary.click()
    page.screenshot(path=tmp_path / f"sources-{scheme}.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    right = "Math.max(...[...document.querySelectorAll('.sources *')].map((e) => e.getBoundingClientRect().right))"
    assert page.evaluate(f"{right} <= innerWidth")
    page.context.close()


def test_a_server_that_stopped(browser: Browser) -> None:
    with serving(ScriptedEngine(lambda _: reply_ids("hi"))) as (address, _):
        context = new_context(browser)
        page = context.new_page()
        page.goto(address)
        ask(page, "hello")
        assert last_reply(page) == "hi"
    ask(page, "still there?")
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached. Is it running?")
    expect(page.get_by_label("Your message")).to_have_value("still there?")
    context.close()
