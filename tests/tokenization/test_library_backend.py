"""The library is opened without its surprises: forks, parallelism, switches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenization.library_backend import build_characters, open_library

ROOT = Path(__file__).resolve().parents[2]
NAME = "TOKENIZERS_PARALLELISM"

FORK = """
import os, sys
from tokenization.tokenizer import Tokenizer
tokenizer = Tokenizer.train_bpe(["low low lower"] * 100, 260)
texts = ["low lower"] * 1000
ids = tokenizer.encode_batch(texts)
for _ in range(2):
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        same = tokenizer.encode_batch(texts) == ids
        told = os.environ.get("TOKENIZERS_PARALLELISM")
        if grandchild:
            same = same and os.waitpid(grandchild, 0)[1] == 0
        os._exit(0 if same and told == sys.argv[1] else 1)
    assert os.waitpid(child, 0)[1] == 0
print(os.environ.get("TOKENIZERS_PARALLELISM"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(("given", "in_child"), [(None, "false"), ("true", "false")])
def test_forked_children_work_in_silence(given, in_child):
    environment = {key: value for key, value in os.environ.items() if key != NAME}
    environment["PYTHONPATH"] = str(ROOT)
    if given:
        environment[NAME] = given
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, in_child],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,  # a child that waits for threads it does not have waits for ever
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout == f"{given}\n"  # the parent's setting is as it was


def test_one_object_for_each_reading_of_special_tokens():
    text = build_characters(["ab"], ("<|x|>",))
    as_text = open_library(text, "my.json", special_as_text=True)
    as_special = open_library(text, "my.json", special_as_text=False)
    assert as_special.encode("a<|x|>b").ids == [1, 0, 2]
    assert as_text.encode("a<|x|>b").ids == [1, 2]  # "<|x|>" itself is not in the alphabet


def test_what_the_library_refuses_is_a_value_error():
    with pytest.raises(ValueError, match=r"my\.json: the tokenizers library refuses it: "):
        open_library('{"model": 3}', "my.json", special_as_text=True)
