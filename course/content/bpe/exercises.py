"""字节级 BPE：字节、数对、合并、训练、编码、解码、边生成边显示；九道。"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from course.exercise import Exercise


def a_text(random_: random.Random, case: int) -> dict[str, Any]:
    """Spaces around, capitals, accents, wide letters, Chinese; later emoji and a line break."""
    middle = list("AbéüＴ，明月x") + random_.choices("Cdéö１。光yz", k=4)
    middle += list("🌕🙂") if case else []
    random_.shuffle(middle)
    return {"text": "  " + "".join(middle) + ("\n" if case else " ")}


def some_ids(random_: random.Random, case: int) -> dict[str, Any]:
    """Few different ids, so that pairs repeat, in both orders, with runs of one id."""
    a, b, c = random_.sample(range(40, 300), 3)
    ids = [a, a, a, b, a, c, b, a, b, c, c, c, c, a, b]
    more = [random_.choice((a, b, c)) for _ in range(4 + 3 * case)]
    return {"ids": [*more, *ids]}


def ids_and_pair(random_: random.Random, case: int) -> dict[str, Any]:
    """A run of a pair's own id; then a pair of two ids, the first also at the very end."""
    a, b, c = random_.sample(range(40, 300), 3)
    around = [random_.choice((b, c)) for _ in range(3)]
    ids, pair = (
        ([*around, a, a, a, b, a, c, a, a, b], (a, a)),
        ([c, a, b, *around, b, a, c, a, b, a, b, c, a], (a, b)),
        ([a, a, a, c, a, a, *around, a, a, a, a, a], (a, a)),
    )[case]
    return {"ids": ids, "pair": pair, "new_id": random_.randrange(301, 400)}


def learned(text: str, n_merges: int) -> list[tuple[int, int]]:
    """Merges learned in the plainest way, to encode and decode with."""
    ids, merges = list(text.encode("utf-8")), []
    for new_id in range(256, 256 + n_merges):
        counts: dict[tuple[int, int], int] = {}
        for pair in zip(ids, ids[1:], strict=False):
            counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: counts[pair])
        merges.append(best)
        joined: list[int] = []
        for token in ids:
            if joined and (joined[-1], token) == best:
                joined[-1] = new_id
            else:
                joined.append(token)
        ids = joined
    return merges


def letters(random_: random.Random, alphabet: str, length: int) -> str:
    """A text of few letters, so that pairs repeat."""
    return "".join(random_.choice(alphabet) for _ in range(length))


def a_corpus(random_: random.Random, case: int) -> dict[str, Any]:
    """English-like, Chinese, and a text too short for what is asked.

    Repeated words first: the most frequent pair is not the one of the largest ids, and counts tie
    """
    if case == 2:
        a, b = random_.sample("efgh", 2)
        return {"text": a + b + a + b + a, "n_merges": 9}
    words = [letters(random_, "abcde", random_.randrange(2, 5)) for _ in range(5)]
    text = " ".join(random_.choice(words) for _ in range(14))
    if case == 1:
        text = "".join(random_.choice(("明月", "明", "光", "月光")) for _ in range(16)) + "。"
    return {"text": text, "n_merges": (7, 6)[case]}


def to_encode(random_: random.Random, case: int) -> dict[str, Any]:
    """Merges that compete, on words where each order of doing them ends differently; then Chinese.

    cd, bc, ab, a + bc, de in the order learned:
        abc    a + bc by the order; ab first from the left, by frequency, or from the last merge
        abcd   ab + cd by the order; abc first by length
        bcd    b + cd by the order; bc first from the left
        cde    cd + e by the order; de first from the last merge
    """
    if case == 2:
        merges = learned(letters(random_, "明月光", 40), 8)
        return {"text": letters(random_, "明月光", 20), "merges": merges}
    a, b, c, d, e, space = random_.sample("hijklmnopqrs", 6)
    words = [a + b] * (5 + case) + [c + d] * 3 + [a + b + c, a + b + c + d, b + c + d, c + d + e]
    random_.shuffle(words)
    ida, idb, idc, idd, ide = map(ord, (a, b, c, d, e))
    merges = [(idc, idd), (idb, idc), (ida, idb), (ida, 257), (idd, ide)]
    return {"text": space.join(words), "merges": merges}


