"""One global batch, however it is cut: into micro-batches, among processes, padded or not.

Against the naive way: all rows in one batch, the mean over all targets, gradients and AdamW by the
library. Mean of means, a forgotten share, padding that counts: each moves a gradient by far more
than the bound.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import preset
from gpt_model.model import GPT
from training.accumulation import clip_factor, gradients_of, language_model_loss, scale_gradients
from training.batch import IGNORE_INDEX, Batch
from training.distributed import Processes
from training.train_config import TrainConfig
from training.train_step import TrainStep

VOCABULARY, LENGTH, TOLERANCE = 13, 8, 1e-6
CONFIG = preset(
    "gpt-micro", vocab_size=VOCABULARY, max_seq_len=LENGTH, n_layers=2, dim=16, n_heads=2
)
# AdamW divides by the gradient's own size: the usual eps would magnify rounding near zero
SETTINGS = {"steps": 9, "learning_rate": 1e-2, "warmup_steps": 0, "eps": 1e-3, "device": "cpu"}


def fresh_model():
    torch.manual_seed(0)
    return GPT(CONFIG)


@st.composite
def global_batches(draw):
    """Rows with 0 to T targets each, dealt out to W·k micro-batches of different sizes."""
    world = draw(st.sampled_from([1, 2, 3, 4]))
    n_pieces = world * draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 3), min_size=n_pieces, max_size=n_pieces))
    n_rows = sum(sizes)
    lengths = draw(st.lists(st.integers(0, LENGTH), min_size=n_rows, max_size=n_rows))
    lengths[draw(st.integers(0, n_rows - 1))] = LENGTH  # a batch without targets has no mean
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    ids = torch.randint(VOCABULARY, (n_rows, LENGTH + 1), generator=generator)
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    for row, length in enumerate(lengths):
        targets[row, length:] = IGNORE_INDEX
    cuts = torch.split(torch.arange(n_rows), sizes)
    return world, inputs, targets, [Batch(inputs[rows], targets[rows]) for rows in cuts]


def naive(inputs, targets):
    """The gradient of the mean loss and the model after one clipped AdamW step, by the library."""
    model = fresh_model()
    config = TrainConfig(**SETTINGS)
    logits = model(inputs).logits.flatten(0, 1)
    F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX).backward()
    gradient = flat(gradients_of(model.parameters()))
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    ).step()
    return gradient, flat(model.parameters())


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@settings(max_examples=40, deadline=None)
@given(batch=global_batches())
def test_any_cut_into_micro_batches_is_the_same_update(batch):
    _, inputs, targets, pieces = batch
    gradient, weights = naive(inputs, targets)
    model = fresh_model()
    config = TrainConfig(**SETTINGS, grad_accumulation=len(pieces))
    cpu = torch.device("cpu")
    take = TrainStep(
        model, lambda a: pieces[a], language_model_loss, config, device=cpu, precision="fp32"
    )
    report = take(0)
    clipped = gradient * clip_factor(float(gradient.norm()), config.grad_clip)
    assert report.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert (flat(gradients_of(model.parameters())) - clipped).abs().max() < TOLERANCE
    assert (flat(model.parameters()) - weights).abs().max() < TOLERANCE


@settings(max_examples=40, deadline=None)
@given(batch=global_batches())
def test_any_number_of_processes_sees_the_same_gradient(batch):
    """Each process in turn, with the averaging that DDP does; two real ones: tests/parallelism."""
    world, inputs, targets, pieces = batch
    gradient, _ = naive(inputs, targets)
    model = fresh_model()
    shares, n_targets = [], 0
    for rank in range(world):
        mine = copy.deepcopy(model)
        for a in Processes(rank, world).share_of(0, len(pieces)):
            loss, n = language_model_loss(mine, pieces[a])
            loss.backward()
            n_targets += n
        shares.append(gradients_of(mine.parameters()))
    averaged = [torch.stack(same).mean(0) for same in zip(*shares, strict=True)]
    scale_gradients(averaged, world / n_targets)
    assert (flat(averaged) - gradient).abs().max() < TOLERANCE
