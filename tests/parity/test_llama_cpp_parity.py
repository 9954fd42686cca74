"""llama.cpp itself computes our exported models and reads our tokenizers.

Its Python binding must be compiled, so it is no dependency: install llama-cpp-python here, or
name in LLAMA_CPP_PYTHON an interpreter that has it. Without either these tests are skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, processors, trainers

from gpt_model.config import GPTConfig
from gpt_model.gguf_architecture import ARCHITECTURES
from gpt_model.gguf_export import export_gguf
from gpt_model.gguf_tokenizer import KNOWN_SPLITS
from gpt_model.model import GPT
from tokenization.library_backend import split_parts
from tokenization.split_rules import SPLITS
from tokenization.text_pieces import byte_symbols
from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_settings import TokenizerSettings
from transformer_basics.rotary import RopeScaling

INTERPRETER = os.environ.get("LLAMA_CPP_PYTHON") or (
    sys.executable if importlib.util.find_spec("llama_cpp") else ""
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not INTERPRETER,
        reason="llama_cpp is not installed; name an interpreter that has it in LLAMA_CPP_PYTHON",
    ),
]

SHAPE = {
    "vocab_size": 37,
    "max_seq_len": 48,
    "dim": 64,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "ffn_dim": 96,
    "rope_theta": 500.0,
}
A = ARCHITECTURES
SCALINGS = {
    "linear": RopeScaling("linear", 4.0),
    "ntk": RopeScaling("ntk", 4.0),
    "yarn": RopeScaling("yarn", 4.0, 16),
    "yarn, its own factor": RopeScaling("yarn", 4.0, 16, attention_factor=1.5),
    "linear, a factor": RopeScaling("linear", 4.0, attention_factor=1.5),
}
CASES = {
    "gpt2": GPTConfig(**{**SHAPE, "n_kv_heads": None}),
    "gpt2 untied, grouped, no biases": GPTConfig(
        **SHAPE, tie_embeddings=False, qkv_bias=False, proj_bias=False
    ),
    "llama": GPTConfig(**SHAPE, **A["llama"]),
    "llama untied, narrow heads": GPTConfig(
        **SHAPE, **A["llama"], head_dim=8, tie_embeddings=False
    ),
    "llama, odd sizes": GPTConfig(
        **{**SHAPE, "dim": 60, "n_heads": 5, "n_kv_heads": 1, "ffn_dim": 41}, **A["llama"]
    ),
    "llama, llama3 scaling": GPTConfig(
        **SHAPE, **A["llama"], rope_scaling=RopeScaling("llama3", 8.0, 32)
    ),
    "qwen2": GPTConfig(**SHAPE, **A["qwen2"]),
    "qwen2 untied": GPTConfig(**SHAPE, **A["qwen2"], tie_embeddings=False),
    "qwen3, wide heads": GPTConfig(**SHAPE, **A["qwen3"], head_dim=32),
    "arcee": GPTConfig(**SHAPE, **A["arcee"]),
    **{
        f"{name}, {kind}": GPTConfig(**SHAPE, **A[name], rope_scaling=scaling)
        for kind, scaling in SCALINGS.items()
        for name in ("llama", "qwen3")
    },
}
# of the norm of the logits; ggml's GELU is a table of float16
LARGEST_ERROR = {"f32": 5e-6, "f16": 5e-3, "q8_0": 0.15}
GELU_TABLE = 1e-3


def ask(path, ids=None, texts=(), **options):
    worker = Path(__file__).with_name("llama_cpp_worker.py")
    job = {"path": str(path), "ids": ids, "texts": list(texts), **options}
    answer = subprocess.run(
        [INTERPRETER, str(worker)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    return json.loads(answer.stdout)


def random_model(config):
    torch.manual_seed(0)
    model = GPT(config.replace(init_std=0.15)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # ones and zeros would hide a missing norm or bias
            offset = 1.0 if name.endswith("norm.weight") else 0.0
            torch.nn.init.normal_(parameter, mean=offset, std=0.3)
    return model


@pytest.mark.parametrize("name", CASES)
def test_logits_are_ours(tmp_path, name):
    model = random_model(CASES[name])
    ids = torch.randint(37, (48,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model(ids[None]).logits[0]
    for weight_type, limit in LARGEST_ERROR.items():
        path = tmp_path / f"{weight_type}.gguf"
        export_gguf(model, path, weight_type=weight_type)
        theirs = torch.tensor(ask(path, ids.tolist())["logits"])
        assert theirs.shape == ours.shape
        error = float((theirs - ours).norm() / ours.norm())
        print(f"{name:<34}{weight_type:<6}{error:.1e}")
        assert error < max(limit, GELU_TABLE if name.startswith("gpt2") else 0.0)


TEXTS = [
    "The quick brown fox's 12345 jumps!\n\n  It's 3.14159, isn't it?",
    "举头望明月，低头思故乡。用Python写3个🙂🙃👩‍👩‍👧",
    "def f(x):\n        return x**2  # 平方\n\tif not x:\r\n    pass\n",
    "naïve café, résumé; e\u0301te\u0301 עברית हिन्दी ไทย 한국어 \u3000全角　空格",
    "<|endoftext|> is a <|im_end|>",
    " ",
    "a" * 200 + "^" * 90 + " " * 70 + "\n" * 9,
]


def library_tokenizer(split):
    """A BPE learned by the tokenizers library with one of the splits that llama.cpp knows."""
    library = tokenizers.Tokenizer(models.BPE(ignore_merges=SPLITS[split].ignore_merges))
    library.pre_tokenizer = split_parts(SPLITS[split])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_end|>", "<|begin|>"],
        initial_alphabet=byte_symbols(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS * 3, trainer)
    library.add_tokens(["<tool>"])  # not special: recognized in any text
    if split == "llama-bpe":
        library.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 2)]
        )
    return Tokenizer.from_json(library.to_str()), library


def exported(tmp_path, tokenizer, rows, **options):
    model = GPT(CASES["llama"].replace(vocab_size=rows, n_layers=1))
    export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, **options)
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("split", KNOWN_SPLITS)
def test_token_ids_are_ours(tmp_path, split):
    tokenizer, library = library_tokenizer(split)
    path = exported(tmp_path, tokenizer, tokenizer.vocab_size + 7)  # and rows that nobody names
    texts = [*TEXTS, "a<tool>b"]
    answer = ask(path, texts=texts)
    assert answer["metadata"]["tokenizer.ggml.pre"] == split
    assert answer["n_vocab"] == tokenizer.vocab_size + 7
    assert answer["eos"] == tokenizer.end_id
    for i, text in enumerate(texts):
        assert answer["plain"][i] == tokenizer.encode(text), text
        assert bytes.fromhex(answer["decoded"][i]) == text.encode()
        whole = library.encode(text, add_special_tokens=True).ids  # what the file itself rules
        assert answer["special"][i] == whole, text
        assert (whole[0] == 2) == (split == "llama-bpe")


@pytest.mark.parametrize("split", KNOWN_SPLITS)
def test_ids_of_a_tokenizer_that_we_learned_are_ours(tmp_path, split):
    tokenizer = Tokenizer.train_bpe(TEXTS * 3, 600, split=split)
    answer = ask(exported(tmp_path, tokenizer, tokenizer.vocab_size), texts=TEXTS)
    assert answer["plain"] == [tokenizer.encode(text) for text in TEXTS]


def test_a_chat_model_ends_where_ours_does(tmp_path):
    tokenizer, _ = library_tokenizer("qwen2")
    template = "{% for m in messages %}<|begin|>{{ m.content }}<|im_end|>{% endfor %}"
    settings = TokenizerSettings({"eos_token": "<|begin|>"}, {"default": template})
    tokenizer = Tokenizer(tokenizer.to_json(), settings=settings)
    answer = ask(exported(tmp_path, tokenizer, tokenizer.vocab_size), texts=["a"])
    assert answer["eos"] == 2
    # and <|im_end|>, which llama.cpp knows by its name
    assert set(answer["ends"]) == {*tokenizer.stop_ids, 1} == {0, 1, 2}
    assert answer["metadata"]["tokenizer.chat_template"] == template


def test_characters_are_ours(tmp_path):
    tokenizer = Tokenizer.characters(TEXTS)
    path = exported(tmp_path, tokenizer, tokenizer.vocab_size + 1)
    answer = ask(path, texts=TEXTS)
    for i, text in enumerate(TEXTS):
        assert answer["plain"][i] == tokenizer.encode(text)
        assert answer["special"][i] == tokenizer.encode(text, allow_special=True)
        assert bytes.fromhex(answer["decoded"][i]) == text.encode()


def test_characters_that_are_not_in_the_vocabulary_are_lost(tmp_path):
    """What the documents warn of: é is how byte-level BPE writes a byte of other characters."""
    text = "a鿿🙂b"
    for alphabet, seen in (("ab", "ab"), ("abé", "aéb")):
        tokenizer = Tokenizer.characters([alphabet])
        (ids,) = ask(exported(tmp_path, tokenizer, tokenizer.vocab_size), texts=[text])["plain"]
        assert tokenizer.decode(ids) == seen
        with pytest.raises(ValueError, match="not in the character vocabulary"):
            tokenizer.encode(text)


def test_our_own_split_named_as_another_still_loses_no_byte(tmp_path):
    tokenizer = Tokenizer.train_bpe(TEXTS * 3, 500)
    path = exported(tmp_path, tokenizer, 512, pretokenizer="qwen35")
    answer = ask(path, texts=TEXTS)
    for i, text in enumerate(TEXTS):
        assert bytes.fromhex(answer["decoded"][i]) == text.encode()
        assert tokenizer.decode(answer["plain"][i]) == text
    assert answer["plain"] != [tokenizer.encode(text) for text in TEXTS]


def test_bytes_without_a_merge(tmp_path):
    tokenizer = Tokenizer.train_bpe(["a"], 257)
    answer = ask(exported(tmp_path, tokenizer, 257, pretokenizer="gpt-2"), texts=TEXTS)
    assert answer["plain"] == [tokenizer.encode(text) for text in TEXTS]
