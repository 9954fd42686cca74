"""A tiny model in a directory, made once."""

import pytest
import torch

from gpt_model.config import preset
from gpt_model.model import GPT
from gpt_model.model_directory import find_model_directory
from tokenization.tokenizer import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog; 明月几时有？把酒问青天。\n" * 30


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A random model of one layer with a BPE of 300 tokens and a context of 64."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    config = preset("gpt-micro", vocab_size=tokenizer.vocab_size, max_seq_len=64)
    model = GPT(config.replace(n_layers=1, dim=32, n_heads=2))
    directory = tmp_path_factory.mktemp("model") / "tiny"
    model.save(directory, tokenizer)
    return directory


@pytest.fixture
def shapes_read():
    """The shapes of all that runs through a GPT (with --no-fast: otherwise kernels do it)."""
    shapes = []

    def note(module, given):
        if isinstance(module, GPT):
            shapes.append(tuple(given[0].shape))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield shapes
    handle.remove()


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8", newline="\n")
    return path


@pytest.fixture
def same_models():
    """Have two runs ended in the same weights, to the last bit?"""

    def compare(first, second):
        a, b = (GPT.load(find_model_directory(run)).state_dict() for run in (first, second))
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return compare
