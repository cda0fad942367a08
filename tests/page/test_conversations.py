"""Conversations in the browser's storage: several, changed, searched, exported; reloads, two tabs, foreign entries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.support.browser import ask, last_reply, messages_of, open_context, open_menu, open_page, titles
from tests.support.page_server import PageServer, page_server


@pytest.fixture
def server() -> Iterator[PageServer]:
    with page_server() as server:
        yield server


@pytest.fixture
def context(browser: Browser, server: PageServer) -> Iterator[BrowserContext]:
    with open_context(browser, server.address) as context:
        yield context


@pytest.fixture
def page(context: BrowserContext, server: PageServer) -> Page:
    return open_page(context, server.address)


def talk(page: Page, *texts: str) -> None:
    """Send messages, each when the reply to the last one is complete."""
    for text in texts:
        ask(page, text)
        last_reply(page)


def entries(page: Page) -> dict[str, Any]:
    """The stored conversations by their titles."""
    values = page.evaluate("Object.entries(localStorage).filter(([key]) => key.startsWith(ENTRY)).map((e) => e[1])")
    return {entry["title"]: entry for entry in map(json.loads, values)}


def toast(page: Page) -> Any:
    return page.locator("#toast")


def test_a_whole_conversation_with_every_button(page: Page, server: PageServer) -> None:
    page.get_by_role("button", name="Where does Mia live?").click()  # the example, which the server names
    assert last_reply(page) == "Where does Mia live?"
    expect(page.locator(".stats")).to_contain_text("7 tokens · ")
    talk(page, "two", "three")
    page.get_by_label("Copy the reply").last.click()
    expect(page.get_by_label("Copy the reply").last).to_have_text("Copied")

    page.get_by_role("button", name="Regenerate").last.click()
    assert last_reply(page) == "three"
    expect(toast(page)).to_contain_text("The earlier reply was replaced.")
    assert [m["content"] for m in server.requests[-1]["messages"]][-3:] == ["two", "two", "three"]

    page.get_by_label("Edit your message").nth(1).click()
    expect(page.locator(".editor")).to_contain_text("replaces this message and what follows it (3 messages)")
    page.keyboard.press("Escape")
    expect(page.locator(".editor")).to_have_count(0)
    page.get_by_label("Edit your message").nth(1).click()
    page.get_by_label("Edit your message").nth(1).fill("zwei")
    page.locator(".editor").get_by_role("button", name="Send").click()
    assert last_reply(page) == "zwei"
    assert messages_of(page) == ["Where does Mia live?"] * 2 + ["zwei"] * 2
    expect(toast(page)).to_contain_text("The earlier reply and 2 later messages were replaced")
    toast(page).get_by_role("button", name="Undo").click()
    assert messages_of(page)[2:] == ["two", "two", "three", "three"]

    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#welcome")).to_be_visible()
    talk(page, "another")
    assert titles(page) == ["another", "Where does Mia live?"]
    page.get_by_role("button", name="Where does Mia live?", exact=True).click()
    assert len(messages_of(page)) == 6
    assert set(entries(page)) == {"another", "Where does Mia live?"}


@pytest.mark.slow
def test_rename_delete_and_undo(page: Page) -> None:
    talk(page, "first")
    open_menu(page, "first", "Rename")
    page.get_by_label("Title").fill('<b>"new"</b>')
    page.keyboard.press("Enter")
    assert titles(page) == ['<b>"new"</b>']
    expect(page.locator("#title")).to_have_text('<b>"new"</b>')
    open_menu(page, '<b>"new"</b>', "Delete")
    assert not titles(page)
    expect(page.locator("#welcome")).to_be_visible()
    assert not entries(page)
    toast(page).get_by_role("button", name="Undo").click()
    assert messages_of(page) == ["first", "first"]
    assert list(entries(page)) == ['<b>"new"</b>']
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Delete all conversations").click()
    assert not titles(page)
    assert not entries(page)


@pytest.mark.slow
def test_search(page: Page) -> None:
    for text in ("The giraffe of Mia", "Ten apples", "apples and a Giraffe?"):
        page.get_by_role("button", name="New conversation").click()
        talk(page, text)
    page.keyboard.press("Control+k")
    expect(page.get_by_label("Search the conversations")).to_be_focused()
    page.keyboard.type("GIRAFFE")
    assert titles(page) == ["apples and a Giraffe?", "The giraffe of Mia"]
    assert page.locator("#list mark").all_inner_texts() == ["Giraffe", "giraffe"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert messages_of(page)[0] == "The giraffe of Mia"
    page.get_by_label("Search the conversations").fill("zebra")
    expect(page.locator("#list-status")).to_have_text("Nothing found")
    page.keyboard.press("Escape")
    assert len(titles(page)) == 3


@pytest.mark.slow
def test_export_and_import(page: Page, browser: Browser, server: PageServer, tmp_path: Path) -> None:
    talk(page, "one **bold**", "two")
    files = {}
    for kind in ("Markdown", "JSON"):
        with page.expect_download() as download:
            open_menu(page, "one **bold**", f"Export as {kind}")
        files[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[kind])
    assert [path.name for path in files.values()] == ["one-bold.md", "one-bold.json"]
    turn = "## You\n\n{0}\n\n## nanochat\n\n{0}\n"
    expected = "# one **bold**\n\n" + turn.format("one **bold**") + "\n" + turn.format("two")
    assert files["Markdown"].read_text(encoding="utf-8") == expected
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    everything = tmp_path / download.value.suggested_filename
    download.value.save_as(everything)
    page.locator("#import-file").set_input_files([everything, files["JSON"]])
    expect(toast(page)).to_contain_text("Import: 1 already here; 1 already here.")
    with open_context(browser, server.address) as other:
        fresh = open_page(other, server.address)
        fresh.locator("#import-file").set_input_files(everything)
        expect(toast(fresh)).to_contain_text("1 imported")
        fresh.get_by_role("button", name="one **bold**", exact=True).click()
        assert messages_of(fresh) == ["one **bold**", "one bold", "two", "two"]
        content = json.loads(everything.read_text(encoding="utf-8"))
        content["conversations"][0]["messages"].pop()
        content["conversations"] += [{"version": 1, "id": "x"}, None, 7]
        everything.write_text(json.dumps(content), encoding="utf-8")
        fresh.locator("#import-file").set_input_files(everything)  # the same conversation, but other messages
        expect(toast(fresh)).to_contain_text("1 imported, 3 not readable")
        assert titles(fresh) == ["one **bold**"] * 2
        for text in ("", "{", "[]", '{"format": "nanochat conversations"}', "\x00" * 100):
            everything.write_text(text, encoding="utf-8")
            fresh.locator("#import-file").set_input_files(everything)
            expect(toast(fresh)).to_contain_text("nanochat-conversations.json is no file of exported conversations")


def test_a_reload_in_mid_answer(page: Page, server: PageServer) -> None:
    ask(page, "a slow answer, cut off")
    expect(page.locator(".assistant .text")).to_have_text("a slow answ")
    page.get_by_label("Your message", exact=True).fill("typed, not sent")
    page.reload()
    assert messages_of(page) == ["a slow answer, cut off", "a slow answ"]
    expect(page.locator("#log")).to_contain_text("Cut off: the page was closed before the reply was complete.")
    expect(page.get_by_label("Your message", exact=True)).to_have_value("typed, not sent")
    server.gate.set()
    page.get_by_role("button", name="Regenerate").click()
    assert last_reply(page) == "a slow answer, cut off"
    expect(page.locator("#log")).not_to_contain_text("Cut off")
    page.reload()
    assert messages_of(page) == ["a slow answer, cut off"] * 2
    expect(page.get_by_label("Your message", exact=True)).to_have_value("typed, not sent")


def test_a_reply_that_is_cut_off_can_be_continued(page: Page, server: PageServer) -> None:
    server.health = {"continues": True}
    server.faults = ["length"]
    page.reload()
    talk(page, "once upon a time")
    expect(page.locator("#log")).to_contain_text("Cut off: the reply reached its maximum length.")
    page.get_by_role("button", name="Continue").click()
    assert last_reply(page) == "once upon a timeonce upon a time"
    sent = server.requests[-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant"]
    expect(page.get_by_role("button", name="Continue")).to_have_count(0)
    server.faults = ["length"]
    talk(page, "cut", "later")
    page.get_by_role("button", name="Continue").click()
    assert last_reply(page) == "cutcut"
    expect(toast(page)).to_contain_text("The reply is continued in place of 2 later messages.")
    toast(page).get_by_role("button", name="Undo").click()
    assert messages_of(page)[2:] == ["cut", "cut", "later", "later"]


@pytest.mark.slow
def test_two_tabs_do_not_destroy_each_others_conversations(context: BrowserContext, server: PageServer) -> None:
    left, right = open_page(context, server.address), open_page(context, server.address)
    talk(left, "left")
    talk(right, "right")
    assert set(titles(left)) == set(titles(right)) == {"left", "right"}
    right.get_by_role("button", name="left", exact=True).click()
    talk(left, "more")
    expect(right.locator(".message")).to_have_count(4)  # it follows
    ask(left, "slow in the left tab")
    expect(left.locator(".assistant .text").last).to_have_text("slow in th")
    right.get_by_label("Edit your message").first.click()
    right.locator(".editor textarea").fill("changed by the right tab")
    right.keyboard.press("Enter")
    assert last_reply(right) == "changed by the right tab"
    server.gate.set()
    assert last_reply(left) == "slow in the left tab"
    expect(toast(left)).to_contain_text("kept as a copy")
    stored = entries(left)
    assert set(stored) == {"left", "left (copy)", "right"}
    assert [m["content"] for m in stored["left (copy)"]["messages"]][::2] == ["left", "more", "slow in the left tab"]
    assert [m["content"] for m in stored["left"]["messages"]] == ["changed by the right tab"] * 2


@pytest.mark.slow
def test_a_conversation_deleted_in_another_tab(context: BrowserContext, server: PageServer) -> None:
    left, right = open_page(context, server.address), open_page(context, server.address)
    ask(left, "a slow answer")
    expect(left.locator(".assistant .text")).to_have_text("a slow")
    open_menu(right, "a slow answer", "Delete")
    server.gate.set()
    assert last_reply(left) == "a slow answer"
    assert set(entries(left)) == {"a slow answer (copy)"}


VALID = {"version": 1, "revision": "r", "id": "abcdefgh", "title": "t", "created": 1, "updated": 2}
USER = {"role": "user", "content": "q"}
FOREIGN: list[Any] = [
    None,
    "{",
    "",
    7,
    [],
    {"version": 2, "id": "abcdefgh"},
    {**VALID, "messages": None},
    {**VALID, "messages": [{"role": "system", "content": "x"}]},
    {**VALID, "messages": [USER, USER]},
    {**VALID, "messages": [USER, {"role": "assistant", "content": {"a": 1}, "state": "complete"}]},
    {**VALID, "messages": [USER, {"role": "assistant", "content": "x", "state": "?"}]},
    {**VALID, "messages": [{"role": "user", "content": ["<img src=x onerror=alert(1)>"]}]},
    {**VALID, "id": "another-one", "messages": []},
    {**VALID, "updated": "yesterday", "messages": []},
]


@pytest.mark.slow
def test_foreign_and_damaged_entries_stay_as_they_are(page: Page) -> None:
    talk(page, "mine")
    texts = [value if isinstance(value, str) else json.dumps(value) for value in FOREIGN]
    page.evaluate(
        """(texts) => {
          texts.forEach((text, i) => localStorage.setItem(`${ENTRY}foreign${i}`, text));
          localStorage.setItem("nanochat.settings", "{");
          localStorage.setItem("other", "x");
        }""",
        texts,
    )
    page.reload()
    assert titles(page) == ["mine"]
    expect(page.locator("#list-status")).to_have_text(
        f"{len(FOREIGN)} stored entries cannot be read by this version of the page, and stay as they are."
    )
    talk(page, "still works")
    kept = page.evaluate(
        "(n) => Array.from({length: n}, (_, i) => localStorage.getItem(`${ENTRY}foreign${i}`))", len(texts)
    )
    assert kept == texts


def test_valid_entries_with_odd_values_are_shown(page: Page) -> None:
    odd = {
        **VALID,
        "title": "<script>window.hit = 1</script>\u202e",
        "created": -1,
        "updated": 1e300,
        "unknown": {"__proto__": {"x": 1}},
        "messages": [
            {"role": "user", "content": "<img src=x onerror='window.hit = 2'>", "weight": 0},
            {
                "role": "assistant",
                "content": [{"type": "python_output", "text": "<b>"}, {"type": "text", "text": "\ufffc0\ufffc"}],
                "state": "streaming",
                "tokens": "many",
                "sources": [None, {"document": "<i>", "headings": [1, "h"], "text": "t"}],
            },
        ],
    }
    page.evaluate("(text) => localStorage.setItem(`${ENTRY}abcdefgh`, text)", json.dumps(odd))
    page.reload()
    page.locator("#list .open").click()
    assert messages_of(page)[0] == "<img src=x onerror='window.hit = 2'>"
    expect(page.locator(".sources li")).to_have_count(1)
    assert page.evaluate("window.hit") is None
    talk(page, "next")


@pytest.mark.slow
def test_a_full_storage(page: Page) -> None:
    talk(page, "before")
    page.evaluate("""() => {
      for (let size = 5e6; size >= 1; size = Math.floor(size / 2)) {
        for (let i = 0; trySet(localStorage, `fill.${size}.${i}`, "x".repeat(size)); i++);
      }
    }""")
    talk(page, "after " + "x" * 300)
    expect(toast(page)).to_contain_text("This browser's storage is full: this conversation will be lost")
    talk(page, "and again")
    assert len(messages_of(page)) == 6
    assert len(entries(page)["before"]["messages"]) == 2  # as it was stored
    page.evaluate(
        "Object.keys(localStorage).filter((k) => k.startsWith('fill.')).forEach((k) => localStorage.removeItem(k))"
    )
    talk(page, "room")
    assert len(entries(page)["before"]["messages"]) == 8
    page.reload()
    assert len(messages_of(page)) == 8


def test_a_browser_without_storage(browser: Browser, server: PageServer) -> None:
    with open_context(browser, server.address) as context:
        context.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied'); }})")
        page = open_page(context, server.address)
        talk(page, "hello")
        assert titles(page) == ["hello"]
        expect(page.locator("#list-status")).to_contain_text("lost when it is closed")
