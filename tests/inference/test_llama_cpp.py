"""Files in llama.cpp itself: ids, logits, greedy completions, its chat endpoint, and tool calls."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.inference.llama_cpp import TOKENS_A_REQUEST, LlamaCppEngine
from nanochat.inference.tool_use import RowState, Tool
from nanochat.layers.sampling_params import SamplingParams
from tests.support.exports import TOKENIZER, VOCAB_SIZE, loud_model, random_prompt
from tests.support.gguf import SHAPES, digits_tokenizer, log_probs, running, write
from tests.support.models import constant_model

pytestmark = pytest.mark.usefixtures("one_thread")
END = TOKENIZER.encode_special("<|assistant_end|>")


@pytest.fixture(scope="module", params=["apertus", "gemma3"])
def loud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A model with grouped heads, and its float32 file in llama.cpp."""
    model = loud_model(SHAPES["grouped"])
    file = write(tmp_path_factory.mktemp("gguf") / "m.gguf", model, form=request.param)
    with running(file) as engine:
        yield model, engine, request.param


def tokens_of(engine: Engine | LlamaCppEngine, prompt: list[int], **params: object) -> list[int]:
    """Return the completion of a prompt."""
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 32, **params})  # type: ignore[arg-type]
    return [column[0] for column, _ in engine.stream(prompt, sampling)]


@torch.inference_mode()
def test_logits(loud: tuple) -> None:
    """Log-probabilities of all tokens, after prompts of several lengths."""
    model, engine, form = loud
    for length in (1, 2, 7, 40, 80):
        prompt = random_prompt(length, seed=length)
        hidden = model.hidden_states(prompt)[0, -1]
        logits = model.logits(hidden) if form == "gemma3" else model.head(hidden)[:VOCAB_SIZE]
        ours = logits.double().log_softmax(-1)
        theirs = torch.tensor(log_probs(engine, prompt[0].tolist(), VOCAB_SIZE)).double().log_softmax(-1)
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
        assert float((ours.exp() * (ours - theirs)).sum()) < 1e-9  # the divergence of the two distributions


def test_greedy_completions_until_the_context_is_full(loud: tuple) -> None:
    model, engine, _ = loud
    ours = Engine(model, TOKENIZER)
    for seed in range(5):
        prompt = random_prompt(3 + 8 * seed, seed)[0].tolist()
        completion = tokens_of(ours, prompt, max_tokens=None)
        assert tokens_of(engine, prompt, max_tokens=None) == completion
        assert len(prompt) + len(completion) == 96 or completion[-1] in ours.end_ids


def test_sampling_draws_from_the_same_distribution(loud: tuple) -> None:
    """Among the two most likely tokens, each appears about as often as its probability says."""
    model, engine, form = loud
    prompt = random_prompt(9)
    with torch.inference_mode():
        hidden = model.hidden_states(prompt)[0, -1]
        logits = model.logits(hidden) if form == "gemma3" else model.head(hidden)[:VOCAB_SIZE]
    best = (logits / 3.0).topk(2)
    share = float(best.values.softmax(-1)[0])
    drawn = [
        tokens_of(engine, prompt[0].tolist(), max_tokens=1, temperature=3.0, top_k=2, seed=seed)[0]
        for seed in range(200)
    ]
    assert set(drawn) <= set(best.indices.tolist())
    count = drawn.count(int(best.indices[0]))
    assert abs(count - 200 * share) < 4 * (200 * share * (1 - share)) ** 0.5 + 1  # four standard deviations


# --- text -------------------------------------------------------------------------------------------------------------


def odd_texts(rng: random.Random, count: int) -> Iterator[str]:
    """Yield texts of digits, letters, marks, white space and other scripts, mixed at random."""
    alphabets = [
        "0123456789",
        "abcXYZ'",
        " \n\t\r\u00a0",
        "\u00e9\u0301\u200b",
        "\u4f60\u597d\u0663\u2163\u00bd",
        "!?.,-+*/",
        "'sS\u017f",
    ]
    for _ in range(count):
        yield "".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randrange(1, 40)))


@pytest.mark.slow
@pytest.mark.parametrize("digits", [1, 3])
def test_ids_of_all_code_points_and_of_odd_texts(digits: int, tmp_path: Path) -> None:
    """llama.cpp gives the same ids, each character next to letters, digits, spaces and marks."""
    tokenizer = digits_tokenizer(digits)
    model = constant_model(96, 3, tokenizer.get_vocab_size())
    assigned = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Co", "Cs")]
    texts = ["".join(f"a{c}1{c}2 {c}{c}. \n{c}" for c in assigned[i : i + 500]) for i in range(0, len(assigned), 500)]
    texts += list(odd_texts(random.Random(digits), 300))
    with running(write(tmp_path / "m.gguf", model, tokenizer)) as engine:
        other = [
            text
            for text, ids in zip(texts, tokenizer.encode(texts), strict=True)
            if engine.post("/tokenize", {"content": text, "parse_special": False}).json()["tokens"] != ids
        ]
    assert not other, [text[:80] for text in other[:5]]


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How are you?\n"},
    {"role": "assistant", "content": "Fine, 12 times."},
    {"role": "user", "content": "And été?"},
]


