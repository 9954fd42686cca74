"""Who reads a long text in long_context.py: our caches, our kernels, Hugging Face's cache.

Each is one function that reads the next tokens and scores what follows the last one.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch

from gpt_model.caches import CacheSettings
from gpt_model.huggingface import their_tensors
from gpt_model.huggingface_export import config_to_huggingface
from gpt_model.model import GPT
from inference.prepared import prepare_for_inference

WINDOW = 1024  # sinks and window together
PEER = "transformers"
# with the rest of `modern`: what Hugging Face calls qwen3
PARTS_OF_PEER: dict[str, Any] = {"gated_ffn": True, "activation": "silu"}
Reader = Callable[[torch.Tensor], torch.Tensor]  # (1, T) ids → logits of the last one
Opener = Callable[[int], Reader]  # room for so many tokens → an empty cache behind a Reader


def settings_of(kind: str, reach: int = WINDOW) -> CacheSettings:
    """What each contender keeps; those that keep all of it in fp32 count as static."""
    if kind == "sliding":
        return CacheSettings("sliding", 4, reach - 4)
    return CacheSettings("static" if kind in ("kernels", PEER) else kind)


def has_peer() -> bool:
    return importlib.util.find_spec(PEER) is not None


def opener(kind: str, model: GPT, reach: int = WINDOW) -> Opener:
    """The model made ready once; every call opens an empty cache."""
    if kind == PEER:
        return open_peer(model)
    ready = prepare_for_inference(model) if kind == "kernels" else model

    def opened(capacity: int) -> Reader:
        cache = ready.make_cache(1, capacity=capacity, kind=settings_of(kind, reach))
        return lambda ids: ready(ids, cache=cache, last_only=True).logits

    return opened


def open_peer(model: GPT) -> Opener:
    """The same weights in Hugging Face transformers, with the cache that it takes by default."""
    import transformers

    values = config_to_huggingface(model.config)
    config = transformers.AutoConfig.for_model(**values)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    weights = dict(their_tensors(model, values["model_type"]))
    missing, unknown = theirs.load_state_dict(weights, strict=False, assign=True)
    assert not unknown
    assert set(missing) <= {"lm_head.weight"}  # tied to the table of embeddings
    theirs.tie_weights()
    renamed = "cache" in inspect.signature(theirs.forward).parameters
    name = "cache" if renamed else "past_key_values"

    def opened(capacity: int) -> Reader:
        cache = transformers.DynamicCache(config=config)  # grows, so it needs no capacity
        return lambda ids: theirs(ids, **{name: cache}, logits_to_keep=1).logits

    return opened
