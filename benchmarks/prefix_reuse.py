"""What does a common beginning save? Time to the first token of a batch, with and without reuse.

    python benchmarks/prefix_reuse.py [--rows 8] [--shared 400] [--rests 12] [--rounds 5] [--quick]

A randomly initialised gpt2-124M (--quick: a tiny model), prepared for inference and not. Four
batches: the same prompt in every row, prompts that share their beginning and differ in their last
tokens, prompts that share nothing (what looking for a common beginning costs), and a single prompt
after an earlier call that began the same way (a chat's next turn; inference/prefix_cache.py). Each
contender takes its turn in every round; medians of the rounds, and the ratio of each round's two
times. The ceiling is the ratio of the tokens that have to run through the model.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import cast

import torch

from foundation.demonstration import use_utf8
from gpt_model.config import preset
from gpt_model.model import GPT
from inference.decoder import Decoder
from inference.prefix_cache import PrefixCache
from inference.prepared import prepare_for_inference
from inference.shared_prompt import share


def first_token(
    model: GPT, prompts: list[list[int]], sharing: bool, earlier: list[int] | None = None
) -> tuple[float, list[int]]:
    """Seconds until every row's first token is known, and the tokens.

    earlier: what a call before this one has read, which is not timed.
    """
    prefixes = None
    if earlier and sharing:
        prefixes = PrefixCache()
        Decoder(model, [earlier], max_new_tokens=32, prefixes=prefixes).next_logits()
    began = time.perf_counter()
    decoder = Decoder(model, prompts, max_new_tokens=32, sharing=sharing, prefixes=prefixes)
    tokens = decoder.next_logits().argmax(dim=-1).tolist()
    return time.perf_counter() - began, tokens


Batches = dict[str, tuple[list[list[int]], list[int]]]


def batches(n_rows: int, n_shared: int, n_rest: int, vocab: int) -> Batches:
    """The four batches, and what an earlier call has read; rests are of unequal length."""

    def random_ids(n: int) -> list[int]:
        return cast("list[int]", torch.randint(vocab, (n,)).tolist())

    beginning = random_ids(n_shared)
    rests = [random_ids(max(1, n_rest - row % 4)) for row in range(n_rows)]
    whole = n_shared + n_rest
    return {
        "one prompt": ([beginning + rests[0]] * n_rows, []),
        "a common beginning": ([beginning + rest for rest in rests], []),
        "nothing in common": ([[row, *random_ids(whole - 1)] for row in range(n_rows)], []),
        "the next turn, one row": ([beginning + rests[0]], beginning),
    }


def tokens_read(prompts: list[list[int]], earlier: list[int]) -> int:
    """Tokens (and padding) that run through the model when the beginning is shared."""
    if earlier:  # it begins the only prompt
        return len(prompts[0]) - len(earlier)
    found = share(prompts)
    longest = max(map(len, prompts))
    return found.length + len(found.rows) * (longest - found.length)


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--shared", type=int, default=400)
    parser.add_argument("--rests", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model and one round")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    small = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 300} if arguments.quick else {}
    model = GPT(preset("gpt2", **small)).eval()
    n_rounds = 1 if arguments.quick else arguments.rounds
    models = {"PyTorch": model, "prepared": cast("GPT", prepare_for_inference(model))}
    sizes = arguments.rows, arguments.shared, arguments.rests
    print("batch | model | each row ms | shared ms | times faster | tokens say")
    with torch.inference_mode():
        for batch, (prompts, earlier) in batches(*sizes, model.config.vocab_size).items():
            ceiling = len(prompts) * max(map(len, prompts)) / tokens_read(prompts, earlier)
            for name, one in models.items():
                rounds = []
                for turn in range(n_rounds + 1):  # the first one warms up
                    plain, expected = first_token(one, prompts, False, earlier)
                    shared, found = first_token(one, prompts, True, earlier)
                    if found != expected:
                        raise SystemExit(f"{batch}, {name}: the tokens differ")
                    if turn:
                        rounds.append((1e3 * plain, 1e3 * shared, plain / shared))
                plain, shared, faster = map(median, zip(*rounds, strict=True))
                print(
                    f"{batch} | {name} | {plain:.0f} | {shared:.0f} | {faster:.2f} | {ceiling:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
