"""The whole course, solved by the references, ends in a model that trains and writes."""

import math
import random

import pytest
import torch

from course.assembly import PARTS, Model, Sizes, build_and_train, gather_parts, run_parts
from course.checkpoints import CHECKPOINTS, evidence_for
from course.diagnosis import diagnose, diagnose_source
from course.exercise import all_exercises, solution_source
from course.report import markdown_report
from course.running import run_source
from course.workspace import Workspace
from gpt_model.config import GPTConfig
from gpt_model.model import GPT

SMALL = Sizes(text=6_000, merges=60, block_size=32, batch_size=8, dim=32, steps=250, max_rate=1e-2)
LINES = (
    "床前明月光，疑是地上霜。", "举头望明月，低头思故乡。", "白日依山尽，黄河入海流。",
    "欲穷千里目，更上一层楼。", "春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多少。",
)  # fmt: skip
POEMS = "\n".join(random.Random(0).choices(LINES, k=200))


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("whole") / "mine")
    for exercise in all_exercises().values():
        source = solution_source(exercise, "zh")
        workspace.open(exercise).write_text(source, encoding="utf-8")
        text = workspace.source(exercise)
        found = diagnose_source(exercise, text)
        found = found or diagnose(exercise, run_source(exercise, text, 99), 99)
        workspace.attempted(exercise, text, found)
    return workspace


def test_everything_is_solved_and_every_box_ticked(solved):
    assert all(solved.solved(exercise) for exercise in all_exercises().values())
    assert solved.next() is None
    for checkpoint in CHECKPOINTS:
        assert evidence_for(checkpoint), checkpoint.key
    page = markdown_report(solved)
    assert page.count("- [x]") == len(CHECKPOINTS)


def test_the_parts_become_a_model_that_learns_and_writes(solved):
    parts, missing = gather_parts(solved.folder)
    assert missing == []
    assert set(vars(parts)) == set(PARTS)
    built, _ = run_parts(parts, POEMS, "床前", SMALL)
    # a blind guess costs ln V; six lines in any order are soon known by heart
    assert built.first_loss == pytest.approx(math.log(256 + 60), rel=0.05)
    assert built.last_loss < 0.5
    assert built.text.startswith("床前明月光")
    assert sum(line in LINES for line in built.text.splitlines()) >= 2


def test_the_learners_model_is_our_model(solved):
    """The same weights in the production GPT give the same logits."""
    torch.manual_seed(1)
    parts, _ = gather_parts(solved.folder)
    sizes = Sizes(block_size=16, dim=32, n_heads=4, n_layers=2)
    model = Model(parts, 50, sizes)
    ours = GPT(
        GPTConfig(
            vocab_size=50, max_seq_len=16, dim=32, n_layers=2, n_heads=4,
            activation="gelu", qkv_bias=False,
        )
    ).eval()  # fmt: skip
    state = {
        "token_embedding.weight": model.weights["token_table"],
        "position_embedding.weight": model.weights["position_table"],
        "final_norm.weight": model.weights["final.weight"],
        "final_norm.bias": model.weights["final.bias"],
    }
    names = {
        "w_q": "attention.q_proj.weight", "w_k": "attention.k_proj.weight",
        "w_v": "attention.v_proj.weight", "w_o": "attention.out_proj.weight",
        "w_up": "feed_forward.up_proj.weight", "b_up": "feed_forward.up_proj.bias",
        "w_down": "feed_forward.down_proj.weight", "b_down": "feed_forward.down_proj.bias",
        "norm_1.weight": "attention_norm.weight", "norm_1.bias": "attention_norm.bias",
        "norm_2.weight": "ffn_norm.weight", "norm_2.bias": "ffn_norm.bias",
    }  # fmt: skip
    for layer in range(2):
        for mine, theirs in names.items():
            weight = model.weights[f"{layer}.{mine}"]
            # larger than at the start, so that every part matters
            state[f"blocks.{layer}.{theirs}"] = weight + 0.3 * torch.randn_like(weight)
            model.weights[f"{layer}.{mine}"] = state[f"blocks.{layer}.{theirs}"]
        state[f"blocks.{layer}.attention.out_proj.bias"] = torch.zeros(32)
    ours.load_state_dict(state, strict=False)
    ids = torch.randint(50, (3, 16))
    with torch.no_grad():
        expected, found = ours(ids).logits, model(ids)
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_command_says_how_it_went(solved, capsys):
    assert build_and_train(solved.folder, "zh", SMALL) == 0
    out = capsys.readouterr().out
    assert "个参数" in out
    assert "import" in out.splitlines()[-1] or "import" in out


def test_what_is_missing_is_named(tmp_path, capsys):
    assert build_and_train(tmp_path / "new", "en") == 1
    out = capsys.readouterr().out
    assert "still to do" in out
    for exercise in ("heads", "bpe", "sampling"):
        assert exercise in out