def test_the_chat_endpoint(loud: tuple) -> None:
    """llama.cpp renders a conversation to the same ids, and answers with the same text."""
    model, engine, _ = loud
    for messages in (CHAT[1:2], CHAT[:2], CHAT):
        prompt = TOKENIZER.render_for_completion({"messages": messages})
        body = {"messages": messages, "temperature": 0, "max_tokens": 20}
        answer = engine.post("/v1/chat/completions", body).json()
        text = engine.post("/apply-template", {"messages": messages}).json()["prompt"]
        tokens = engine.post("/tokenize", {"content": text, "parse_special": True, "add_special": True}).json()[
            "tokens"
        ]
        assert tokens == prompt
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        ours = tokens_of(Engine(model, TOKENIZER), prompt, max_tokens=20)
        names = set(TOKENIZER.special_tokens.values())
        text = TOKENIZER.decode([token for token in ours if token not in names])
        content = answer["choices"][0]["message"]["content"]
        # The server leaves out bytes that are not UTF-8.
        assert content.encode("ascii", "ignore").strip() == text.encode("ascii", "ignore").strip()
        assert answer["choices"][0]["finish_reason"] == ("stop" if ours[-1] in engine.tool.end_ids else "length")


@pytest.mark.parametrize("name", ["<|assistant_end|>", "<|bos|>", "<|python_end|>"])
def test_an_answer_ends_at_these_tokens(name: str, tmp_path: Path) -> None:
    model = constant_model(96, TOKENIZER.encode_special(name), VOCAB_SIZE, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
    with running(write(tmp_path / "m.gguf", model)) as engine:
        answer = engine.post("/v1/chat/completions", {"messages": CHAT[1:2], "max_tokens": 9}).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 1
    assert answer["choices"][0]["message"]["content"] == ""


# --- the engine's interface -------------------------------------------------------------------------------------------


@pytest.fixture
def scripted() -> LlamaCppEngine:
    """An engine without a server, whose samples a test chooses with `script`."""
    engine = LlamaCppEngine.__new__(LlamaCppEngine)
    engine.tokenizer, engine.context_len = TOKENIZER, 96
    engine.tool = Tool(TOKENIZER)
    return engine


def script(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, reply: list[int], prompt_len: int) -> list[int]:
    """Let the engine sample `reply`, and return the numbers of tokens that each request may have."""
    counts: list[int] = []

    def sample(tokens: list[int], count: int, _params: SamplingParams, _seed: int) -> list[int]:
        counts.append(count)
        group = reply[len(tokens) - prompt_len :][:count]
        stops = {*engine.tool.end_ids, engine.tool.call_end}  # after which the server stops
        return group[: next((i + 1 for i, token in enumerate(group) if token in stops), count)]

    monkeypatch.setattr(engine, "_sample", sample)
    return counts


def test_tool_calls_are_computed_and_continued(scripted: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of a call is forced, and the reply goes on after it, as in nanochat's engine."""
    call = [{"type": "text", "text": "So "}, {"type": "python", "text": "6*7"}]
    whole = [*call, {"type": "python_output", "text": "42"}, {"type": "text", "text": " is it."}]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": whole}]
    ids, mask = TOKENIZER.render_conversation({"messages": messages})
    start = ids.index(TOKENIZER.encode_special("<|assistant_start|>")) + 1
    prompt, reply = ids[:start], ids[start:]
    counts = script(scripted, monkeypatch, reply, len(prompt))
    columns = list(scripted.stream(prompt, SamplingParams(0.0)))
    assert [column[0] for column, _ in columns] == reply
    assert [m[0] for _, m in columns] == mask[start:]
    assert max(counts) <= TOKENS_A_REQUEST


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_length_limit_holds_within_results(
    limit: int, scripted: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = TOKENIZER.encode_special
    reply = [special("<|python_start|>"), *TOKENIZER.encode("12*12"), special("<|python_end|>")]
    result = [special("<|output_start|>"), *TOKENIZER.encode("144"), special("<|output_end|>"), END]
    script(scripted, monkeypatch, reply + result, 1)
    columns = list(scripted.stream([0], SamplingParams(0.0, max_tokens=limit)))
    assert [column[0] for column, _ in columns] == (reply + result)[:limit]


def test_an_end_of_a_call_without_its_start_calls_nothing(
    scripted: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = [5, scripted.tool.call_end, 6, END]
    script(scripted, monkeypatch, reply, 1)
    assert tokens_of(scripted, [0]) == reply


def test_a_server_that_gives_nothing_ends_the_reply(scripted: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    script(scripted, monkeypatch, [], 1)
    assert tokens_of(scripted, [0]) == []


def test_prompts_that_do_not_fit(scripted: LlamaCppEngine) -> None:
    for prompt in ([], [1] * 97):
        with pytest.raises(UserError, match=rf"the prompt has {len(prompt)} tokens: must have 1 to 96"):
            next(scripted.stream(prompt, SamplingParams()))
    assert list(scripted.stream([1] * 96, SamplingParams())) == []


def test_the_rest_of_a_row() -> None:
    row = RowState(Tool(TOKENIZER), 3)
    assert (row.num_left, row.has_forced_tokens) == (3, False)
    row.append(5)
    assert row.num_left == 2


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match=r"needs the package xllamacpp .*'\.\[llama-cpp\]'"):
        LlamaCppEngine(tmp_path / "m.gguf", TOKENIZER, 8)


def test_a_file_that_llama_cpp_cannot_load(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
    (tmp_path / "m.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(UserError, match=r"llama\.cpp cannot load .*m\.gguf"):
        LlamaCppEngine(tmp_path / "m.gguf", TOKENIZER, 8)


def test_a_refused_request_is_one_line(loud: tuple) -> None:
    _, engine, _ = loud
    with pytest.raises(UserError, match=r"llama\.cpp refused the request \(4\d\d\)"):
        engine.post("/completion", {"prompt": {"no": "prompt"}})
