"""What does a rule cost? Building it, its first steps, and every later token.

    python benchmarks/constraint_cost.py --tokenizer tokenizer.json [--rounds 5]

Any tokenizer.json will do. For each rule: the automaton and the vocabulary's trie (once), the
first text (masks are built as its states come up), the same text again (masks are remembered),
and, when asked by too little room, the distances. A token's cost is measured without a model:
mask, strike out, take a token; beside it the same loop without a rule. Every round builds
everything anew; medians of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from foundation.demonstration import use_utf8
from inference.constraints import Constraint, restrict
from inference.sampling import sample_next
from inference.token_guide import TokenGuide, TokenTrie
from tokenization.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "role": {"enum": ["admin", "user", "guest"]},
    },
    "required": ["name", "age", "role"],
}
RULES: dict[str, Callable[[], Constraint]] = {
    "choices: yes, no, unknown": lambda: Constraint.choices(["yes", "no", "unknown"]),
    "regex: a date": lambda: Constraint.regex(r"\d{4}-\d{2}-\d{2}"),
    "regex: 20 to 200 of any": lambda: Constraint.regex(r"[^\n]{20,200}"),
    "schema: a person": lambda: Constraint.json_schema(PERSON),
}


def milliseconds(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), 1e3 * (time.perf_counter() - began)


def write(guide: TokenGuide | None, logits: torch.Tensor, n_tokens: int) -> list[float]:
    """Draw tokens from fixed scores, with or without a rule: milliseconds of each."""
    state, left, spent = 0 if guide is None else guide.start, n_tokens, []
    generator = torch.Generator().manual_seed(0)
    while left:
        key = [int(torch.randint(2**62, (), generator=generator))]
        began = time.perf_counter()
        allowed = None if guide is None else guide.allowed(state, left)
        token = int(sample_next(restrict(logits, [allowed]), keys=key))
        left -= 1
        if guide is not None:
            state = guide.step(state, token)
            over = token in guide.trie.end_ids or guide.is_over(state, left)
            left = 0 if over else left
        spent.append(1e3 * (time.perf_counter() - began))
    return spent


def measure(rule: Callable[[], Constraint], trie: TokenTrie, n_tokens: int) -> list[float]:
    """[compile, first text, each later token, without a rule, distances, states, tokens]."""
    logits = torch.randn(1, trie.vocab_size, generator=torch.Generator().manual_seed(1))
    constraint, compiled = milliseconds(rule)
    guide = TokenGuide(constraint.automaton, trie)
    first = write(guide, logits, n_tokens)
    again = write(guide, logits, n_tokens)
    free = write(None, logits, len(again))
    fresh = TokenGuide(constraint.automaton, trie)
    _, distances = milliseconds(lambda: fresh.distance)
    states = float(len(constraint.automaton.table) - 1)
    return [
        *(compiled, sum(first) - sum(again), median(again), median(free), distances),
        *(states, float(len(again))),
    ]


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.load(arguments.tokenizer)
    trie, built = milliseconds(lambda: TokenTrie(tokenizer))
    nodes = sum(len(level.byte) for level in trie.levels)
    print(f"vocabulary {trie.vocab_size:,}; its trie, once: {built:.0f} ms, {nodes:,} nodes")
    print(
        "rule | states | compile ms | first text, extra ms | token ms | without a rule ms |", end=""
    )
    print(" distances ms | tokens")
    for name, rule in RULES.items():
        rounds = [measure(rule, trie, arguments.tokens) for _ in range(arguments.rounds)]
        compiled, first, token, free, distances, states, n = map(median, zip(*rounds, strict=True))
        print(
            f"{name} | {states:.0f} | {compiled:.1f} | {first:.1f} | {token:.3f} | {free:.3f} | "
            f"{distances:.0f} | {n:.0f}"
        )


if __name__ == "__main__":
    main()
