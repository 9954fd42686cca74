"""Our LoRA and PEFT's are the same function: outputs, gradients, files, both ways."""

import copy

import pytest
import torch

from finetuning.adapter_files import load_adapter, save_adapter
from finetuning.adapters import adapted_layers
from finetuning.lora import LoRAConfig, apply_lora, lora_parameters, merge_lora
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from training.accumulation import language_model_loss
from training.batch import IGNORE_INDEX, Batch
from training.train_config import TrainConfig
from training.train_step import TrainStep

peft = pytest.importorskip("peft")

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "gate_proj", "down_proj"]
VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rsdora": {"use_dora": True, "use_rslora": True},
    "alpha-patterns": {
        "rank_pattern": {"up_proj": 5, r"blocks\.1\.attention\.q_proj": 1},
        "alpha_pattern": {"down_proj": 3, r".*\.0\..*k_proj": 11},
    },
}
IDS = torch.randint(31, (3, 12), generator=torch.Generator().manual_seed(7))


@pytest.fixture(params=["classic", "modern"])
def base(request):
    torch.manual_seed(3)
    modern = dict(n_kv_heads=1, position="rope", norm="rmsnorm", qkv_bias=False, proj_bias=False)
    changes = modern if request.param == "modern" else {}
    config = GPTConfig(
        vocab_size=31,
        max_seq_len=16,
        dim=24,
        n_layers=2,
        n_heads=3,
        ffn_dim=40,
        gated_ffn=True,
        **changes,
    )
    return GPT(config)


def of_peft(base, **variant):
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=ALL_LINEAR, **variant)
    return randomized(peft.get_peft_model(copy.deepcopy(base), config))


def of_ours(base, **variant):
    config = LoRAConfig(r=3, alpha=7, target=tuple(ALL_LINEAR), **variant)
    return randomized(apply_lora(copy.deepcopy(base), config))


def randomized(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def gradients_of_ours(model):
    found = {}
    for name, layer in adapted_layers(model).items():
        adapter = layer.current
        found[f"{name}.lora_A"] = adapter.A.grad.T
        found[f"{name}.lora_B"] = adapter.B.grad.T
        if adapter.magnitude is not None:
            found[f"{name}.lora_magnitude_vector"] = adapter.magnitude.grad
    return found


def gradients_of_peft(model):
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            found[key] = parameter.grad
    return found


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_peft_adapter_read_by_us_gives_equal_outputs_and_gradients(base, variant, tmp_path):
    theirs = of_peft(base, **variant)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapter(copy.deepcopy(base), tmp_path / "theirs")
    expected, found = theirs(IDS, IDS), ours(IDS, IDS)
    assert not torch.allclose(found.logits, base(IDS).logits, atol=1e-2)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=1e-6)
    expected.loss.backward()
    found.loss.backward()
    left, right = gradients_of_ours(ours), gradients_of_peft(theirs)
    assert left.keys() == right.keys()
    for name, gradient in right.items():
        torch.testing.assert_close(left[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_our_adapter_read_by_peft_gives_equal_outputs(base, variant, tmp_path):
    ours = of_ours(base, **variant)
    save_adapter(ours, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, atol=1e-6, rtol=1e-6)
        merged = theirs.merge_and_unload()(IDS).logits
        torch.testing.assert_close(merge_lora(ours)(IDS).logits, merged, atol=1e-6, rtol=1e-6)


def test_a_peft_adapter_chosen_by_a_regular_expression(base, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=r".*\.1\.attention\.[qv]_proj")
    theirs = randomized(peft.get_peft_model(copy.deepcopy(base), config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapter(copy.deepcopy(base), tmp_path / "theirs")
    assert list(adapted_layers(ours)) == ["blocks.1.attention.q_proj", "blocks.1.attention.v_proj"]
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-6, rtol=1e-6)


def test_three_training_steps_end_in_the_same_adapter(base, tmp_path):
    theirs = of_peft(base)
    theirs.save_pretrained(tmp_path / "start")
    ours = load_adapter(copy.deepcopy(base), tmp_path / "start")
    for model in (ours, theirs):
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.3)
        for _ in range(3):
            optimizer.zero_grad()
            model(IDS[:, :-1], IDS[:, 1:]).loss.backward()
            optimizer.step()
    assert len(lora_parameters(ours)) == 2 * len(adapted_layers(ours))
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
@pytest.mark.parametrize("batched", [True, False], ids=["whole", "accumulated"])
def test_our_training_step_is_peft_with_adamw(base, tmp_path, variant, batched):
    """Six steps of the one Trainer against PEFT, clipping, AdamW and masked answers written out."""
    theirs = of_peft(base, **variant)
    theirs.save_pretrained(tmp_path / "start")
    ours = load_adapter(copy.deepcopy(base), tmp_path / "start")
    targets = IDS[:, 1:].clone()
    targets[:, :4] = IGNORE_INDEX  # the question
    targets[1, 8:] = IGNORE_INDEX  # a shorter answer: unequal counts in the parts
    inputs = IDS[:, :-1]
    parts = [slice(0, 3)] if batched else [slice(0, 1), slice(1, 2), slice(2, 3)]

    config = TrainConfig(
        steps=6,
        learning_rate=0.005,
        weight_decay=0.1,
        schedule="constant",
        warmup_steps=0,
        grad_clip=0.1,
        grad_accumulation=len(parts),
    )
    take = TrainStep(
        ours,
        lambda index: Batch(*(t[parts[index % len(parts)]] for t in (inputs, targets))),
        language_model_loss,
        config,
        device=torch.device("cpu"),
        precision="fp32",
    )
    trainable = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=0.005, betas=config.betas, eps=config.eps, weight_decay=0.1, fused=True
    )
    for step in range(6):
        report = take(step)
        optimizer.zero_grad()
        loss = theirs(inputs, targets).loss  # the mean over what counts
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable, 0.1)
        optimizer.step()
        assert abs(report.loss - loss.item()) < 1e-5
        assert abs(report.grad_norm - norm.item()) < 1e-5
    assert norm > 0.1  # it was clipped
    found, wanted = {}, {}
    for name, layer in adapted_layers(ours).items():
        found[f"{name}.lora_A"], found[f"{name}.lora_B"] = layer.current.A.T, layer.current.B.T
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            key = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            wanted[key] = parameter
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-5)


def test_the_initial_distribution_is_the_same(base):
    theirs = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=16, target_modules=["up_proj"])
    )
    ours = apply_lora(copy.deepcopy(base), LoRAConfig(r=16, target=("up_proj",)))
    left = torch.cat([layer.current.A.flatten() for layer in adapted_layers(ours).values()])
    right = torch.cat([p.flatten() for n, p in theirs.named_parameters() if "lora_A" in n])
    assert abs(left.std() - right.std()) < 0.01
    bound = base.config.dim**-0.5
    assert bound * 0.99 < left.abs().max() <= bound
    assert bound * 0.99 < right.abs().max() <= bound
