"""采样：温度、各种淘汰、惩罚、抽样、生成循环、束搜索；十道。"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from course.exercise import Exercise

SIZES = ((2, 9), (4, 7), (3, 11))  # rows, vocabulary
HIDDEN = -1e4  # whoever fills in −1e9, or the lowest float, means −∞


def some_logits(random_: random.Random, case: int) -> dict[str, Any]:
    """Scores (B, V) of both signs, no two alike."""
    rows, vocabulary = SIZES[case]
    return {"logits": 2 * torch.randn(rows, vocabulary)}


def with_temperature(random_: random.Random, case: int) -> dict[str, Any]:
    """Cool, hot, and greedy."""
    temperature = (random_.uniform(0.5, 0.8), random_.uniform(1.6, 2.5), 0.0)[case]
    return {**some_logits(random_, case), "temperature": temperature}


def with_k(random_: random.Random, case: int) -> dict[str, Any]:
    """Few, several, and more than the vocabulary has."""
    return {**some_logits(random_, case), "k": (3, 4, 30)[case]}


def with_p(random_: random.Random, case: int) -> dict[str, Any]:
    """A p between the sums of row 0 after n − 1 and n tokens; last, a p below every best one.

    Row 0 is the flattest, so that the sums grow slowly and every mistake keeps another number
    """
    rows, vocabulary = ((2, 12), (4, 10), (3, 13))[case]
    logits = torch.randn(rows, vocabulary) * torch.linspace(0.6, 2.0, rows)[:, None]
    ordered = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True).values
    if case == 2:
        return {"logits": logits, "p": 0.5 * float(ordered[:, 0].min())}
    n = 4 + case
    sums = ordered[0].cumsum(dim=-1)
    return {"logits": logits, "p": float(sums[n - 2] + sums[n - 1]) / 2}


def with_min_p(random_: random.Random, case: int) -> dict[str, Any]:
    """A border between the third and the fourth of row 0, or far lower; rows unlike, so that each
    has its own."""
    rows, vocabulary = ((2, 12), (4, 10), (3, 13))[case]
    rank = (2, 2, 11)[case]  # with a low border even a wrong one keeps some
    logits = torch.randn(rows, vocabulary) * torch.linspace(0.5, 1.5, rows)[:, None]
    ordered = torch.softmax(logits[0], dim=-1).sort(descending=True).values
    return {"logits": logits, "p": float((ordered[rank] + ordered[rank + 1]) / 2 / ordered[0])}


def with_history(random_: random.Random, case: int) -> dict[str, Any]:
    """Each row has seen a token with a positive and one with a negative score, some twice."""
    logits = some_logits(random_, case)["logits"]
    rows, vocabulary = logits.shape
    seen = []
    for row in range(rows):
        few = random_.sample(range(vocabulary), 4)
        logits[row, few[0]] = 0.5 + abs(logits[row, few[0]])
        logits[row, few[1]] = -0.5 - abs(logits[row, few[1]])
        said = [few[0], few[1], few[0], few[2], few[1], few[0]]
        seen.append(said if row % 2 == 0 else said[:4])
    return {"logits": logits, "seen_ids": seen, "penalty": random_.uniform(1.2, 1.6)}


def to_draw(random_: random.Random, case: int) -> dict[str, Any]:
    """Ordinary draws; u = 0 where the first token is impossible; sums that rounding left short."""
    rows, vocabulary = ((5, 7), (4, 6), (3, 8))[case]
    probabilities = torch.rand(rows, vocabulary) + 0.3
    u = torch.tensor([random_.uniform(0.25, 0.95) for _ in range(rows)])
    if case == 1:
        probabilities[:, 0] = 0.0
        u[1] = 0.0
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    if case == 2:
        probabilities = probabilities * (1 - 1e-7)
        u[2] = 1 - 1e-9
    return {"probabilities": probabilities, "u": u}


def scores_of(ids: Sequence[int], salt: int, vocabulary: int) -> Tensor:
    """A stand-in for a model: scores that depend on every token of the window."""
    source = random.Random(f"{salt} {list(map(int, ids))}")
    return torch.tensor([source.gauss(0.0, 1.5) for _ in range(vocabulary)])


def a_text(random_: random.Random, case: int) -> dict[str, Any]:
    """A short prompt, one as long as the context, a longer one."""
    prompt, context, new = ((3, 6, 5), (4, 4, 7), (8, 5, 11))[case]
    salt, vocabulary = random_.randrange(2**30), 41
    return {
        "next_logits": lambda ids: scores_of(ids, salt, vocabulary),
        "ids": [random_.randrange(vocabulary) for _ in range(prompt)],
        "n_new": new,
        "choose": lambda logits: int(logits.argmax()),
        "context": context,
    }


def a_tree(random_: random.Random, case: int) -> dict[str, Any]:
    """A few steps over a small vocabulary."""
    length, steps, width, vocabulary = ((1, 3, 3, 5), (2, 4, 2, 4), (1, 4, 4, 5), (2, 3, 3, 6))[
        case
    ]
    salt = random_.randrange(2**30)
    return {
        "next_log_probs": lambda ids: scores_of(ids, salt, vocabulary).log_softmax(dim=-1),
        "start": [random_.randrange(vocabulary) for _ in range(length)],
        "n_steps": steps,
        "width": width,
    }


def one_step(random_: random.Random, case: int) -> dict[str, Any]:
    """One row of scores, mostly negative; its best and its second best were already seen.

    p lies between two sums at the end, far enough down that the second best stays in the race
    """
    vocabulary = (9, 12, 10)[case]
    logits = -0.5 - 0.8 * torch.randn(vocabulary).abs()
    first, second = random_.sample(range(vocabulary), 2)
    logits[first], logits[second] = 1.2 + abs(logits[first]), -0.4
    seen = [first, second, first]
    temperature, penalty = (0.6, 1.8, 0.7)[case], random_.uniform(1.7, 2.2)
    scores = logits.clone()
    said = sorted(set(seen))
    scores[said] = torch.where(scores[said] > 0, scores[said] / penalty, scores[said] * penalty)
    sums = torch.softmax(scores / temperature, dim=-1).sort(descending=True).values.cumsum(dim=-1)
    n = vocabulary // 2 + 1
    return {
        "logits": logits,
        "seen": seen,
        "penalty": penalty,
        "temperature": temperature,
        "p": float(sums[n - 2] + sums[n - 1]) / 2,
    }


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


def distribution(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The probabilities that the scores stand for: a constant added to a row changes nothing."""
    result = answer.apply_temperature(**inputs)
    if not isinstance(result, Tensor):
        raise TypeError(f"apply_temperature must return a tensor, not {type(result).__name__}")
    return {"probabilities": torch.softmax(result, dim=-1)}


