"""A small evaluation bundle for tests of what uses one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "choice": (
        "multiple_choice",
        [{"query": f"Is {n} red?", "choices": ["yes", "not at all"], "gold": n % 2} for n in range(5)],
    ),
    "schema": (
        "schema",
        [{"context_options": [f"{n} is", f"{n} was"], "continuation": "it", "gold": 0} for n in range(5)],
    ),
    "words": ("language_modeling", [{"context": f"{n} and {n}", "continuation": "a few words"} for n in range(5)]),
}


def write_bundle(
    folder: Path,
    rows: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]] = ROWS,
    num_fewshot: int = 1,
    delimiter: str = " ",
) -> Path:
    """Tasks by label, as (type, lines of the file)."""
    (folder / "eval_data").mkdir(parents=True)
    lines, table = ["icl_tasks:"], ["Eval Task,Random baseline"]
    for label, (kind, examples) in rows.items():
        lines += [f"- label: {label}", f"  dataset_uri: {label}.jsonl", f"  num_fewshot: [{num_fewshot}]"]
        lines += [f"  icl_task_type: {kind}", f"  continuation_delimiter: {json.dumps(delimiter)}"]
        table.append(f"{label},0")
        text = "".join(json.dumps(example) + "\n" for example in examples)
        (folder / "eval_data" / f"{label}.jsonl").write_text(text, encoding="utf-8")
    (folder / "core.yaml").write_text("\n".join(lines), encoding="utf-8")
    (folder / "eval_meta_data.csv").write_text("\n".join(table), encoding="utf-8")
    return folder
