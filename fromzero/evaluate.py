"""`fromzero evaluate`：模型在一段文本上有多意外——损失、困惑度、每字节比特数。"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fromzero.option_types import MaybeInt, MaybePath, open_model


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a model on a text: loss, perplexity, bits per byte.

    Bits per byte compare models with different tokenizers; perplexity does not.

    Examples:
        fromzero evaluate --data my.txt
        fromzero evaluate --model runs/gpt-micro --data python-docs --stride 128
    """

    data: str
    """a file, folder, pattern or corpus name (python-docs, python-code)"""
    model: MaybePath = None
    """a model or run directory; without it, the newest one in runs/"""
    adapter: MaybePath = None
    """a LoRA adapter to put on it"""
    context: MaybeInt = None
    """how many tokens the model sees at once; without it, all it can"""
    stride: MaybeInt = None
    """how far the window moves each time; smaller is fairer and slower; without it, the context"""
    batch_size: int = 16
    """windows computed at once"""
    errors: str = "strict"
    """what to do with bytes that are not UTF-8: strict or replace"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """the type of the weights: auto (as saved), fp32 or bf16"""


def run(options: Options) -> int:
    """Print one model's figures on one corpus."""
    from evaluation.perplexity import evaluate_documents
    from training.corpus import load_corpus

    documents = load_corpus(options.data, errors=options.errors)
    model, tokenizer, directory = open_model(
        options.model, options.device, options.dtype, options.adapter
    )
    result = evaluate_documents(
        model,
        tokenizer,
        (document.text for document in documents),
        context=options.context,
        stride=options.stride,
        batch_size=options.batch_size,
    )
    print(f"model: {directory}", file=sys.stderr)
    rows = {"tokens": f"{result.n_tokens:,}", "loss": f"{result.loss:.4f} nats per token"}
    rows["perplexity"] = f"{result.perplexity:.2f}"
    if result.bits_per_byte is not None:
        rows["bits per byte"] = f"{result.bits_per_byte:.4f}"
    for name, value in rows.items():
        print(f"{name:<15}{value}")
    return 0
