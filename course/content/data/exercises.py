"""训练数据：窗口、批次、划分、补齐、打包；七道。"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch

from course.exercise import Exercise


def distinct_tokens(n: int) -> torch.Tensor:
    """Tokens that are all different, so that a wrong place cannot hide."""
    return torch.randperm(700)[:n] + 20


def a_corpus(random_: random.Random, case: int) -> dict[str, Any]:
    """A rest that is too short; windows that fit exactly; a rest of one question."""
    block_size = (5, 4, 7)[case]
    windows, rest = ((3, random_.randrange(1, 5)), (5, 0), (4, 1))[case]
    return {"tokens": distinct_tokens(windows * block_size + rest + 1), "block_size": block_size}


def some_starts(random_: random.Random, case: int) -> dict[str, Any]:
    """A few places in a corpus, none of them at its very beginning."""
    rows, block_size = ((3, 5), (4, 2), (2, 6))[case]
    starts = torch.tensor(random_.sample(range(3, 14), rows))
    return {"tokens": distinct_tokens(150), "starts": starts, "block_size": block_size}


def some_documents(random_: random.Random, case: int) -> dict[str, Any]:
    """Copies at both ends of the corpus, one of them with other white space; one copy nearby."""
    names = [f"document {n}" for n in random_.sample(range(100, 1000), 9 + case)]
    documents = list(names)
    documents.insert(2, documents[1])
    documents.insert(len(documents) - 1, documents[0])
    documents.append(f"{documents[4]}\n")
    return {"documents": documents, "n_val": (3, 4, 2)[case]}


def ragged(random_: random.Random, case: int) -> dict[str, Any]:
    """Unequal lengths; the pad is also a real token, at ends and within."""
    pad_id = random_.randrange(2, 9)
    lengths = ((7, 3, 5), (4, 8), (6, 4, 9, 3))[case]
    sequences = []
    for length in lengths:
        tokens = random_.sample(range(20, 400), length)
        tokens[-1] = pad_id
        sequences.append(tokens)
    sequences[0][1] = pad_id
    return {"sequences": sequences, "pad_id": pad_id}


def documents_in_a_row(random_: random.Random, case: int) -> dict[str, Any]:
    """Documents to pack, and the owners of another row to draw a mask for."""
    lengths = ((4, 2, 3), (1, 5, 2), (3, 3, 1, 2))[case]
    others = ((3, 2), (1, 4, 2), (2, 3, 1))[case]
    owners = [number for number, n in enumerate(others) for _ in range(n)]
    return {
        "documents": [random_.sample(range(20, 400), n) for n in lengths],
        "end_id": random_.randrange(2, 9),
        "owners": torch.tensor(owners),
    }


def an_epoch(random_: random.Random, case: int) -> dict[str, Any]:
    """Windows in a shuffled order, their number no multiple of the batch size."""
    count, batch_size, block_size = ((7, 3, 4), (5, 2, 6), (9, 4, 3))[case]
    order = list(range(count))
    while order == sorted(order) or [order[i] for i in order] in (order, sorted(order)):
        random_.shuffle(order)
    starts = torch.arange(count) * block_size + 3
    return {
        "tokens": distinct_tokens(count * block_size + 9),
        "starts": starts,
        "order": torch.tensor(order),
        "batch_size": batch_size,
        "block_size": block_size,
    }


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


def starts(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The starts as plain numbers, whatever they came in."""
    return {"starts": [int(start) for start in answer.windows(**inputs)]}


def packed(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The packed row, whatever it came in, and a mask."""
    parts = answer.pack(inputs["documents"], inputs["end_id"])
    names = ("ids", "owners", "positions")
    found: dict[str, Any] = {
        name: [int(number) for number in part] for name, part in zip(names, parts, strict=True)
    }
    return {**found, "mask": answer.document_mask(inputs["owners"])}


def batches(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """How many rows each batch has, all inputs and all targets."""
    found = list(answer.epoch(**inputs))
    return {
        "rows": [len(x) for x, _ in found],
        "inputs": [x for x, _ in found],
        "targets": [y for _, y in found],
    }


EXERCISES = (
    Exercise("data.01", 6, ("windows",), a_corpus, run=starts),
    Exercise("data.02", 6, ("batch",), some_starts, outputs=("x", "y"), checkpoint=("week6-data",)),
    Exercise(
        "data.03", 6, ("split",), some_documents, outputs=("train", "val"),
        checkpoint=("week6-data",),
    ),
    Exercise(
        "data.04", 6, ("pad_batch",), ragged, outputs=("ids", "targets"), checkpoint=("week6-data",)
    ),
    Exercise("data.05", 6, ("pack", "document_mask"), documents_in_a_row, run=packed),
    Exercise(
        "data.06", 6, ("n_targets", "n_windows", "n_counted", "share_padded", "n_visible"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "data.07", 6, ("epoch",), an_epoch, run=batches, kind="repair", starts_with="DATA-32"
    ),
)  # fmt: skip
