"""One engine that writes tokens, in a process of its own; decode_speed.py asks, this answers.

    python benchmarks/decode_engines.py ENGINE FOLDER THREADS MODEL

Answers are lines of JSON. The first says what was loaded, or what is missing. Then every line of
standard input, {"rows": 1, "prompt": 128, "new": 256}, is answered with the seconds it took; the
first line of a size is also its warm-up. Each engine is asked for the tokens that it likes best,
in the way its own documentation shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Go = Callable[[list[list[int]], int], Any]  # prompts, new tokens → whatever


def our_model(folder: Path, name: str, dtype: torch.dtype) -> Any:
    from gpt_model.config import preset
    from gpt_model.model import GPT

    torch.manual_seed(0)
    return GPT(preset(name)).eval().to(dtype)


def ours(folder: Path, name: str, kind: str) -> tuple[Go, int]:
    """Kinds: plain-fp32, plain-bf16, flat-fp32 (no compiler), fp32, bf16, int8, int4."""
    from inference.generator import SamplingParams, TextGenerator
    from inference.prepared import PreparedModel, prepare_for_inference
    from inference.quantization import quantize
    from tokenization.tokenizer import Tokenizer
    from transformer_basics.quantized_linear import quantized_parts

    model: Any = our_model(folder, name, torch.bfloat16 if "bf16" in kind else torch.float32)
    n_bytes = sum(p.nbytes for p in model.parameters())
    if kind in ("int8", "int4"):
        bits = int(kind[3:])
        model = quantize(model, bits, 64, embeddings=bits)
        shared = {id(part.packed): part.n_bytes() for part in quantized_parts(model).values()}
        n_bytes = sum(shared.values())
    if kind.startswith("flat"):
        model = PreparedModel(model, None)
    elif not kind.startswith("plain"):
        model = prepare_for_inference(model)
    letters = "".join(chr(0x20000 + i) for i in range(model.config.vocab_size - 8))
    writer = TextGenerator(model, Tokenizer.characters([letters]))

    def go(prompts: list[list[int]], new: int) -> Any:
        params = SamplingParams(temperature=0, max_new_tokens=new)
        return [text.ids for text in writer.generate(prompts, params)]

    return go, n_bytes


def transformers_folder(folder: Path, name: str) -> Path:
    """The same model in Hugging Face's layout, made once."""
    from gpt_model.huggingface_writing import save_huggingface

    made = folder / "transformers"
    if not made.is_dir():
        save_huggingface(our_model(folder, name, torch.float32), made)
    return made


def hugging_face(folder: Path, name: str, kind: str) -> tuple[Go, int]:
    import transformers

    transformers.logging.set_verbosity_error()
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    where = transformers_folder(folder, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=dtype).eval()
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    if kind == "int8":  # torchao: weights only, compiled
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        # a tied table cannot be replaced by another type: give the head a table of its own
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        quantize_(model, Int8WeightOnlyConfig(version=2))
        options["cache_implementation"] = "static"
        model.forward = torch.compile(model.forward)

    def go(prompts: list[list[int]], new: int) -> Any:
        with torch.inference_mode():
            return model.generate(
                torch.tensor(prompts), max_new_tokens=new, min_new_tokens=new, **options
            )

    return go, sum(p.nbytes for p in model.parameters())


def ctranslate2(folder: Path, name: str, kind: str) -> tuple[Go, int]:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    made = folder / "ctranslate2"
    if not made.is_dir():
        give_a_tokenizer(transformers_folder(folder, name))
        TransformersConverter(str(transformers_folder(folder, name))).convert(str(made))
    threads = torch.get_num_threads()
    types = {"fp32": "float32", "int8": "int8", "bf16": "bfloat16"}
    engine = ctranslate2.Generator(
        str(made), device="cpu", compute_type=types[kind], intra_threads=threads
    )
    size = {"fp32": 4, "int8": 1, "bf16": 2}[kind]
    n_bytes = (made / "model.bin").stat().st_size // 4 * size

    def go(prompts: list[list[int]], new: int) -> Any:
        length = len(prompts[0]) + new
        words = [[f"t{i}" for i in prompt] for prompt in prompts]
        return engine.generate_batch(
            words,
            max_length=length,
            min_length=length,
            include_prompt_in_result=False,
            sampling_topk=1,
            end_token="t0",
        )

    return go, n_bytes


def give_a_tokenizer(folder: Path) -> None:
    """CTranslate2 keeps words, not ids: name them t0, t1, …"""
    import transformers
    from tokenizers import Tokenizer, models

    size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0"))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="t0", eos_token="t0", unk_token="t0"
    )
    fast.save_pretrained(folder)


def llama_cpp(folder: Path, name: str, kind: str) -> tuple[Go, int]:
    import llama_cpp
    import numpy

    from gpt_model.gguf_export import export_gguf

    stored = {"f32": "f32", "f16": "f16", "q8_0": "q8_0", "q4_0": "f32"}[kind]
    path = folder / f"{stored}.gguf"
    if not path.is_file():
        export_gguf(our_model(folder, name, torch.float32), path, weight_type=stored)
    if kind == "q4_0":
        whole, path = path, folder / "q4_0.gguf"
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.pure = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
        options.nthread = 2
        if not path.is_file():
            failed = llama_cpp.llama_model_quantize(
                str(whole).encode(), str(path).encode(), options
            )
            assert failed == 0
    threads = torch.get_num_threads()
    model = llama_cpp.Llama(
        str(path),
        n_ctx=512,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )

    def go(prompts: list[list[int]], new: int) -> Any:
        (prompt,) = prompts  # one row: its Python interface has no batches
        model.reset()
        model.eval(prompt)
        ids = []
        for _ in range(new):
            scores = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            row = numpy.ctypeslib.as_array(scores, shape=(model.n_vocab(),))
            ids.append(int(row.argmax()))
            if len(ids) < new:
                model.eval(ids[-1:])
        return ids

    return go, path.stat().st_size


FAMILIES: dict[str, Callable[[Path, str, str], tuple[Go, int]]] = {
    "ours": ours,
    "hf": hugging_face,
    "ct2": ctranslate2,
    "llama": llama_cpp,
    "torchao": hugging_face,
}


def main() -> None:
    engine, folder, threads, name = sys.argv[1:5]
    # whatever the libraries print goes to standard error: standard output is for the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    torch.set_num_threads(int(threads))
    family, kind = engine.split(":")
    began = time.perf_counter()
    try:
        go, n_bytes = FAMILIES[family](Path(folder), name, kind)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        answer({"missing": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True, "bytes": n_bytes, "seconds": time.perf_counter() - began})
    generator = torch.Generator().manual_seed(0)
    for line in sys.stdin:
        asked = json.loads(line)
        shape = (asked["rows"], asked["prompt"])
        prompts = torch.randint(1, 2000, shape, generator=generator).tolist()
        try:
            spent = []
            for new in (1, asked["new"]):
                began = time.perf_counter()
                go(prompts, new)
                spent.append(time.perf_counter() - began)
        except (RuntimeError, ValueError) as error:
            answer({"missing": f"{type(error).__name__}: {error}"})
            continue
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer({"first": spent[0], "all": spent[1], "peak": peak})


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
