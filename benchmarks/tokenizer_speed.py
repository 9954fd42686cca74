"""How fast text becomes ids: tokenizers, tiktoken and this project, side by side, ids compared.

python benchmarks/tokenizer_speed.py --megabytes 8 --rounds 5

One byte-level BPE with GPT-2's split is trained on the spot; all paths encode the same documents in
turn (A B C A B C …), and the median of each round's ratio counts, so that a busy machine does not
decide. Then training, and the time of texts that are one endless piece.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from foundation.demonstration import use_utf8
from tokenization import encoder
from tokenization.fast_encoder import FastEncoder
from tokenization.tokenizer import Tokenizer
from training.corpus import load_corpus

CHINESE = (
    "机器学习研究怎样让计算机从数据里找出规律。模型读一段文字，猜下一个字；猜错了，就改一改参数，"
    "下一次猜得准一点。山下有一条小河，春天涨水，秋天变浅，孩子们在石头上跳来跳去。{}年{}月{}日，"
    "第{}次试验的误差是百分之{}，比上一次少了一半。\n"
)


def documents(megabytes: float, kind: str) -> list[str]:
    """English and code from Python's own library, or Chinese sentences that differ in numbers."""
    target, found, size = int(megabytes * 1e6), [], 0
    while size < target:
        if kind == "chinese":
            start = len(found)
            texts = ["".join(CHINESE.format(start, i, i * 7 % 31, i, i % 97) for i in range(40))]
        else:
            texts = [document.text for document in load_corpus("python-docs")]
        for text in texts:
            if size >= target:
                break
            found.append(text)
            size += len(text.encode())
    return found


def gpt2_like(texts: list[str], vocab_size: int) -> Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens(["<|endoftext|>"])
    return Tokenizer.from_json(library.to_str())


def ways(tokenizer: Tokenizer) -> dict[str, Callable[[list[str]], Any]]:
    """Each way to encode a list of documents."""
    library = tokenizer._encoder.plain
    fast = tokenizer._encoder.fast
    assert isinstance(fast, FastEncoder), "pip install 'llm-from-zero[fast]'"
    tiktoken = fast.encoding
    return {
        "tokenizers encode_batch": lambda texts: library.encode_batch(
            texts, add_special_tokens=False
        ),
        "tokenizers encode_batch_fast": lambda texts: library.encode_batch_fast(
            texts, add_special_tokens=False
        ),
        "tiktoken, 1 thread": lambda texts: [tiktoken.encode_ordinary(text) for text in texts],
        "tiktoken, 2 threads": lambda texts: tiktoken.encode_ordinary_batch(texts, num_threads=2),
        "ours (encode_batch)": tokenizer.encode_batch,
    }


def ids_of(result: Any) -> list[list[int]]:
    return [getattr(one, "ids", one) for one in result]


def compare(tokenizer: Tokenizer, texts: list[str], rounds: int) -> None:
    n_bytes = sum(len(text.encode()) for text in texts)
    seconds: dict[str, list[float]] = {name: [] for name in ways(tokenizer)}
    expected = None
    for _ in range(rounds):
        for name, encode in ways(tokenizer).items():
            start = time.perf_counter()
            result = encode(texts)
            seconds[name].append(time.perf_counter() - start)
            ids = ids_of(result)
            expected = expected or ids
            assert ids == expected, f"{name} gives other ids"
    first = next(iter(seconds))
    print(f"{'':30}{'MB/s, best':>12}{'median':>9}{'× ' + first:>28}")
    for name, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], found, strict=True))
        best, median = n_bytes / min(found) / 1e6, n_bytes / statistics.median(found) / 1e6
        print(f"{name:30}{best:12.1f}{median:9.1f}{ratio:28.2f}", flush=True)


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=16384)
    options = parser.parse_args()
    encoder.WORTH_IT = 0
    for kind in ("english and code", "chinese"):
        texts = documents(options.megabytes, kind)
        n_bytes = sum(len(text.encode()) for text in texts)
        start = time.perf_counter()
        tokenizer = gpt2_like(texts, options.vocab_size)
        trained = time.perf_counter() - start
        start = time.perf_counter()
        assert tokenizer._encoder.fast is not None
        checked = time.perf_counter() - start
        print(f"{kind}: {len(texts)} documents, {n_bytes / 1e6:.1f} MB; ", end="")
        print(
            f"{tokenizer.vocab_size} tokens trained in {trained:.1f} s, checked in {checked:.2f} s"
        )
        compare(tokenizer, texts, options.rounds)
        print()
    print("1 MiB of one character, seconds (tokenizer of the last table):")
    for unit in ("a", "^", " ", "月"):
        text = unit * ((1 << 20) // len(unit.encode()))
        start = time.perf_counter()
        tokenizer.encode_batch([text])
        print(f"  {unit!r:6} {time.perf_counter() - start:.2f}")
    print(f"Python {sys.version.split()[0]}, tokenizers {tokenizers.__version__}")


if __name__ == "__main__":
    main()
