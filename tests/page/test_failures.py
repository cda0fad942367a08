"""Failures between page and server: a clear line, a way on, and nothing typed is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import ask, last_reply, messages_of, open_context, open_page
from tests.support.page_server import KEY, PageServer, page_server


@pytest.fixture
def server() -> Iterator[PageServer]:
    with page_server() as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: PageServer) -> Iterator[Page]:
    with open_context(browser, server.address) as context:
        yield open_page(context, server.address)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kept", "line"),
    [
        ("429", "", "the server is busy. Wait about 7 seconds, then try again."),
        ("503", "", "the server is busy. Wait about 7 seconds, then try again."),
        ("500", "", "The server responded with status 500."),
        ("lost", "a que", "The connection closed before the reply was complete."),
        ("nonsense", "a que", "The server sent what this page does not understand."),
    ],
)
def test_a_fault_and_another_try(page: Page, server: PageServer, fault: str, kept: str, line: str) -> None:
    server.faults = [fault]
    ask(page, "a question")
    error = page.get_by_role("alert").filter(has_text=line)
    expect(error).to_be_visible()
    assert messages_of(page) == ["a question", kept]
    page.reload()
    expect(page.locator(".assistant .error")).to_contain_text(line)
    page.get_by_role("button", name="Try again").click()
    assert last_reply(page) == "a question"
    expect(page.locator(".assistant .error")).to_have_count(0)
    assert messages_of(page) == ["a question"] * 2


def test_a_question_that_waits_shows_its_place(page: Page, server: PageServer) -> None:
    server.faults = ["queue"]
    ask(page, "a question")
    for place in (2, 1):
        expect(page.locator(".waiting")).to_have_text(f"Waiting: place {place} in the queue")
        expect(page.get_by_role("status").filter(has_text=f"place {place} in the queue")).to_be_visible()
        server.gate.set()
    assert last_reply(page) == "a question"
    expect(page.locator(".waiting")).to_have_count(0)


def test_an_api_key(page: Page, server: PageServer) -> None:
    server.key = KEY
    ask(page, "a question")
    dialog = page.get_by_role("dialog", name="This server asks for an API key")
    expect(dialog.get_by_label("API key")).to_be_focused()
    dialog.get_by_label("API key").fill("a wrong key")
    page.keyboard.press("Enter")
    expect(page.locator(".assistant .error")).to_contain_text("the API key is missing or wrong")
    dialog.get_by_label("API key").fill(KEY)
    dialog.get_by_role("button", name="Go on").click()
    assert last_reply(page) == "a question"
    stored = page.evaluate("JSON.stringify(localStorage)")
    assert KEY not in stored
    assert page.evaluate("sessionStorage.getItem('nanochat.key')") == KEY


def test_a_server_that_is_not_there_yet(page: Page) -> None:
    page.route("**/health", lambda route: route.abort())
    page.reload()
    alert = page.locator("#server-error")
    expect(alert).to_contain_text("The server cannot be reached. Is it running?")
    page.unroute("**/health")
    alert.get_by_role("button", name="Try again").click()
    expect(alert).to_be_hidden()


@pytest.mark.slow
def test_settings(page: Page, server: PageServer) -> None:
    page.get_by_role("button", name="Settings").click()
    dialog = page.get_by_role("dialog", name="Settings")
    assert dialog.get_by_label("Temperature").get_attribute("placeholder") == "0.6"
    dialog.get_by_label("Temperature").fill("3")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_be_visible()  # with the browser's message: at most 2
    dialog.get_by_label("Temperature").fill("0.25")
    dialog.get_by_label("Top-p").fill("0.9")
    dialog.get_by_label("Seed").fill("7")
    dialog.get_by_label("System message").fill("Be brief.")
    dialog.get_by_label("Appearance").select_option("dark")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_be_hidden()
    page.reload()
    ask(page, "hello")
    last_reply(page)
    assert server.requests[-1] == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "temperature": 0.25,
        "top_p": 0.9,
        "seed": 7,
    }
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 26, 25)"
    page.get_by_role("button", name="Settings").click()
    dialog.get_by_role("button", name="Use the server's defaults").click()
    dialog.get_by_role("button", name="Save").click()
    ask(page, "hello")
    last_reply(page)
    assert set(server.requests[-1]) == {"messages"}
    server.health = {"defaults": {"temperature": 1}}
    page.reload()
    expect(page.locator("#model")).to_have_text("scripted")
    page.get_by_role("button", name="Settings").click()
    expect(dialog.get_by_label("Top-p")).to_be_hidden()  # this server does not know it
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
