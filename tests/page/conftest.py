"""Fixtures of the tests of the chat page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.browser import open_browser


@pytest.fixture(scope="module")  # a browser of the package would hold its event loop during other tests
def browser() -> Iterator[Browser]:
    """Chromium for the tests of this folder."""
    with open_browser() as browser:
        yield browser
