"""Mixtures of midtraining and fine-tuning: the default tables, data sets that are missing, the user's own files."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation
from scripts import chat_sft, mid_train
from tasks.common import Task, TaskMixture
from tasks.mixture import MAX_VAL_ROWS, MIXTURES, build_mixture, format_description, read_mixture
from tasks.registry import UNBOUNDED_TASKS, get_task
from tests.support.refusals import refusal

STAGES = ("mid", "sft")


def content_of(conversation: Conversation) -> str:
    return json.dumps(conversation.get("messages") or conversation["text"])


def count_contents(task: Task) -> Counter[str]:
    return Counter(content_of(conversation) for conversation in task)


def write_jsonl(path: Path, count: int, topic: str = "own") -> Path:
    rows = [[{"role": "user", "content": f"{topic} {i}"}, {"role": "assistant", "content": "A"}] for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mixture.toml"
    path.write_text(text, encoding="utf-8")
    return path


SMALL_MIXTURE = """
[[entry]]
task = "SpellingBee"
rows = 30
options = {quoted = true}

[[entry]]
task = "identity"
rows = 40
epochs = 2
"""


# --- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("base_dir")
@pytest.mark.parametrize("stage", STAGES)
def test_the_world_mixture_needs_no_data_set(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOCHAT_HUB_DIR", raising=False)
    monkeypatch.setattr("tasks.hub._load_from_hub", None)
    train, val, description = build_mixture(stage, "world")
    expected = {entry.task: entry for entry in MIXTURES[stage, "world"]}
    assert [entry["name"] for entry in description] == list(expected)
    for entry in description:
        assert entry["rows"] >= 0.95 * (expected[entry["name"]].rows or 0)
        assert 0 < entry["val_rows"] <= MAX_VAL_ROWS
    assert len(train) == sum(entry["rows"] * entry["epochs"] for entry in description)
    assert len(val) == sum(entry["val_rows"] for entry in description)
    assert "HardProblems" not in expected, "HardProblems is left to RL"


@pytest.mark.usefixtures("base_dir")
def test_stages_have_different_generated_rows() -> None:
    contents = {}
    for stage in STAGES:
        train = build_mixture(stage, "world")[0]
        assert isinstance(train, TaskMixture)
        contents[stage] = {
            task.name: {content_of(task[i]) for i in range(300)} for task in train.tasks if task.name in UNBOUNDED_TASKS
        }
    assert set(contents["mid"]) & set(contents["sft"]) >= {"WordProblems", "SpellingBee", "Facts"}
    for name in ("WordProblems", "SpellingBee", "Facts"):
        assert len(contents["mid"][name] & contents["sft"][name]) < 20, name


@pytest.mark.usefixtures("base_dir", "hub_data")
def test_the_web_mixture_is_as_specified() -> None:
    table = {stage: {entry.task: (entry.rows, entry.epochs) for entry in MIXTURES[stage, "web"]} for stage in STAGES}
    assert table["mid"] == {
        "SmolTalk": (460_000, 1), "MMLU": (100_000, 1), "GSM8K": (None, 1), "Identity": (None, 2),
        "SimpleSpelling": (200_000, 1), "SpellingBee": (80_000, 1),
    }  # fmt: skip
    assert table["sft"] == {
        "ARC-Easy": (None, 1), "ARC-Challenge": (None, 1), "GSM8K": (None, 1), "SmolTalk": (10_000, 1),
        "Identity": (1_000, 1), "SimpleSpelling": (300, 1), "SpellingBee": (300, 1),
    }  # fmt: skip
    _, _, mid = build_mixture("mid", "web")
    rows = {entry["name"]: entry["rows"] for entry in mid}
    assert rows == {
        "SmolTalk": 14_728, "MMLU": 6_175, "GSM8K": 7_473, "SimpleSpelling": 200_000, "SpellingBee": 80_000
    }  # fmt: skip
    train, val, sft = build_mixture("sft", "web")
    rows = {entry["name"]: entry["rows"] for entry in sft}
    assert rows == {
        "ARC-Easy": 2_251, "ARC-Challenge": 1_119, "GSM8K": 7_473, "SmolTalk": 10_000, "SimpleSpelling": 300,
        "SpellingBee": 300,
    }  # fmt: skip
    assert len(train) == sum(rows.values())
    assert len(val) == sum(entry["val_rows"] for entry in sft)


@pytest.mark.usefixtures("hub_data")
def test_identity_has_two_epochs_in_midtraining(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, description = build_mixture("sft", "web")
    assert "Identity" not in [entry["name"] for entry in description]
    assert "identity_conversations.jsonl: Identity is left out" in capsys.readouterr().out
    write_jsonl(base_dir / "identity_conversations.jsonl", 40, "who")
    train, val, description = build_mixture("mid", "web")
    entry = next(entry for entry in description if entry["name"] == "Identity")
    assert (entry["rows"], entry["epochs"], entry["val_rows"]) == (38, 2, 1)
    assert entry["file"] == "identity_conversations.jsonl"
    assert isinstance(train, TaskMixture)
    identity = [count_contents(task) for task in train.tasks if task.name == "Identity"]
    assert len(identity) == 2
    assert identity[0] == identity[1]
    assert len(identity[0]) == 38
    assert isinstance(val, TaskMixture)
    assert not identity[0] & count_contents(next(task for task in val.tasks if task.name == "Identity"))


# --- missing data sets ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("base_dir")
def test_an_unavailable_data_set_is_left_out_only_if_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tasks.hub._is_hub_reachable", lambda: True)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: 1 / 0))
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path))
    with pytest.raises(
        UserError, match=r"allenai/ai2_arc .*cannot be loaded.*NANOCHAT_HUB_DIR.*--allow_missing.*ARC-Easy"
    ):
        build_mixture("sft", "web")
    train, _, description = build_mixture("sft", "web", allow_missing=True)
    assert format_description(description) == "SimpleSpelling 300, SpellingBee 300"
    assert len(train) == 600
    output = capsys.readouterr().out
    for name in ("ARC-Easy", "ARC-Challenge", "GSM8K", "SmolTalk"):
        assert f"{name} is left out" in output


def test_an_empty_mixture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.hub._is_hub_reachable", lambda: True)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: 1 / 0))
    with pytest.raises(UserError, match="nothing to train on"):
        build_mixture("mid", "web", mixture_file=write_toml(tmp_path, '[[entry]]\ntask = "GSM8K"'), allow_missing=True)


# --- the user's own files ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("base_dir")
def test_the_users_conversations_are_added(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "mine.jsonl", 60)
    without, _, plain = build_mixture("sft", "world")
    train, val, description = build_mixture("sft", "world", conversations=file)
    assert description[:-1] == plain
    entry = description[-1]
    assert (entry["name"], entry["rows"], entry["val_rows"], entry["file"]) == ("CustomJSON", 57, 2, "mine.jsonl")
    assert len(train) == len(without) + 57
    assert isinstance(train, TaskMixture)
    trained = set(count_contents(train.tasks[-1]))
    held_out = {row for row in count_contents(val) if '"own ' in row}
    assert (len(trained), len(held_out)) == (57, 2)
    assert not trained & held_out
    write_jsonl(file, 60, "another")
    assert build_mixture("sft", "world", conversations=file)[2][-1]["sha256"] != entry["sha256"]


@pytest.mark.usefixtures("base_dir")
def test_a_mixture_file_replaces_the_table(tmp_path: Path) -> None:
    file = write_toml(tmp_path, SMALL_MIXTURE)
    train, val, description = build_mixture("mid", "web", mixture_file=file)
    assert description == [
        {"name": "SpellingBee", "split": "train", "rows": 30, "epochs": 1, "val_rows": 1, "options": {"quoted": True}},
        {"name": "Identity", "split": "train", "rows": 40, "epochs": 2, "val_rows": 2, "options": {"kind": "web"}},
    ]
    assert len(train) == 30 + 2 * 40
    assert len(val) == 3
    assert format_description(description) == "SpellingBee 30, Identity 2 x 40"
    again, *_ = build_mixture("mid", "web", mixture_file=file)
    assert list(map(content_of, again)) == list(map(content_of, train))
    other, *_ = build_mixture("mid", "web", mixture_file=file, seed=1)
    assert list(map(content_of, other)) != list(map(content_of, train))


@pytest.mark.usefixtures("base_dir")
def test_fresh_rows_of_a_mixture_file(tmp_path: Path) -> None:
    conversations = write_jsonl(tmp_path / "own.jsonl", 50)
    entry = f'[[entry]]\ntask = "CustomJSON"\nrows = 20\nfresh = true\noptions = {{path = "{conversations}"}}'
    train, _, description = build_mixture("sft", "world", mixture_file=write_toml(tmp_path, entry))
    assert len(train) == 20
    assert description[0]["fresh"]
    assert format_description(description) == "CustomJSON 20 a pass"
    passes = [set(map(content_of, train.for_pass(number))) for number in range(3)]
    assert len(passes[0] | passes[1]) == 40
    assert set.union(*passes) == set(map(content_of, get_task("CustomJSON", "train", path=str(conversations))))


def test_a_mixture_too_small_to_hold_out_is_validated_on_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conversations = write_jsonl(tmp_path / "one.jsonl", 1)
    file = write_toml(tmp_path, f'[[entry]]\ntask = "CustomJSON"\noptions = {{filepath = "{conversations}"}}')
    train, val, description = build_mixture("sft", "world", mixture_file=file)
    assert count_contents(train) == count_contents(val)
    assert len(train) == 1
    assert description[0]["file"] == "one.jsonl"
    assert "options" not in description[0]
    assert "validation uses those that are trained on" in capsys.readouterr().out


ENTRY = '[[entry]]\ntask = "Identity"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have \[\[entry\]\] blocks"),
        ("entry = 3", r"must have \[\[entry\]\] blocks"),
        ("entry = []", r"must have \[\[entry\]\] blocks"),
        ("entry = [3]", "entry 1: must name its task"),
        (ENTRY + "[more]\nx = 1", "'more' is unknown"),
        ("[[entry]\n", "mixture.toml: .*line 1"),
        (ENTRY + "[[entry]]\nrows = 3", "entry 2: must name its task"),
        (ENTRY + '[[entry]]\ntask = "Spellingbe"\nrows = 3', "entry 2: no task 'Spellingbe'; did you mean SpellingBee"),
        (ENTRY + "row = 3", "entry 1: unknown key 'row'; known are task, rows"),
        (ENTRY + "rows = 0", "entry 1: rows = 0 must be at least 1"),
        (ENTRY + "epochs = -1", "entry 1: epochs = -1 must be at least 1"),
        (ENTRY + "rows = 1.5", "entry 1: rows = 1.5 must be a whole number"),
        (ENTRY + "rows = true", "entry 1: rows = True must be a whole number"),
        (ENTRY + "fresh = 1", "entry 1: fresh = 1 must be true or false"),
        (ENTRY + "fresh = true", "entry 1: fresh = true needs rows = "),
        ('[[entry]]\ntask = "SpellingBee"\nrows = 3\nfresh = true', "entry 1: fresh = true needs rows = and a task"),
        (ENTRY + 'options = "x"', "entry 1: options = 'x' must be a table"),
        ("[[entry]]\ntask = 3", "entry 1: task = 3 must be text"),
        ('[[entry]]\ntask = "spellingbee"', "entry 1: SpellingBee generates its rows, so rows = must be set"),
        (ENTRY + 'split = "best"', "entry 1: Identity has no split 'best'"),
        (ENTRY + "options = {colour = 3}", "entry 1: Identity cannot be built with.*colour=3"),
        (ENTRY + '[[entry]]\ntask = "CustomJSON"\noptions = {path = "none.jsonl"}', "entry 2: none.jsonl: No such"),
        (ENTRY + '[[entry]]\ntask = "CustomJSON"', "entry 2: CustomJSON has no file: set filepath"),
    ],
)
def test_a_fault_of_a_mixture_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = write_toml(tmp_path, text)
    with pytest.raises(UserError, match=rf"^mixture {re.escape(str(tmp_path))}.*{message}"):
        build_mixture("sft", "web", mixture_file=path)


def test_an_unreadable_mixture_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_mixture(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(UserError, match=r"latin\.toml"):
        read_mixture(tmp_path / "latin.toml")


@pytest.mark.parametrize(("script", "stage"), [(mid_train, "mid"), (chat_sft, "sft")], ids=["mid", "sft"])
@pytest.mark.parametrize("kind", ["web", "world"])
def test_a_stages_help_lists_its_default_mixture(script: ModuleType, stage: str, kind: str) -> None:
    repeats = {1: "", 2: ", twice"}
    entries = [
        f"{entry.task} {f'{entry.rows:,}' if entry.rows else 'all'}{repeats[entry.epochs]}"
        for entry in MIXTURES[stage, kind]
    ]
    text = " ".join((script.__doc__ or "").partition(f"--kind={kind}")[2].split())
    assert text.startswith("; ".join(entries))


# --- any value in a mixture file --------------------------------------------------------------------------------------

TOML_VALUES = (
    "5", "-1", "0", "1.5", "nan", "inf", "true", '"x"', '""', "[]", "[1]", "{}", "{a = 1}", "2024-01-01",
    "1" + "0" * 30, "9" * 5000, "[" * 3000, r'"\ud800"', r'"\u0000"', r'"\u001b"', "10_000_001", "4_294_967_297",
)  # fmt: skip
OPTIONS = {
    "SpellingBee": ("quoted", "word_list", "style", "size", "start", "stop", "step", "shuffle", "split", "unknown"),
    "WordProblems": ("level", "seed", "size", "step"),
    "FactChoice": ("far", "size"),
    "Identity": ("kind", "path", "size"),
    "CustomJSON": ("path", "filepath", "start", "step", "stop", "shuffle", "split", "size"),
}


def use_mixture(path: Path) -> None:
    train, val, _ = build_mixture("sft", "world", mixture_file=path)
    assert train[0]
    assert val[0]


@pytest.mark.usefixtures("base_dir")
@pytest.mark.parametrize("key", ["task", "rows", "epochs", "fresh", "split", "val_split", "options", "other"])
def test_any_value_of_a_key_is_used_or_refused_in_a_line(tmp_path: Path, key: str) -> None:
    own = write_jsonl(tmp_path / "own.jsonl", 3)
    for value in TOML_VALUES:
        entry = {"task": '"CustomJSON"', "options": f"{{path = '{own}'}}", key: value}
        path = write_toml(tmp_path, "[[entry]]\n" + "\n".join(f"{name} = {text}" for name, text in entry.items()))
        refusal(use_mixture, path)


@pytest.mark.usefixtures("base_dir")
@pytest.mark.slow
@pytest.mark.parametrize("task", OPTIONS)
def test_any_value_of_an_option_is_used_or_refused_in_a_line(tmp_path: Path, task: str) -> None:
    own = write_jsonl(tmp_path / "own.jsonl", 3)
    needed = f"path = '{own}', " if task == "CustomJSON" else ""
    for option in OPTIONS[task]:
        for value in TOML_VALUES:
            others = "" if option in ("path", "filepath") else needed
            text = f'[[entry]]\ntask = "{task}"\nrows = 5\noptions = {{{others}{option} = {value}}}'
            refusal(use_mixture, write_toml(tmp_path, text))


@pytest.mark.usefixtures("base_dir")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[[entry]]\ntask = "Facts"\nrows = 3'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b"a = '\xff'", "not UTF-8 at byte 5"),
        (b"a = " + b"[" * 3000, "its values are nested too deeply"),
        (b"a = " + b"9" * 5000, "Exceeds the limit"),
        (b"#" * (1 << 20) + b"\n", "is larger than 1,000,000 bytes"),
        (
            b'[[entry]]\ntask = "SpellingBee"\nrows = 3\noptions = {size = 4}',
            "options must not have 'size': rows sets it",
        ),
        (b'[[entry]]\ntask = "SpellingBee"\nrows = 3\noptions = {quoted = 4}', "quoted is 4: must be true or false"),
        (b'[[entry]]\ntask = "Facts"\nrows = 10_000_001', "rows = 10000001 must be at least 1 and at most 10,000,000"),
        (b'[[entry]]\ntask = "Facts"\nrows = 100_000\nepochs = 1000', "the mixture has 100,000,000 rows by now"),
    ],
    ids=range(9),
)
def test_faults_of_a_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "mixture.toml"
    path.write_bytes(content)
    assert words in (refusal(use_mixture, path) or "")


@pytest.mark.usefixtures("base_dir")
def test_a_home_folder_in_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "own.jsonl", 30)
    path = write_toml(tmp_path, "[[entry]]\ntask = 'CustomJSON'\noptions = {path = '~/own.jsonl'}")
    _, _, [entry] = build_mixture("sft", "world", mixture_file=path)
    assert entry["rows"] == 29
    assert entry["file"] == "own.jsonl"
