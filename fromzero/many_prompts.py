"""`fromzero generate --prompts FILE`：许多条提示，一行一条，各有各的参数；结果也可以是 JSON。"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.generator import Generation
    from inference.sampling import SamplingParams

__all__ = ["as_json", "read_prompts"]


def read_prompts(path: Path, params: SamplingParams) -> list[tuple[str, SamplingParams]]:
    """Each line of a text file, or of a .jsonl file of objects that may change the parameters.

    Raises ValueError that names the file and the line.
    """
    from foundation.files import read_text

    lines = read_text(path).splitlines()
    if not lines:
        raise ValueError(f"{path} is empty: write one prompt a line")
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            raise ValueError(f"{where} is empty: every line is a prompt")
        if path.suffix == ".jsonl":
            found.append(read_object(line, params, where))
        else:
            found.append((line, params))
    return found


def read_object(line: str, params: SamplingParams, where: str) -> tuple[str, SamplingParams]:
    """{"prompt": "…", "temperature": 0.7}: the prompt, and parameters of its own."""
    from foundation.checks import check_choice

    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
        raise ValueError(f'{where} must be an object like {{"prompt": "…"}}, got {line[:80]}')
    changes: dict[str, Any] = {name: value for name, value in given.items() if name != "prompt"}
    names = [field.name for field in dataclasses.fields(params)]
    try:
        for name in changes:
            check_choice("each parameter", name, names)
        if isinstance(changes.get("logit_bias"), dict):
            changes["logit_bias"] = with_ids(changes["logit_bias"])
        return given["prompt"], dataclasses.replace(params, **changes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def with_ids(bias: dict[str, Any]) -> dict[int, Any]:
    """The keys of JSON are texts; those of a bias are token ids."""
    try:
        return {int(key): value for key, value in bias.items()}
    except ValueError:
        raise ValueError(
            f'the keys of logit_bias must be token ids such as "13", got {list(bias)}'
        ) from None


def as_json(index: int, prompt: str, generation: Generation) -> str:
    """One line of JSON: what was asked, what was written, and what is known about it."""
    facts = {"index": index, "prompt": prompt, **dataclasses.asdict(generation)}
    return json.dumps({k: v for k, v in facts.items() if v is not None}, ensure_ascii=False)
