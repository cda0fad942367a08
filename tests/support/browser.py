"""The chat page in Chromium: a context that fails on script errors, and what a user does there.

Needs Chromium: dev/test.sh installs Debian's if it can, and $CHROMIUM names another.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ADVICE = "`apt install chromium` (Debian), or name another Chromium in $CHROMIUM"
TIMEOUT = 60  # seconds, for a busy machine
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium until the block is left. Skips the test if there is none."""
    if CHROMIUM is None:
        pytest.skip(f"no Chromium on the PATH: {ADVICE}")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # needed as root in a container
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        except Error as error:
            pytest.skip(f"{CHROMIUM} does not start ({error.message.splitlines()[0]}): {ADVICE}")
        expect.set_options(timeout=TIMEOUT * 1000)
        yield browser
        browser.close()


@contextmanager
def open_context(browser: Browser, address: str, **options: Any) -> Iterator[BrowserContext]:
    """A browser without history. At the end there must have been no script error and no request to another site."""
    context = browser.new_context(**{"viewport": {"width": 1000, "height": 700}, **options})
    context.set_default_timeout(TIMEOUT * 1000)
    errors: list[str] = []
    context.on("weberror", lambda error: errors.append(str(error.error)))
    context.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else errors.append(r.url))
    yield context
    for page in context.pages:
        page.evaluate("1")  # what has failed until here has arrived
    found = list(errors)
    context.close()  # ends what pages still wait for, which may fail
    assert not found, found


def open_page(context: BrowserContext, address: str) -> Page:
    """The page in a tab of its own, when it has heard from the server."""
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#model")).to_have_text("scripted")
    return page


def ask(page: Page, text: str) -> None:
    """Send a message."""
    page.get_by_label("Your message", exact=True).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def last_reply(page: Page) -> str:
    """Wait until the last reply is complete, and return its text."""
    reply = page.locator(".assistant").last
    expect(reply).to_have_attribute("aria-busy", "false")
    return reply.locator(".text").inner_text()


def messages_of(page: Page) -> list[str]:
    """The texts of all messages that are shown."""
    return page.locator(".message .text").all_inner_texts()


def titles(page: Page) -> list[str]:
    """The titles in the list of conversations, from the top."""
    return page.locator("#list .open bdi").all_inner_texts()


def open_menu(page: Page, title: str, item: str) -> None:
    """Choose from the menu of a conversation in the list."""
    page.get_by_role("button", name=f"More about “{title}”").click()
    page.locator("#menu").get_by_role("button", name=item).click()
