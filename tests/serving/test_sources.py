"""Sources of replies: the passage before the question, the passages next to the answer, and when there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.conversations.refusals import is_refusal
from nanochat.layers.sampling_params import SamplingParams
from nanochat.passages import index as passages_index
from nanochat.passages.grounding import grounded_question
from nanochat.quoting.weights import default_weights
from nanochat.serving.sources import DocumentSources, Source, SourcesFault, check_sources, open_sources
from tests.support.chat_server import chat_events, get, post_chat, serving
from tests.support.documents import HOSTILE_NAME, HOSTILE_TEXT, make_documents, make_index
from tests.support.scripted_engine import ScriptedEngine, assistant, last_user_text, reply_ids, user

PARAMS = SamplingParams(max_tokens=16)
BREW = "How do I brew tea?"


@pytest.fixture(params=[True, False], ids=["grounded", "plain"])
def sources(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DocumentSources]:
    sources = DocumentSources(make_index(tmp_path), request.param)
    yield sources
    sources.close()


def prepare(sources: DocumentSources, *messages: Any, context: int = 2048) -> tuple[str, list[Source]]:
    """Prepare a reply. Returns the last message of the prompt, and the sources."""
    engine: Any = ScriptedEngine(lambda _: reply_ids("."), context)
    prompt, found, _ = sources.prepare(engine, list(messages), PARAMS)
    return last_user_text(prompt.tokens), found


def test_the_best_passages_stand_before_the_question(sources: DocumentSources) -> None:
    text, found = prepare(sources, user(BREW))
    assert found[0].passage.text.startswith("Boil water")
    assert [source.is_given for source in found] == [sources.is_grounded] * len(found)
    passages = [source.passage for source in found]
    assert text == (grounded_question(passages, BREW) if sources.is_grounded else BREW)


def test_without_a_passage_the_question_is_plain(sources: DocumentSources) -> None:
    assert prepare(sources, user("giraffe?")) == ("giraffe?", [])


def test_a_passage_that_does_not_fit_is_shortened_or_left_out(sources: DocumentSources) -> None:
    question = "Who stirs the pot of coffee slowly?"
    lengths = [len(prepare(sources, user(question), context=context)[0]) for context in (2048, 440, 250, 100)]
    assert lengths[-1] == len(question)
    assert (lengths[0] > lengths[1] > lengths[2] > lengths[3]) == sources.is_grounded
    _, found = prepare(sources, user(question), context=100)
    assert found
    assert not any(source.is_given for source in found)
    with pytest.raises(UserError, match="the message is too long"):
        prepare(sources, user(question * 9), context=100)


def test_a_question_that_refers_back_is_searched_with_the_one_before(sources: DocumentSources) -> None:
    history = [user("Tell me about coffee."), assistant("Grind the beans.")]
    text, found = prepare(sources, *history, user("And how long does it take?"))
    assert found[0].passage.document == "drinks/coffee.md"
    assert text.endswith("And how long does it take?")
    assert prepare(sources, *history, user("giraffe?")) == ("giraffe?", [])


def test_the_sources_of_an_answer(sources: DocumentSources) -> None:
    messages = [user("What keeps people awake?")]
    _, known = prepare(sources, *messages)
    parts = [{"type": "python", "text": "wombat"}, {"type": "text", "text": "Ngozi says: coffee, not tea from China."}]
    for answer in (parts, parts[1]["text"]):
        found = sources.find(messages, answer, known)
        assert {source.passage.document for source in found} == {"drinks/coffee.md", "drinks/tea.md"}
        assert len(found) == len({source.passage.text for source in found}) >= 3
        read = {source.passage.text for source in known if source.is_given}
        assert {source.passage.text for source in found if source.is_given} == read
    assert sources.find([user("?")], "!", []) == []


def test_what_is_shown_of_a_source(sources: DocumentSources) -> None:
    [source] = sources.find([user("wombat")], "", [])
    assert source.title.isprintable()
    assert "\\x1b[2J\\u202e" in source.title
    assert source.as_json()["document"] == HOSTILE_NAME
    assert source.as_json().keys() == {"document", "headings", "text", "score", "given", "quoted"}
    assert sources.find([user("Boil water")], "", [])[0].title == "drinks/tea.md: Tea / How to brew tea"


def test_a_fault_while_searching(sources: DocumentSources) -> None:
    sources.close()
    with pytest.raises(SourcesFault, match=r"passages\.sqlite cannot be read"):
        prepare(sources, user("tea"))


# Quotations


@pytest.fixture
def quoting(tmp_path: Path) -> Iterator[DocumentSources]:
    quoting = DocumentSources(make_index(tmp_path), True, default_weights())
    yield quoting
    quoting.close()


def test_a_reply_is_a_quotation_a_refusal_or_the_models_own(quoting: DocumentSources) -> None:
    engine: Any = ScriptedEngine(lambda _: reply_ids("."), 2048)
    prompt, found, reply = quoting.prepare(engine, [user("What is tea?")], PARAMS)
    assert reply == "Tea is a drink made of leaves."
    assert last_user_text(prompt.tokens) == "What is tea?"
    assert [source.is_quoted for source in found] == [True] + [False] * (len(found) - 1)
    assert reply in found[0].passage.text
    again = quoting.find([user("What is tea?")], reply, found)
    assert again[0] == found[0]
    assert len(again) == len({source.passage.text for source in again}) <= 3
    _, found, reply = quoting.prepare(engine, [user("What is a glacier in tea?")], PARAMS)
    assert is_refusal(reply or "")
    assert not any(source.is_quoted for source in found)
    assert quoting.prepare(engine, [user("Who are you?")], PARAMS).reply is None
    assert quoting.prepare(engine, [user("What is tea?")], PARAMS, can_quote=False).reply is None
    quoting.index.close()
    with pytest.raises(SourcesFault):
        quoting._choose("What is tea?", "", default_weights())


def no_model(_: list[int]) -> list[int]:
    raise AssertionError("a quotation needs no model")


def test_the_server_quotes(quoting: DocumentSources) -> None:
    with serving(ScriptedEngine(no_model), sources=quoting) as (address, _):
        first, *chunks, done = chat_events(address, messages=[user("What is tea?")])
        cut = chat_events(address, messages=[user("What is tea?")], max_tokens=3)
        stats = get(address, "/stats").json()
    assert first["sources"][0]["quoted"] is done["sources"][0]["quoted"] is True
    assert "".join(chunk["text"] for chunk in chunks) == "Tea is a drink made of leaves."
    assert (done["finish"], done["tokens_per_second"], cut[-1]["finish"]) == ("stop", None, "length")
    assert cut[-1]["tokens"] == 3
    assert stats["answered"] == 2


def test_a_reply_that_is_continued_is_no_quotation(quoting: DocumentSources) -> None:
    with serving(ScriptedEngine(lambda _: reply_ids(" leaves.")), sources=quoting) as (address, _):
        *events, _ = chat_events(address, messages=[user("What is tea?"), assistant("Made of")])
    assert "".join(event["text"] for event in events) == " leaves."


def test_a_chat_that_quotes_needs_sound_weights(base_dir: Path) -> None:
    make_index(base_dir / "documents").close()
    for quote, grounded in ((False, True), (True, False)):
        opened = open_sources("auto", grounded, {}, quote)
        assert opened is not None
        opened.close()
        assert opened.weights is None
    opened = open_sources("auto", None, {"grounded": True}, True)
    assert opened is not None
    opened.close()
    assert opened.weights == default_weights()
    (base_dir / "documents" / "quoting.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"quoting\.json"):
        open_sources("auto", True, {}, True)


# In the web server


def test_the_events_of_a_reply(sources: DocumentSources) -> None:
    engine = ScriptedEngine(lambda _: reply_ids("It is from China."), context=2048)
    with serving(engine, sources=sources) as (address, _):
        first, *chunks, done = chat_events(address, messages=[user(BREW)])
        names = set(get(address, "/stats").json())
        assert get(address, "/health").json()["examples"] == sources.examples
    assert first["kind"] == "sources"
    assert first["sources"][0]["text"].startswith("Boil water")
    assert {chunk["kind"] for chunk in chunks} == {"text"}
    assert done["kind"] == "done"
    texts = [source["text"] for source in done["sources"]]
    assert any("came from China" in text for text in texts)  # found by the answer
    assert done["sources"][0]["given"] == first["sources"][0]["given"] == sources.is_grounded
    assert last_user_text(engine.calls[0][0]).startswith("> Tea / How to brew tea\n") == sources.is_grounded
    with serving(engine) as (address, _):
        assert set(get(address, "/stats").json()) == names
        assert get(address, "/health").json()["examples"] == []
        assert [event["kind"] for event in chat_events(address) if "sources" in event] == []


def test_hostile_texts_are_json(sources: DocumentSources) -> None:
    with serving(ScriptedEngine(lambda _: reply_ids("Yes.")), sources=sources) as (address, _):
        *_, done = chat_events(address, messages=[user("wombat")])
    assert done["sources"][0]["document"] == HOSTILE_NAME
    assert done["sources"][0]["text"] == HOSTILE_TEXT


def test_documents_that_cannot_be_searched(sources: DocumentSources, caplog: pytest.LogCaptureFixture) -> None:
    def script(prompt: list[int]) -> list[int]:
        if "breaks" in last_user_text(prompt):
            sources.index.close()
        return reply_ids("So.")

    told = "the documents cannot be searched: the server's log has the reason"
    with serving(ScriptedEngine(script), sources=sources) as (address, _):
        *_, last = chat_events(address, messages=[user("this breaks")])
        assert last == {"kind": "error", "text": told}
        response = post_chat(address, json={"messages": [user("secret")]})
        assert (response.status_code, response.json()) == (500, {"error": told})
    assert "passages.sqlite cannot be read" in caplog.text
    assert "secret" not in caplog.text


# Opening


def test_choices(base_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {"grounded": True}
    assert open_sources("auto", None, {}) is None
    assert capsys.readouterr().out == ""
    assert open_sources("auto", None, trained) is None
    assert "trained with passages before the questions, and gets none" in capsys.readouterr().out
    for choice, grounded in (("on", None), ("auto", True)):
        with pytest.raises(UserError, match=r"passages\.sqlite is missing: run python -m scripts\.index_documents"):
            open_sources(choice, grounded, {})
    make_index(base_dir / "documents").close()
    for grounded, meta, expected in (
        (None, {}, False),
        (None, trained, True),
        (False, trained, False),
        (True, {}, True),
    ):
        opened = open_sources("auto", grounded, meta)
        assert opened is not None
        assert opened.is_grounded == expected
        assert opened.examples == ['Tell me about "Coffee".']
        opened.close()
    assert open_sources("off", None, trained) is None
    monkeypatch.setattr(passages_index, "SCHEMA", ("", "CREATE VIRTUAL TABLE terms USING fts99 (text)"))
    with pytest.raises(UserError, match="has no FTS5"):
        open_sources("on", None, {})
    assert open_sources("auto", None, {}) is None
    assert "NOTICE: no sources of answers are shown: SQLite" in capsys.readouterr().out


def test_an_index_of_other_documents_is_refused(base_dir: Path) -> None:
    make_index(base_dir / "documents").close()
    with open(make_documents(base_dir / "documents"), "ab") as file:
        file.write(b"\n")
    with pytest.raises(
        UserError, match=r"belongs to other documents .*: run python .*, or chat without sources: --sources=off"
    ):
        open_sources("auto", None, {})


def test_settings_that_contradict_each_other() -> None:
    check_sources("off", None)
    check_sources("on", True)
    with pytest.raises(UserError, match="grounded needs the passages of the documents, but sources is off"):
        check_sources("off", True)
