"""The chat page on phones, with the keyboard alone, for screen readers, and in print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import PHONE, ask, last_reply, open_context, open_page, titles
from tests.support.page_server import PageServer, page_server

WIDE = "| a | b | c |\n|---|---|---|\n| " + "wide " * 30 + "| " + "x" * 200 + "| c |\n\n"
EVERYTHING = f"# Title\n\n{WIDE}```\n{'code ' * 80}\n```\n\n> - 1. quote\n\nhttps://a.org/{'y' * 300} {'z' * 300}"

SMALL = """[...document.querySelectorAll("button, summary")]
  .filter((element) => element.checkVisibility({visibilityProperty: true}))
  .filter((element) => element.getBoundingClientRect().height < 40)
  .map((element) => element.outerHTML)"""
# The element with the focus has an outline, or is in a field that shows it around itself.
IS_VISIBLE_FOCUS = """(() => {
  const element = document.activeElement;
  const isInField = ["input", "search"].includes(element.id);
  return element === document.body || isInField || getComputedStyle(element).outlineStyle !== "none";
})()"""
NAMELESS = """[...document.querySelectorAll("button, input, textarea, select, summary")]
  .filter((element) => !element.ariaLabel && !element.textContent.trim() && !element.closest("label"))
  .filter((element) => !document.querySelector(`label[for="${element.id}"]`))
  .map((element) => element.outerHTML)"""
RECORD = """() => {
  window.announced = [];
  const announcer = byId("announcer");
  new MutationObserver(() => window.announced.push(announcer.textContent)).observe(announcer, {childList: true});
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with page_server() as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: PageServer) -> Iterator[Page]:
    with open_context(browser, server.address) as context:
        yield open_page(context, server.address)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser: Browser, server: PageServer, scheme: Any) -> None:
    with open_context(browser, server.address, color_scheme=scheme, **PHONE) as context:
        page = open_page(context, server.address)
        ask(page, EVERYTHING)
        last_reply(page)
        assert page.evaluate(
            "document.documentElement.scrollWidth <= innerWidth && byId('scroll').scrollWidth <= innerWidth"
        )
        page.get_by_label("Your message", exact=True).fill("a")
        page.keyboard.press("Enter")  # a new line: there is no Shift+Enter
        expect(page.get_by_label("Your message", exact=True)).to_have_value("a\n")
        small = page.evaluate(SMALL)
        assert not small
        drawer = page.get_by_role("navigation", name="Conversations")
        expect(drawer).to_be_hidden()
        page.get_by_role("button", name="List of conversations", exact=True).tap()
        expect(drawer).to_be_visible()
        assert len(titles(page)) == 1
        page.keyboard.press("Escape")
        expect(drawer).to_be_hidden()
        expect(page.get_by_role("button", name="List of conversations", exact=True)).to_be_focused()
        page.get_by_role("button", name="Settings").tap()
        assert page.evaluate("byId('settings').getBoundingClientRect().right <= innerWidth")


@pytest.mark.slow
def test_everything_is_reached_with_the_keyboard(page: Page) -> None:
    ask(page, "```\ncode\n```\n\n[link](https://a.org)")
    last_reply(page)
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.ariaLabel || document.activeElement.id || document.activeElement.textContent"
            )
        )
        assert page.evaluate(IS_VISIBLE_FOCUS)
    expected = {
        "Copy the code",
        "Code",
        "link",
        "Copy the reply",
        "Regenerate",
        "Edit your message",
        "Copy your message",
    }
    expected |= {"new", "Search the conversations", "Settings", "input", "More about this conversation", "import"}
    assert not {name for name in expected if not any(name in each or each in name for each in reached if each)}


def test_keys(page: Page) -> None:
    ask(page, "first")
    last_reply(page)
    page.keyboard.press("Control+Shift+o")
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.get_by_label("Your message", exact=True)).to_be_focused()
    page.keyboard.press("Control+k")
    expect(page.get_by_label("Search the conversations")).to_be_focused()
    page.keyboard.press("Enter")  # opens the first
    expect(page.locator(".message")).to_have_count(2)
    page.get_by_role("button", name="More about “first”").press("Enter")
    menu = page.locator("#menu")
    expect(menu.get_by_role("button", name="Rename")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(menu.get_by_role("button", name="Delete")).to_be_focused()
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()


def test_the_tree_of_a_screen_reader(page: Page) -> None:
    ask(page, "**hello** you")
    last_reply(page)
    tree = page.locator("body").aria_snapshot()
    for line in (
        '- navigation "Conversations":',
        '- heading "nanochat" [level=1]',
        '- searchbox "Search the conversations"',
        '- heading "Today" [level=3]',
        '- button "**hello** you"',
        "- banner:",
        '- heading "**hello** you" [level=2]',
        "- main:",
        '- log "Conversation":',
        '- heading "You" [level=3]',
        '- button "Edit your message"',
        '- heading "nanochat" [level=3]',
        "- strong: hello",
        '- button "Copy the reply"',
        '- button "Regenerate"',
        "- contentinfo:",
        '- textbox "Your message"',
    ):
        assert line in tree, line
    nameless = page.evaluate(NAMELESS)
    assert not nameless


def test_replies_are_announced_when_they_are_complete(page: Page, server: PageServer) -> None:
    page.evaluate(RECORD)
    server.gate.clear()
    ask(page, "a slow answer")
    expect(page.locator(".assistant .text")).to_have_text("a slow")
    assert page.evaluate("window.announced") == []
    server.gate.set()
    last_reply(page)
    assert [text.strip() for text in page.evaluate("window.announced")] == ["Reply: a slow answer"]
    assert page.locator("#log").get_attribute("aria-live") == "off"


def test_without_examples_none_are_invented(browser: Browser) -> None:
    with page_server(health={"examples": []}) as server, open_context(browser, server.address) as context:
        page = open_page(context, server.address)
        expect(page.locator("#examples button")).to_have_count(0)
        expect(page.locator("#welcome")).to_contain_text("This is a small model: its replies can be wrong.")


def test_printing_and_reduced_motion(page: Page) -> None:
    ask(page, "print me")
    last_reply(page)
    page.emulate_media(media="print", reduced_motion="reduce")
    for name in ("#sidebar", "footer", ".actions"):
        expect(page.locator(name).first).to_be_hidden()
    expect(page.locator(".assistant .text")).to_be_visible()
    assert page.evaluate("getComputedStyle(byId('scroll')).overflowY") == "visible"
    assert page.evaluate("matchMedia('(prefers-reduced-motion: reduce)').matches")
