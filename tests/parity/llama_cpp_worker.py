"""Runs under an interpreter that has llama_cpp: a job as JSON on stdin, the answer on stdout.

A process of its own, because llama.cpp aborts the process when a model is not as it expects.
"""

import json
import sys

import llama_cpp


def main():
    job = json.load(sys.stdin)
    model = llama_cpp.Llama(
        job["path"],
        vocab_only=job["ids"] is None,
        n_ctx=job.get("n_ctx", 64),
        n_threads=1,
        n_gpu_layers=0,
        logits_all=True,
        type_k=0,  # keys and values in float32: nothing but the weights is rounded
        type_v=0,
        flash_attn=False,
        verbose=False,
    )
    answer = {"metadata": model.metadata, "n_vocab": model.n_vocab()}
    if job["ids"] is not None:
        model.eval(job["ids"])
        answer["logits"] = model.scores[: len(job["ids"])].tolist()
    if job["texts"]:
        encoded = [
            [
                model.tokenize(text.encode(), add_bos=add_bos, special=special)
                for text in job["texts"]
            ]
            for add_bos, special in ((False, False), (True, True))
        ]
        answer["plain"], answer["special"] = encoded
        pieces = [b"".join(piece(model, token) for token in ids) for ids in encoded[0]]
        answer["decoded"] = [data.hex() for data in pieces]
        answer["eos"] = model.token_eos()
        vocab = llama_cpp.llama_model_get_vocab(model.model)
        answer["ends"] = [
            token for token in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, token)
        ]
    json.dump(answer, sys.stdout)


def piece(model, token):
    buffer = llama_cpp.llama_cpp.ctypes.create_string_buffer(256)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    size = llama_cpp.llama_token_to_piece(vocab, token, buffer, 256, 0, True)
    return buffer.raw[:size]


if __name__ == "__main__":
    main()
