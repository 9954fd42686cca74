"""Speculative decoding: how often are guesses right, and how much faster is it?

    python benchmarks/speculative.py --data tinyshakespeare.txt --models models [--rounds 5]

A model (six layers, 384 wide) and a draft (one layer, 128 wide) learn the same text with the same
tokenizer for --steps steps, once: they are kept in --models and loaded from there afterwards. Then
each contender writes the same texts, one at a time, in turns: a slow minute is slow for all.

    plain           a token at a time
    draft           the small model guesses
    lookup          earlier text guesses
    useless draft   a draft of random weights, never right: what is lost before it is switched off
    dear draft      the same, as large as the model itself

The texts are compared with the plain ones, token by token: speculation must not change them. With
PyTorch's kernels another number of rows rounds otherwise, so that one text in hundreds may differ;
the compiled kernels give the same bits. Seconds are of the whole call, with reading the prompt.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from foundation.demonstration import use_utf8
from gpt_model.config import preset
from gpt_model.model import GPT
from gpt_model.model_directory import load_model, save_model
from inference.generator import SamplingParams, TextGenerator
from inference.guessing import DraftModel, PromptLookup
from inference.prepared import prepare_for_inference
from inference.speculative import Speculation
from tokenization.tokenizer import Tokenizer

BLOCK, BATCH, VOCABULARY = 128, 16, 2048
SHAPES = {
    "model": {"n_layers": 6, "dim": 384, "n_heads": 6, "max_seq_len": 512},
    "draft": {"n_layers": 1, "dim": 128, "n_heads": 4, "max_seq_len": 512},
}


@dataclass
class Tally:
    """What one contender did: seconds of each round, and whether its texts were the plain ones."""

    seconds: list[float] = field(default_factory=list)
    same: int = 0
    texts: int = 0
    guessed: int = 0
    right: int = 0
    runs: int = 0
    written: int = 0


def learn(name: str, ids: torch.Tensor, steps: int, vocab_size: int) -> GPT:
    """Next-token prediction with AdamW and a rate that falls to zero."""
    torch.manual_seed(0)
    model = GPT(preset("modern-mini", vocab_size=vocab_size, **SHAPES[name]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    began = time.perf_counter()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        starts = torch.randint(len(ids) - BLOCK - 1, (BATCH,))
        rows = torch.stack([ids[i : i + BLOCK + 1] for i in starts.tolist()])
        loss = model(rows[:, :-1], rows[:, 1:]).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spent = time.perf_counter() - began
    print(f"{name}: {model.num_parameters():,} parameters, loss {loss.item():.3f}, {spent:.0f} s")
    return model.eval()


def open_models(data: Path, directory: Path, steps: int) -> tuple[dict[str, GPT], Tokenizer, str]:
    """Both models, the tokenizer and the held-out end of the text; learned where not kept."""
    text = data.read_text(encoding="utf-8")
    cut = int(0.95 * len(text))
    if not (directory / "draft").is_dir():
        tokenizer = Tokenizer.train_bpe([text[:cut]], VOCABULARY)
        ids = torch.tensor(tokenizer.encode(text[:cut]))
        for name in SHAPES:
            save_model(learn(name, ids, steps, tokenizer.vocab_size), directory / name, tokenizer)
    models = {name: load_model(directory / name) for name in SHAPES}
    return models, Tokenizer.load(directory / "model"), text[cut:]


def contenders(
    models: dict[str, GPT], tokenizer: Tokenizer, fast: bool
) -> tuple[TextGenerator, dict[str, Speculation | None]]:
    """The generator and the ways to guess; each keeps what it has learned about this machine."""

    def ready(model: GPT) -> GPT:
        return prepare_for_inference(model) if fast else model  # type: ignore[return-value]

    torch.manual_seed(1)
    blank = {name: GPT(model.config) for name, model in models.items()}
    return TextGenerator(ready(models["model"]), tokenizer), {
        "plain": None,
        "draft": Speculation(DraftModel(ready(models["draft"]), tokenizer)),
        "lookup": Speculation(PromptLookup()),
        "useless draft": Speculation(DraftModel(ready(blank["draft"]), tokenizer)),
        "dear draft": Speculation(DraftModel(ready(blank["model"]), tokenizer)),
    }


def measure(
    writer: TextGenerator,
    ways: dict[str, Speculation | None],
    prompts: list[str],
    params: list[SamplingParams],
    rounds: int,
) -> dict[str, Tally]:
    """Every contender writes every text in every round; the first round is not counted."""
    found = {name: Tally() for name in ways}
    for turn in range(rounds + 1):
        plain: list[tuple[int, ...]] = []
        for name, speculation in ways.items():
            began = time.perf_counter()
            texts = [
                writer.generate([prompt], one, speculation=speculation)[0].ids
                for prompt, one in zip(prompts, params, strict=True)
            ]
            spent = time.perf_counter() - began
            plain = plain or texts
            tally = found[name]
            if turn:
                tally.seconds.append(spent)
                tally.texts += len(texts)
                tally.same += sum(a == b for a, b in zip(texts, plain, strict=True))
            if speculation is not None:
                tally.guessed, tally.right = speculation.guessed, speculation.right
                tally.runs, tally.written = speculation.runs, speculation.written
    return found


def table(found: dict[str, Tally], n_tokens: int) -> list[str]:
    """Ratios are medians over the rounds of this contender's seconds to plain's in that round."""
    lines = ["contender | tokens/s | x plain | guesses right | tokens a run | same texts"]
    for name, tally in found.items():
        pairs = zip(found["plain"].seconds, tally.seconds, strict=True)
        ratio = median(a / b for a, b in pairs)
        share = f"{tally.right / tally.guessed:.0%}" if tally.guessed else ""
        each = f"{tally.written / tally.runs:.2f}" if tally.runs else "1"
        lines.append(
            f"{name} | {n_tokens / median(tally.seconds):.0f} | {ratio:.2f} | {share} | {each} | "
            f"{tally.same} of {tally.texts}"
        )
    return lines


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--fast", action="store_true", help="with the compiled kernels")
    arguments = parser.parse_args()
    models, tokenizer, rest = open_models(arguments.data, arguments.models, arguments.steps)
    if not arguments.rounds:
        return
    writer, _ = contenders(models, tokenizer, arguments.fast)
    step = len(rest) // arguments.prompts
    prompts = [rest[i * step :][:300] for i in range(arguments.prompts)]
    for temperature in arguments.temperatures:
        _, ways = contenders(models, tokenizer, arguments.fast)
        params = [
            SamplingParams(
                temperature=temperature,
                max_new_tokens=arguments.tokens,
                seed=seed,
                logit_bias={tokenizer.end_id or 0: -1e9},
            )
            for seed in range(len(prompts))
        ]
        found = measure(writer, ways, prompts, params, arguments.rounds)
        print(f"\ntemperature {temperature}, {len(prompts)} texts of {arguments.tokens} tokens")
        print("\n".join(table(found, arguments.tokens * len(prompts))))


if __name__ == "__main__":
    main()
