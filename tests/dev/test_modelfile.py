"""dev/Modelfile: its template renders conversations as nanochat does, and its stops are the ends of an answer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nanochat.export.gguf_file import SAMPLING
from nanochat.inference.tool_use import Tool
from tests.support.sources import ROOT
from tests.support.talks import TOKENIZER

MODELFILE = (ROOT / "dev/Modelfile").read_text(encoding="utf-8")
# The template's language is that of Go's standard library, in which Ollama executes it with the messages.
PROGRAM = """
package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }
type Values struct { Messages []Message; System string }

func main() {
	var input struct { Template string; Conversations []Values }
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil { panic(err) }
	parsed := template.Must(template.New("").Parse(input.Template))
	for _, values := range input.Conversations {
		if err := parsed.Execute(os.Stdout, values); err != nil { panic(err) }
		os.Stdout.WriteString("\\x00")
	}
}
"""
USER, ANSWER = {"role": "user", "content": "2 + 2?\n"}, {"role": "assistant", "content": " 4. été"}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER, USER],
    [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
]


def template() -> str:
    """Return the template of the file."""
    return MODELFILE.split('"""')[1]


def parameters(name: str) -> list[str]:
    """Return the values of a parameter."""
    return re.findall(rf"^PARAMETER {name} (.*)$", MODELFILE, re.MULTILINE)


@pytest.mark.slow
def test_the_template_renders_as_nanochat_does(tmp_path: Path) -> None:
    """Go's own template engine executes it. Ollama puts `<|bos|>` in front, as the file's keys ask for."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: Ollama's template engine is its standard library")
    (tmp_path / "main.go").write_text(PROGRAM, encoding="utf-8")
    conversations = [
        {"Messages": [{key.title(): text for key, text in message.items()} for message in messages]}
        for messages in CONVERSATIONS
    ]
    environment = {"PATH": "/usr/local/go/bin:/usr/bin:/bin", "GOCACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    result = subprocess.run(
        [str(shutil.which("go")), "run", "main.go"],
        input=json.dumps({"Template": template(), "Conversations": conversations}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=environment,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    rendered = result.stdout.split("\0")[:-1]
    for messages, text in zip(CONVERSATIONS, rendered, strict=True):
        assert "<|bos|>" + text == TOKENIZER.decode(TOKENIZER.render_for_completion({"messages": messages}))


def test_the_stops_are_the_ends_of_an_answer() -> None:
    assert {TOKENIZER.encode_special(name) for name in parameters("stop")} == Tool(TOKENIZER).end_ids


def test_the_sampling_is_that_of_the_file() -> None:
    names = {"temperature": "temp", "repeat_penalty": "penalty_repeat"}
    found = {
        f"general.sampling.{names.get(name, name)}": float(parameters(name)[0])
        for name in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
    }
    assert found == SAMPLING


def test_the_file_it_reads_is_the_one_it_tells_to_write() -> None:
    [file] = re.findall(r"^FROM \./(.*)$", MODELFILE, re.MULTILINE)
    assert f"--out={file}" in MODELFILE
