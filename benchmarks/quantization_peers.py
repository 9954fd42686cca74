"""What other programs' rounding costs: quantization_quality.py writes the model, this asks them.

    python benchmarks/quantization_peers.py FOLDER

FOLDER holds a model in Hugging Face's layout (hf/), as GGUF (f32.gguf) and the held-out windows
(windows.json, rows of ids). Every peer gets the same windows and answers with the mean loss of
the same tokens, in nats; a line of JSON each. What cannot be imported is named, not guessed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Windows = list[list[int]]


def torchao(folder: Path, kind: str, windows: Windows) -> float:
    """Weights only, round to nearest, on the Hugging Face model; lm_head stays as it is."""
    import transformers
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "hf", dtype=torch.float32
    ).eval()

    def chosen(module: Any, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")

    if kind == "int8 a row":
        quantize_(model, Int8WeightOnlyConfig(version=2), chosen)
    elif kind != "fp32":
        size = kind.rpartition(" ")[2]
        granularity = PerAxis(0) if size == "row" else PerGroup(int(size))
        config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity)
        quantize_(model, config, chosen)
    total, n_tokens = 0.0, 0
    with torch.inference_mode():
        for rows in torch.tensor(windows).split(32):
            logits = model(rows[:, :-1]).logits
            wanted = rows[:, 1:].flatten()
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted, reduction="sum")
            )
            n_tokens += len(wanted)
    return total / n_tokens


def llama_cpp(folder: Path, kind: str, windows: Windows) -> float:
    """Its own quantizer (pure: the vocabulary too) and its own kernels, activations in 8 bits."""
    import llama_cpp
    import numpy

    path = folder / f"{kind}.gguf"
    if not path.is_file():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
        options.pure, options.nthread = True, torch.get_num_threads()
        whole = str(folder / "f32.gguf").encode()
        failed = llama_cpp.llama_model_quantize(whole, str(path).encode(), options)
        if failed:
            raise RuntimeError(f"llama.cpp did not write {path}")
    length, threads = len(windows[0]), torch.get_num_threads()
    engine = llama_cpp.Llama(
        str(path),
        n_ctx=length,
        n_batch=length,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )
    total, n_tokens = 0.0, 0
    for row in windows:
        engine.reset()
        engine.eval(row[:-1])
        logits = torch.from_numpy(numpy.array(engine.scores[: length - 1], dtype=numpy.float32))
        total += float(
            torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum")
        )
        n_tokens += length - 1
    return total / n_tokens


PEERS: dict[str, tuple[Callable[[Path, str, Windows], float], tuple[str, ...]]] = {
    "torchao": (torchao, ("fp32", "int8 a row", "int4 a row", "int4 64", "int4 32")),
    "llama.cpp": (llama_cpp, ("f32", "q8_0", "q4_0")),
}


def main() -> None:
    folder = Path(sys.argv[1])
    # whatever the libraries print goes to standard error: standard output is for the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    windows = json.loads((folder / "windows.json").read_text(encoding="utf-8"))
    for peer, (measure, kinds) in PEERS.items():
        for kind in kinds:
            answer: dict[str, Any] = {"peer": f"{peer} {kind}"}
            try:
                answer["loss"] = measure(folder, kind, windows)
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                first = (str(error).strip() or "no reason given").splitlines()[0]
                answer["missing"] = f"{type(error).__name__}: {first}"
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