def to_decode(random_: random.Random, case: int) -> dict[str, Any]:
    """Ids of bytes and merges, characters cut between tokens; the second text is cut at its end."""
    merges = learned("明月明月光，明光光月" * 3, 7)
    text = "".join(random_.choice(("明", "月", "光", "é", "🌕", "a")) for _ in range(6)) + "月明é光"
    data = text.encode("utf-8")
    if case == 1:
        data = data[:-1]
    ids = list(data)
    for new_id, pair in enumerate(merges, 256):
        joined: list[int] = []
        for token in ids:
            if joined and (joined[-1], token) == pair:
                joined[-1] = new_id
            else:
                joined.append(token)
        ids = joined
    return {"ids": ids, "merges": merges}


def to_stream(random_: random.Random, case: int) -> dict[str, Any]:
    """UTF-8 cut anywhere: a token may end one character and begin another; the last one is cut."""
    text = "".join(random_.sample(["明", "é", "🌕", "a", "月", "光", "🙂", "b"], 8)) + "明光🌕月"
    data = text.encode("utf-8")
    sizes = (1, 2, 3, 4, 5) if case != 1 else (1, 2)
    tokens, start = [], 0
    while start < len(data):
        n = random_.choice(sizes)
        tokens.append(data[start : start + n])
        start += n
    if case == 2:
        tokens = [*tokens, "月".encode()[:2]]
    return {"tokens": tokens}


def counted_pieces(random_: random.Random, case: int) -> dict[str, Any]:
    """Pieces of very different counts: many rare ones share a pair, one frequent has another.

    Pieces begin with the letter that others end with, so that joining them makes new pairs
    """
    a, b, c, d, e = random_.sample("mnopqrst", 5)
    rare = [a + b + x for x in (c, d, e, c + d, d + e)]
    pieces = dict.fromkeys(rare, 0)
    for piece in rare:
        pieces[piece] = random_.randrange(1, 4)
    often = c + e + c + e + d
    pieces[often] = random_.randrange(20, 30)
    pieces[b + a] = random_.randrange(14, 18)
    pieces[d + c + a] = random_.randrange(6, 9)
    items = list(pieces.items())
    random_.shuffle(items)
    return {"pieces": dict(items), "n_merges": (4, 5, 6)[case]}


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


def counted(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The pairs in order, and their counts."""
    found = answer.count_pairs(**inputs)
    ordered = sorted(found)
    return {
        "pairs": [[int(left), int(right)] for left, right in ordered],
        "counts": [int(found[pair]) for pair in ordered],
    }


def listed(name: str, result: str) -> Any:
    """Run a function whose result is ids, in whatever they came."""

    def run(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
        return {result: list(getattr(answer, name)(**inputs))}

    return run


def merged(name: str) -> Any:
    """Run a function that learns pairs."""

    def run(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
        pairs = getattr(answer, name)(**inputs)
        return {"merges": [[int(left), int(right)] for left, right in pairs]}

    return run


EXERCISES = (
    Exercise("bpe.01", 6, ("to_bytes",), a_text, run=listed("to_bytes", "bytes")),
    Exercise("bpe.02", 6, ("count_pairs",), some_ids, run=counted),
    Exercise("bpe.03", 6, ("merge",), ids_and_pair, outputs=("ids",)),
    Exercise(
        "bpe.04", 6, ("train_bpe",), a_corpus, run=merged("train_bpe"),
        checkpoint=("week6-tokenizer",),
    ),
    Exercise(
        "bpe.05", 6, ("encode",), to_encode, run=listed("encode", "ids"),
        checkpoint=("week6-tokenizer",),
    ),
    Exercise("bpe.06", 6, ("decode",), to_decode, outputs=("text",)),
    Exercise(
        "bpe.07", 6, ("stream",), to_stream, outputs=("shown",),
        forbidden=("getincrementaldecoder", "IncrementalDecoder", "iterdecode"),
        checkpoint=("week6-tokenizer",),
    ),
    Exercise(
        "bpe.08", 6, ("n_bytes", "n_pairs", "n_left", "third_id", "vocab_size", "longest"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "bpe.09", 6, ("train_pieces",), counted_pieces, run=merged("train_pieces"), kind="repair",
        starts_with="BPE-56",
    ),
)  # fmt: skip