def filtered(name: str) -> Callable[[SimpleNamespace, dict[str, Any]], dict[str, Any]]:
    """Run a filter; anything far below every score counts as −∞."""

    def run(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
        result = getattr(answer, name)(**inputs)
        if isinstance(result, Tensor) and result.is_floating_point():
            result = result.masked_fill(result < HIDDEN, float("-inf"))
        return {"logits": result}

    return run


def drawn(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The ids, as a tensor whatever they came in."""
    return {"tokens": torch.as_tensor(answer.draw(**inputs))}


def paths(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The paths and their totals, best first."""
    found = list(answer.beam_search(**inputs))
    ids = [[int(token) for token in ids] for ids, _ in found]
    return {
        "ids": torch.tensor(ids) if len({len(path) for path in ids}) == 1 else ids,
        "totals": torch.tensor([float(total) for _, total in found]),
    }


EXERCISES = (
    Exercise("sampling.01", 5, ("apply_temperature",), with_temperature, run=distribution),
    Exercise("sampling.02", 5, ("top_k",), with_k, run=filtered("top_k")),
    Exercise("sampling.03", 5, ("top_p",), with_p, run=filtered("top_p")),
    Exercise("sampling.04", 5, ("min_p",), with_min_p, run=filtered("min_p")),
    Exercise("sampling.05", 5, ("repetition_penalty",), with_history, outputs=("logits",)),
    Exercise("sampling.06", 5, ("draw",), to_draw, run=drawn, forbidden=("multinomial",)),
    Exercise(
        "sampling.07", 5, ("generate",), a_text, outputs=("ids",), checkpoint=("week5-sampling",)
    ),
    Exercise("sampling.08", 5, ("beam_search",), a_tree, run=paths, cases=4),
    Exercise(
        "sampling.09", 5,
        ("top_p_keeps", "min_p_keeps", "drawn", "odds", "penalized", "best_path"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "sampling.10", 5, ("next_probabilities",), one_step, kind="repair",
        outputs=("probabilities",), starts_with="SAMP-55", checkpoint=("week5-sampling",),
    ),
)  # fmt: skip
