"""Secrets: what is on the hub, what is hidden, and that no request is made in a place that this file does not know."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError, print0
from nanochat.reporting.schema import log_section
from nanochat.system.console import Output
from nanochat.system.credentials import has_password, hide_credentials, hub_token, is_on_hub, protect_hub_token
from tests.support.fileserver import FileServer, running
from tests.support.sources import imports, sources

SECRET = "hf_secret_of_the_user"


@pytest.mark.parametrize(
    ("url", "endpoint", "expected"),
    [
        ("https://huggingface.co/datasets/a/resolve/main/b", None, True),
        ("https://HuggingFace.co:443/a", None, True),
        ("http://huggingface.co/a", None, False),
        ("https://huggingface.co:8443/a", None, False),
        ("https://huggingface.co.example.org/a", None, False),
        ("https://user@huggingface.co/a", None, False),
        ("https://huggingface.co@example.org/a", None, False),
        ("https://example.org/huggingface.co", None, False),
        ("https://example.org\\@huggingface.co/", None, False),
        ("https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip", None, False),
        ("https://mirror.example.org/a", "https://mirror.example.org/", True),
        ("https://mirror.example.org:444/a", "https://mirror.example.org:444", True),
        ("https://huggingface.co/a", "https://mirror.example.org", False),
        ("http://mirror.example.org/a", "http://mirror.example.org", False),
        ("http://127.0.0.1/a", "http://127.0.0.1", False),
        ("https://[bad/a", None, False),
        ("https://huggingface.co:port/a", None, False),
        ("https://a", "no address", False),
        ("", "", False),
    ],
)
def test_addresses_of_the_hub(monkeypatch: pytest.MonkeyPatch, url: str, endpoint: str | None, expected: bool) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    if endpoint is not None:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert is_on_hub(url) == expected
    assert hub_token(url) == (SECRET if expected else None)


def test_passwords_of_addresses() -> None:
    assert has_password("https://me:pw@host/")
    assert has_password("http://me@host")
    assert not has_password("https://host/@a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://me:pw@host:8/a, and ftp://me@b", "see https://***@host:8/a, and ftp://***@b"),
        ("https://me:p@w@host/a", "https://***@host/a"),
        ("https://host/a@b?c=d@e#f", "https://host/a@b?c=d@e#f"),
        ("s3://b?X-Amz-Signature=00ff&X-Amz-Date=2026", "s3://b?X-Amz-Signature=***&X-Amz-Date=2026"),
        ("http://h/?api_key=k&a=1&Token=t'", "http://h/?api_key=***&a=1&Token=***'"),
        (f"Incorrect key {SECRET}, and again: {SECRET}.", "Incorrect key ***, and again: ***."),
        ("nothing of importance: 50% me@host", "nothing of importance: 50% me@host"),
    ],
)
def test_hiding(monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("PAD_TOKEN", "of")  # too short for a secret
    assert hide_credentials(text) == expected


@given(st.text(max_size=60))
def test_hiding_changes_nothing_else(text: str) -> None:
    if "://" not in text:
        assert hide_credentials(text) == text


@pytest.mark.usefixtures("base_dir")
@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"]
)
def test_no_secret_leaves_in_a_message_or_a_report(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither through an error, nor through a printed line, nor through any text of the report."""
    monkeypatch.setenv(name, SECRET)
    monkeypatch.setattr("sys.stdout", Output(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))
    leaks = [f"Authorization: Bearer {SECRET}", f"https://me:{SECRET}@host/a.zip"]
    assert SECRET not in str(UserError(leaks[0])) + str(UserError(leaks[1]))
    print0(*leaks, Path(SECRET))
    sys.stdout.flush()
    printed = sys.stdout.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "https://***@host/a.zip ***" in printed
    assert SECRET not in printed
    section = {"settings": {"eval_bundle": leaks[1]}, "notes": leaks, "environment": {leaks[0]: leaks[1]}}
    assert SECRET not in log_section("base_eval", section).read_text(encoding="utf-8")


# --- places that make requests ----------------------------------------------------------------------------------------

# Module that calls a library which may send a secret -> the function that guards it.
REQUESTING = {
    "nanochat.data.download": "hub_token",
    "nanochat.eval.hf_causal": "protect_hub_token",
    "tasks.hub": "protect_hub_token",
    "scripts.export_hf": "is_on_hub",
    "nanochat.conversations.chat_client": "is_safe_address",
    "nanochat.inference.llama_cpp": "trust_env = False",  # of this process's own server, at a loopback address
    "dev.bench_engine": "trust_env = False",  # likewise
    "dev.load_server": 'not in ("localhost", "127.0.0.1", "::1")',  # no other address is asked
    "nanochat.training.log": "start_wandb",  # the library keeps its key, and sends it to its own server
}
SENDING = {"from_pretrained", "load_dataset", "HfApi", "urlopen", "urlretrieve", "HTTPConnection", "HTTPSConnection"}
LIBRARIES = {"requests", "httpx", "aiohttp", "wandb", "huggingface_hub", "datasets"}


def test_every_place_that_sends_requests_is_known() -> None:
    """A new one belongs to the list above, with its guard."""
    found = set()
    for source in sources():
        if not source.module.startswith("tests."):
            names = {node.attr for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)}
            names |= {node.id for node in ast.walk(source.tree) if isinstance(node, ast.Name)}
            modules = {name.split(".")[0] for name, _ in imports(source)}
            if names & SENDING or modules & LIBRARIES:
                found.add(source.module)
                assert source.module in REQUESTING, f"{source.module} may send a secret: guard it, and list it here"
                assert REQUESTING[source.module] in source.text
    assert found == set(REQUESTING)


def test_secrets_are_read_in_one_place() -> None:
    readers = [
        source.module
        for source in sources()
        if not source.module.startswith("tests.")
        and any(
            isinstance(node, ast.Constant) and node.value in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
            for node in ast.walk(source.tree)
        )
    ]
    assert readers == ["nanochat.data.download", "nanochat.system.credentials"]  # the first one only mentions it


def test_the_libraries_of_the_hub_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = SimpleNamespace(HF_HUB_DISABLE_IMPLICIT_TOKEN=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org")
    protect_hub_token()
    assert not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example.org")
    protect_hub_token()
    assert constants.HF_HUB_DISABLE_IMPLICIT_TOKEN


ASK_HUB = """
import contextlib, sys
from nanochat.system.credentials import protect_hub_token
if sys.argv[1] == "protected":
    protect_hub_token()
from huggingface_hub import HfApi
with contextlib.suppress(Exception):  # the server has no such page
    HfApi().dataset_info("owner/name")
"""


@pytest.mark.slow
def test_the_library_sends_no_token_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would, without `protect_hub_token`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", raising=False)
    sent = {}
    for case in ("protected", "not protected"):
        with running(FileServer()) as server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            subprocess.run([sys.executable, "-c", ASK_HUB, case], check=True, timeout=120)
        assert server.authorizations
        sent[case] = f"Bearer {SECRET}" in server.authorizations
    assert sent == {"protected": False, "not protected": True}


@pytest.mark.parametrize("run", ["a", "a:", "://", "?token", "&a=", "?sig=", "@", "a@", ":", "http://a"])
def test_long_texts_without_credentials(run: str) -> None:
    """Everything printed goes through this function, so that it takes time in proportion to the text."""
    for text in ("://" + run * 200_000, "?" + run * 200_000 + "://"):
        assert len(hide_credentials(text)) <= len(text) + 200_000 * 3
