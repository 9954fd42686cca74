"""GPT：初始化，整个前向，数参数；损失、掩码、困惑度；八道。"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from course.content.block.exercises import new_attention, new_feed_forward, new_norm, nothing
from course.exercise import Exercise

Part = Callable[[Tensor], Tensor]
WEIGHTS = ("token_table", "0.w_q", "0.w_o", "0.w_up", "0.w_down", "2.w_v", "2.w_o", "2.w_down")


def depth(random_: random.Random, case: int) -> dict[str, Any]:
    """How many layers, and the standard deviation to start from."""
    return dict(zip(("n_layers", "base_std"), ((6, 0.02), (12, 0.05), (4, 0.1))[case], strict=True))


def all_stds(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The standard deviation of every weight, by name."""
    return {f"std of {n}": float(answer.initial_std(n, **inputs)) for n in WEIGHTS}


def new_block(width: int) -> Part:
    """A Pre-LN block with weights of its own."""
    norms = new_norm(width), new_norm(width)
    attention, feed_forward = new_attention(width), new_feed_forward(width)

    def block(x: Tensor) -> Tensor:
        x = x + attention(norms[0](x))
        return x + feed_forward(norms[1](x))

    return block


def whole_gpt(random_: random.Random, case: int) -> dict[str, Any]:
    """ids, both tables, three blocks, a last norm; V > T, so that a wrong look-up does not fail."""
    batch, length, vocabulary, width = ((2, 5, 9, 4), (3, 4, 11, 6))[case]
    return {
        "ids": torch.randint(vocabulary, (batch, length)),
        "token_table": torch.randn(vocabulary, width),
        "position_table": torch.randn(vocabulary + 3, width),
        "blocks": [new_block(width) for _ in range(3)],
        "final_norm": new_norm(width),
    }


def forward_and_backward(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The logits, and the gradient that reaches the token table by both of its uses."""
    table = inputs["token_table"].clone().requires_grad_()
    logits = answer.gpt_forward(*{**inputs, "token_table": table}.values())
    probe = torch.linspace(-1.0, 1.0, logits.numel()).view(logits.shape)
    (gradient,) = torch.autograd.grad((logits * probe).sum(), table)
    return {"logits": logits, "gradient_of_the_token_table": gradient}


def logits_and_ids(random_: random.Random, case: int) -> dict[str, Any]:
    """logits (B, T, V) and the text itself."""
    batch, length, vocabulary = ((2, 5, 7), (3, 4, 6), (4, 6, 5))[case]
    return {
        "logits": 2.0 * torch.randn(batch, length, vocabulary),
        "ids": torch.randint(vocabulary, (batch, length)),
    }


def certain(ids: Tensor, shift: int, vocabulary: int) -> Tensor:
    """Logits of a model that is rather certain: at t it says token t + shift of the text."""
    return 3.0 * torch.nn.functional.one_hot(ids.roll(-shift, dims=1), vocabulary).double()


def loss_and_known_models(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The loss, and what models get whose every answer is known beforehand."""
    logits, ids = inputs.values()
    vocabulary = logits.shape[-1]
    loss = answer.next_token_loss(logits, ids)
    known = {
        "loss_when_certain": certain(ids, 1, vocabulary),
        "loss_when_copying": certain(ids, 0, vocabulary),
        "loss_when_skipping_one": certain(ids, 2, vocabulary),
        "loss_when_reciting_backwards": certain(ids, -1, vocabulary),
    }
    return {"loss": loss} | {name: answer.next_token_loss(z, ids) for name, z in known.items()}


def model_and_known_models(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same for models that are called: what they say depends on the text alone."""
    model, tokens, vocabulary = inputs.values()

    def saying(shift: int) -> Tensor:
        logits = certain(tokens, shift, vocabulary)[:, :-1]
        found: Tensor = answer.language_model_loss(lambda ids: logits[:, : ids.shape[1]], tokens)
        return found

    return {
        "loss": answer.language_model_loss(model, tokens),
        "loss_when_certain": saying(1),
        "loss_when_copying": saying(0),
        "loss_when_skipping_one": saying(2),
        "loss_when_reciting_backwards": saying(-1),
    }


def logits_and_labels(random_: random.Random, case: int) -> dict[str, Any]:
    """Labels with another number of ignored ones in every row; token 0 is a real label."""
    batch, length, vocabulary, ignore = ((3, 6, 7, -100), (2, 5, 8, 7), (4, 7, 5, 2))[case]
    logits = 2.0 * torch.randn(batch, length, vocabulary)
    targets = torch.randint(vocabulary - 1, (batch, length))
    targets = torch.where(targets == ignore, 1, targets)
    targets[:, 0], targets[0, -1] = 0, 0
    for row in range(1, batch):
        targets[row, length - row :] = ignore
    return {"logits": logits, "targets": targets, "ignore": ignore}


def several_losses(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The loss, and two more: two single numbers may be equal by chance, six are not."""
    logits, targets, ignore = inputs.values()
    return {
        "loss": answer.masked_loss(logits, targets, ignore),
        "loss_of_negated_logits": answer.masked_loss(-logits, targets, ignore),
        "loss_of_halved_logits": answer.masked_loss(logits / 2, targets, ignore),
    }


def losses_and_counts(random_: random.Random, case: int) -> dict[str, Any]:
    """Mean losses of batches of very different sizes."""
    counts = ([6, 1, 3], [2, 5], [4, 7, 1, 3])[case]
    losses = [0.6 + 0.6 * number + 0.3 * random_.random() for number in range(len(counts))]
    return {"losses": losses, "counts": counts}


def one_number(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The perplexity as a plain number."""
    return {"perplexity": float(answer.perplexity(**inputs))}


def model_and_tokens(random_: random.Random, case: int) -> dict[str, Any]:
    """A small causal model, and texts with one token more than it reads."""
    batch, length, vocabulary, width = ((2, 6, 7, 4), (3, 5, 9, 6))[case]
    table = torch.randn(vocabulary, width)
    attention = new_attention(width)
    return {
        "model": lambda ids: (table[ids] + attention(table[ids])) @ table.T,
        "tokens": torch.randint(vocabulary, (batch, length)),
        "vocabulary": vocabulary,
    }


EXERCISES = (
    Exercise(
        "gpt.01", 3, ("initial_std",), depth, all_stds, checkpoint=("week3-gpt",)
    ),
    Exercise(
        "gpt.02", 3, ("gpt_forward",), whole_gpt, forward_and_backward, cases=2,
        checkpoint=("week3-gpt",),
    ),
    Exercise(
        "gpt.03", 3,
        ("token_table_parameters", "position_table_parameters", "attention_parameters",
         "feed_forward_parameters", "norm_parameters", "total"),
        nothing, kind="predict", cases=1, tolerance=1e-9, checkpoint=("week3-gpt",),
    ),
    Exercise(
        "gpt.04", 4,
        ("initial_loss", "initial_perplexity", "characters_loss", "half_sure_loss",
         "certain_loss"),
        nothing, kind="predict", cases=1, tolerance=1e-3, checkpoint=("week4-loss",),
    ),
    Exercise(
        "gpt.05", 4, ("next_token_loss",), logits_and_ids, loss_and_known_models,
        checkpoint=("week4-loss",),
    ),
    Exercise("gpt.06", 4, ("masked_loss",), logits_and_labels, several_losses),
    Exercise("gpt.07", 4, ("perplexity",), losses_and_counts, one_number),
    Exercise(
        "gpt.08", 4, ("language_model_loss",), model_and_tokens, model_and_known_models,
        kind="repair", cases=2, starts_with="LOSS-11",
    ),
)  # fmt: skip
