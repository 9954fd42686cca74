"""A tiny GPT on a sequence that it can learn: a step takes about two milliseconds."""

import pytest
import torch

from gpt_model.config import preset
from gpt_model.model import GPT
from training.dataset import TokenBatches, sequential_batches
from training.hook_base import Hook
from training.train_config import TrainConfig
from training.trainer import Trainer

TOKENS = [(step * step + step) % 13 for step in range(600)]
TINY = preset("gpt-micro", vocab_size=13, max_seq_len=8, n_layers=1, dim=16, n_heads=2, dropout=0.1)


class Recorder(Hook):
    """Keeps everything it hears, in order."""

    def __init__(self):
        self.steps, self.evaluations, self.saved, self.warnings = [], [], [], []
        self.messages, self.events, self.result = [], [], None

    def on_start(self, trainer):
        self.events.append("start")

    def on_step(self, trainer, report):
        self.events.append("step")
        self.steps.append(report)

    def on_evaluate(self, trainer, report):
        self.events.append("evaluate")
        self.evaluations.append(report)

    def write_files(self, trainer, directory):
        self.events.append("write")

    def on_save(self, trainer, directory):
        self.events.append("save")
        self.saved.append(directory.name)

    def on_warning(self, trainer, message):
        self.warnings.append(message)

    def on_message(self, trainer, text):
        self.messages.append(text)

    def on_end(self, trainer, result):
        self.events.append("end")
        self.result = result

    @property
    def losses(self):
        return [report.loss for report in self.steps]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def new_recorder():
    return Recorder


@pytest.fixture
def tiny_model():
    def make(seed=1, **changes):
        torch.manual_seed(seed)
        return GPT(TINY.replace(**changes))

    return make


@pytest.fixture
def make_trainer(tiny_model):
    """Build a Trainer; keyword arguments that TrainConfig knows go there."""

    def make(*, model=None, batches=None, hooks=(), seed=0, run_dir=None, **options):
        names = TrainConfig.__dataclass_fields__
        settings = {key: options.pop(key) for key in list(options) if key in names}
        settings = {"steps": 12, "learning_rate": 5e-3, "eval_every": 4, **settings}
        options.setdefault("val_batches", lambda: sequential_batches(TOKENS[500:], 8, 8))
        return Trainer(
            model or tiny_model(),
            batches or TokenBatches(TOKENS[:500], 4, 8, seed=seed),
            config=TrainConfig(**{"device": "cpu", "precision": "fp32", **settings}),
            hooks=hooks,
            run_dir=run_dir,
            **options,
        )

    return make


@pytest.fixture
def same_weights():
    def check(one, other):
        pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
        return all(torch.equal(a, b) for (_, a), b in pairs)

    return check


@pytest.fixture
def same_optimizer():
    """Bitwise equality of the optimizers' states."""

    def check(one, other):
        first, second = (o.state_dict()["state"] for o in (one, other))
        return first.keys() == second.keys() and all(
            first[i].keys() == second[i].keys()
            and all(torch.equal(first[i][key], second[i][key]) for key in first[i])
            for i in first
        )

    return check
