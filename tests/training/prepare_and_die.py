"""Prepare a corpus in small parts with worker processes; die suddenly after some of them.

Run by test_token_parts.py, in a process of its own: python prepare_and_die.py SOURCE OUT WORKERS N
"""

import multiprocessing
import os
import signal
import sys

from tokenization.tokenizer import Tokenizer
from training import token_parts
from training.documents import Document
from training.prepare import prepare_data

PART_CHARS = 3000


class DeadlyTokenizer(Tokenizer):
    """Kills the worker process that uses it, as the system does when memory runs out."""

    def __reduce__(self):
        return DeadlyTokenizer, (self.to_json(),)

    def encode_batch(self, texts, *, allow_special=False):
        os._exit(9)


def die():
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(9)


def main():
    source, out, workers, deaths = sys.argv[1:]
    token_parts.PART_CHARS = PART_CHARS
    if deaths == "worker":
        tokenizer = DeadlyTokenizer(Tokenizer.characters(["ab"]).to_json())
        texts = [Document("ab" * 2000, "here")] * 4
        list(token_parts.encode_parts(texts, tokenizer, token_parts.Path(out), workers=2))
    calls = []

    def progress(n_bytes):
        calls.append(n_bytes)
        if len(calls) == int(deaths):
            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
            die()

    prepare_data(source, "bpe", out, vocab_size=300, workers=int(workers), progress=progress)


if __name__ == "__main__":
    main()
