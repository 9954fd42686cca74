"""With the compiled kernels and real byte-level tokens too: neighbours change nothing."""

import json
import random

import pytest
import torch

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.constraints import Constraint
from inference.generator import SamplingParams, TextGenerator
from inference.guessing import DraftModel, PromptLookup
from inference.prepared import prepare_for_inference
from inference.speculative import Speculation
from tokenization.tokenizer import Tokenizer

LINES = [
    '{"name": "春天", "age": 12, "tags": ["a", "b"]}',
    "the name of the 春天 is abba, 12 or 34",
]
TOKENIZER = Tokenizer.train_bpe(LINES * 5, 320)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer"},
        "kind": {"enum": ["春", "name", None]},
    },
    "required": ["name", "kind"],
}


def model(seed=3, **changes):
    torch.manual_seed(seed)
    sizes = {"max_seq_len": 64, "dim": 32, "n_layers": 2, "n_heads": 2, "init_std": 0.3}
    sizes = {"vocab_size": TOKENIZER.vocab_size, "position": "rope", **sizes, **changes}
    return GPT(GPTConfig(**sizes)).eval()


@pytest.fixture(scope="module", params=["plain", "kernels"])
def writer(request):
    ready = prepare_for_inference(model()) if request.param == "kernels" else model()
    return TextGenerator(ready, TOKENIZER)


def sources(kind):
    draft = model(4, n_layers=1, max_seq_len=24)
    draft = prepare_for_inference(draft) if kind == "kernels" else draft
    return [PromptLookup(2, 1), DraftModel(draft, TOKENIZER)]


def kind_of(writer):
    return "plain" if isinstance(writer.model, GPT) else "kernels"


def test_batches_samples_and_guesses_change_no_sampled_text(writer):
    choose = random.Random(1)
    pool = [
        (
            "".join(choose.choices("the name 春a1", k=choose.randint(1, 12))),
            SamplingParams(
                max_new_tokens=choose.randint(4, 16),
                temperature=choose.choice([0.0, 0.8, 1.3]),
                top_k=choose.choice([0, 20]),
                top_p=choose.choice([0.8, 1.0]),
                repetition_penalty=choose.choice([1.0, 1.2]),
                num_return=choose.choice([1, 3]),
                seed=choose.randrange(100),
            ),
        )
        for _ in range(12)
    ]
    alone = [writer.generate([prompt], params) for prompt, params in pool]
    ahead = [Speculation(one, 4, adaptive=False) for one in sources(kind_of(writer))]
    for speculation in [None, None, None, *ahead]:
        order = choose.sample(range(len(pool)), choose.randint(2, len(pool)))
        prompts, params = zip(*(pool[index] for index in order), strict=True)
        together = writer.each(prompts, params, batch=4, speculation=speculation)
        assert list(together) == [alone[index] for index in order]
    for speculation in ahead:
        for (prompt, params), texts in zip(pool, alone, strict=True):
            assert writer.generate([prompt], params, speculation=speculation) == texts
    assert all(speculation.guessed for speculation in ahead)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 6.0])
def test_json_of_real_tokens_stays_valid_while_guessing(writer, temperature):
    rule = Constraint.json_schema(SCHEMA)
    for seed in range(4):
        params = SamplingParams(max_new_tokens=60, temperature=temperature, seed=seed)
        plain = writer.generate("a", params, constraint=rule)
        value = json.loads(plain.text)
        assert set(value) <= set(SCHEMA["properties"])
        assert len(value["name"]) <= 6
        assert value["kind"] in SCHEMA["properties"]["kind"]["enum"]
        for one in sources(kind_of(writer)):
            found = Speculation(one, 5, adaptive=False)
            assert writer.generate("a", params, constraint=rule, speculation=found) == plain
