"""The chat page in a real browser, with a real server: replies, errors, and text that attacks the page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.access import AccessRules
from nanochat.serving.service import ChatService
from nanochat.serving.sources import DocumentSources
from tests.support.browser import PHONE, TIMEOUT, ask, last_reply, open_context, open_page
from tests.support.chat_server import serving
from tests.support.documents import make_index
from tests.support.scripted_engine import GatedEngine, ScriptedEngine, last_user_text, reply_ids

ATTACK = '<script>window.hit = 1</script><img src=x onerror="window.hit = 2"> **&lt;b&gt;** [a](javascript:hit) €🙂'
SHOWN_ATTACK = ATTACK.replace("**", "")
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
def server() -> Iterator[tuple[str, ChatService, KeywordEngine]]:
    engine = KeywordEngine()
    with serving(engine, defaults=SamplingParams(0.7, top_k=40, max_tokens=300, seed=None)) as (address, service):
        yield address, service, engine


@pytest.fixture
def page(browser: Browser, server: tuple[str, ChatService, KeywordEngine]) -> Iterator[Page]:
    """The page, opened."""
    with open_context(browser, server[0]) as context:
        yield open_page(context, server[0])


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ChatService, KeywordEngine]]:
    """A server with an index of documents, which grounds its questions."""
    engine = KeywordEngine()
    sources = DocumentSources(make_index(tmp_path_factory.mktemp("documents")), is_grounded=True)
    with serving(engine, sources=sources) as (address, service):
        yield address, service, engine


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
    box = page.get_by_label("Your message", exact=True)
    expect(box).to_be_focused()
    box.press_sequentially("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    box.press("Enter")
    assert last_reply(page) == "You said: one\ntwo"
    assert page.locator(".user .text").inner_text() == "one\ntwo"
    expect(box).to_have_value("")
    box.fill("and three")
    page.get_by_role("button", name="Send", exact=True).click()
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
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_hidden()
    page.get_by_label("Your message", exact=True).fill("something else")
    page.keyboard.press("Enter")  # while a reply is in progress, the message stays in the box
    expect(page.locator(".user")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#log").get_by_text("Stopped.")).to_be_visible()
    wait_until_free(service, engine)
    assert service.stats.snapshot()["stopped"] >= 1
    page.get_by_role("button", name="Send", exact=True).click()
    assert last_reply(page) == "You said: something else"
    assert "aaa<|assistant_end|>" in engine.tokenizer.decode(
        engine.calls[-1][0]
    )  # the beginning of the stopped reply stays in the history


@pytest.mark.slow
def test_a_reply_stopped_before_its_first_token(page: Page, server: tuple[str, ChatService, KeywordEngine]) -> None:
    ask(page, "something long")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#log").get_by_text("Stopped before the reply began.")).to_be_visible()
    wait_until_free(server[1], server[2])
    ask(page, "second")
    assert last_reply(page) == "You said: second"
    assert "long" not in server[2].tokenizer.decode(server[2].calls[-1][0])  # a question without a reply is left out


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
    assert last_reply(page) == SHOWN_ATTACK
    assert page.locator(".user .text").inner_text() == f"attack {ATTACK}"
    page.reload()
    assert last_reply(page) == SHOWN_ATTACK
    assert page.locator("#list .open").inner_text() == "attack <script>window.hit = 1</script><img src=x…"
    assert page.locator("#log :is(img, script, b, a)").count() == 0
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
    assert last_reply(page) == SHOWN_ATTACK
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
    server[2].permits.release()
    page.get_by_role("button", name="first", exact=True).click()  # the reply goes on meanwhile
    expect(page.locator(".assistant .text").last).to_have_text("a")
    page.get_by_role("button", name="Stop").click()
    wait_until_free(server[1], server[2])
    page.get_by_role("button", name="New conversation").click()
    ask(page, "second")
    assert last_reply(page) == "You said: second"
    assert "first" not in server[2].tokenizer.decode(server[2].calls[-1][0])


@pytest.mark.slow
def test_a_refused_message_can_be_changed(page: Page) -> None:
    ask(page, "x" * 8001)
    error = page.locator(".assistant .error")
    expect(error).to_contain_text("message 1 has 8001 characters: at most 8000 are allowed")
    expect(page.get_by_role("alert")).to_have_count(1)
    ask(page, "short")
    assert last_reply(page) == "You said: short"
    page.get_by_label("Edit your message").first.click()
    page.locator(".editor textarea").fill("shorter")
    page.keyboard.press("Enter")
    assert last_reply(page) == "You said: shorter"
    expect(error).to_have_count(0)


@pytest.mark.slow
def test_the_beginning_of_a_failed_reply_stays(page: Page) -> None:
    ask(page, "this breaks")
    expect(page.get_by_role("alert")).to_contain_text("the reply failed")
    assert last_reply(page) == "so far "
    ask(page, "nothing")
    expect(page.locator("#log").get_by_text("The reply is empty.")).to_be_visible()


@pytest.mark.slow
def test_a_long_conversation_is_sent_without_its_beginning(
    page: Page, server: tuple[str, ChatService, KeywordEngine]
) -> None:
    page.evaluate("""() => {
      const {messages} = conversation;
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
    options: Any = {"viewport": {"width": width, "height": 640}, "color_scheme": scheme}
    with open_context(browser, server[0], **options) as context:
        page = open_page(context, server[0])
        ask(page, "tool " + "wide" * 60)
        last_reply(page)
        page.screenshot(path=tmp_path / f"{scheme}-{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("byId('log').getBoundingClientRect().right <= innerWidth")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128")
        assert dark == (scheme == "dark")


# Sources


@pytest.fixture
def document_page(browser: Browser, documents: tuple[str, ChatService, KeywordEngine]) -> Iterator[Page]:
    """The page of the server with documents, opened."""
    with open_context(browser, documents[0]) as context:
        yield open_page(context, documents[0])


@pytest.mark.slow
def test_no_answer_without_its_sources(document_page: Page, documents: tuple[str, ChatService, KeywordEngine]) -> None:
    page, (_, service, engine) = document_page, documents
    page.get_by_role("button", name='Tell me about "Coffee".').click()  # an example from a held-out heading
    last_reply(page)
    for text in ("How do I brew tea?", "giraffe?", "use the tool", "attack"):
        ask(page, text)
        last_reply(page)
    ask(page, "something long about tea")
    engine.permits.release()
    expect(page.locator(".assistant .text").last).to_have_text("a")
    page.keyboard.press("Escape")
    expect(page.locator("#log").get_by_text("Stopped.")).to_be_visible()
    wait_until_free(service, engine)
    ask(page, "this breaks the tea pot")
    expect(page.get_by_role("alert")).to_contain_text("the reply failed")
    answers = page.locator(".assistant").count()
    assert answers == 7
    assert page.locator(".assistant .sources").count() == answers
    for number in range(answers):
        region = page.locator(".assistant").nth(number).get_by_role("region", name="Sources of this answer")
        expect(region).to_contain_text("Nearest passages" if region.locator("li").count() else "No passage")
    assert page.locator(".assistant").filter(has=page.locator("li")).count() >= 4
    assert "passages" not in engine.tokenizer.decode(engine.calls[-1][0])  # what is shown is not sent


@pytest.mark.slow
def test_a_passage_opens_with_the_keyboard(document_page: Page) -> None:
    page = document_page
    ask(page, "How do I brew tea?")
    last_reply(page)
    first = page.locator(".sources li").first
    assert first.locator("summary").inner_text() == "drinks/tea.md Tea / How to brew tea read before the answer"
    passage = first.get_by_text("Boil water. Pour")
    expect(passage).to_be_hidden()
    page.locator("#open-settings").focus()
    for _ in range(6):  # the conversation and the buttons of the question come before
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    page.set_viewport_size({"width": 1000, "height": 380})
    page.evaluate("document.activeElement.scrollIntoView({block: 'end'})")  # as far down as it can be seen
    page.keyboard.press("Enter")
    expect(passage).to_be_in_viewport(ratio=1)
    assert page.locator(".sources").aria_snapshot().startswith('- region "Sources of this answer"')


@pytest.mark.slow
def test_hostile_documents_do_no_harm(document_page: Page) -> None:
    page = document_page
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_sources_fit_a_phone(
    browser: Browser, documents: tuple[str, ChatService, KeywordEngine], tmp_path: Path, scheme: Any
) -> None:
    with open_context(browser, documents[0], color_scheme=scheme, **PHONE) as context:
        page = open_page(context, documents[0])
        for text in ("Is there a wombat?", "Who stirs the pot of coffee?"):
            ask(page, text)
            last_reply(page)
        for summary in page.locator(".sources summary").all():
            summary.click()
        page.screenshot(path=tmp_path / f"sources-{scheme}.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        right = "Math.max(...[...document.querySelectorAll('.sources *')].map((e) => e.getBoundingClientRect().right))"
        assert page.evaluate(f"{right} <= innerWidth")


@pytest.mark.slow
def test_a_server_with_a_key(browser: Browser) -> None:
    engine = ScriptedEngine(lambda _: reply_ids("hi"))
    with serving(engine, access=AccessRules("a-secret-key")) as (address, _), open_context(browser, address) as context:
        page = open_page(context, address)
        for key in ("another-key", "a-secret-key"):
            page.locator("#key-dialog").get_by_label("API key").fill(key)
            page.keyboard.press("Enter")
        expect(page.locator("#key-dialog")).to_be_hidden()
        ask(page, "hello")
        assert last_reply(page) == "hi"


def test_a_server_that_stopped(browser: Browser) -> None:
    with serving(ScriptedEngine(lambda _: reply_ids("hi"))) as (address, _):
        context = browser.new_context()
        page = open_page(context, address)
        ask(page, "hello")
        assert last_reply(page) == "hi"
    ask(page, "still there?")
    expect(page.locator(".assistant .error")).to_contain_text("The server cannot be reached. Is it running?")
    assert page.locator(".user .text").last.inner_text() == "still there?"
    context.close()
