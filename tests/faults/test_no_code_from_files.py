"""No file can run code: whatever is in it, opening it creates no canary."""

import builtins
import importlib
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from finetuning.adapter_files import load_adapter, save_adapter
from finetuning.lora import LoRAConfig, apply_lora
from foundation.files import MANIFEST, write_manifest
from fromzero.main import main
from fromzero.option_types import open_model
from gpt_model.config import preset
from gpt_model.huggingface_config import config_from_huggingface
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.checkpoint import latest_checkpoint, load_checkpoint
from training.token_shard import TokenShard

CANARY = "canary.txt"


class Trap:
    """Whoever unpickles this runs a line of our choice."""

    def __reduce__(self):
        return (builtins.exec, (f"open({CANARY!r}, 'w', encoding='utf-8').close()",))


def plain_pickle():
    return pickle.dumps({"model.weight": Trap()})


def torch_zip():
    """What torch.save writes: a zip archive with a pickle inside."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "trap": Trap()}, buffer)
    return buffer.getvalue()


def numpy_objects():
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


TRAPS = {"pickle": plain_pickle, "torch": torch_zip, "numpy": numpy_objects}


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """The test fails if anything here was run."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / CANARY
    assert not (tmp_path / CANARY).exists(), "code from a file was run"


@pytest.fixture
def model_dir(tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.characters(["abcdefgh"])
    config = preset(
        "gpt-micro", vocab_size=tokenizer.vocab_size, max_seq_len=16, n_layers=1, dim=16, n_heads=2
    )
    GPT(config).save(tmp_path / "model", tokenizer)
    return tmp_path / "model"


def open_data(directory):
    """All that a training reads of its data."""
    TokenShard.open(directory, "train").close()
    return Tokenizer.load(directory)


def test_the_traps_do_spring(canary):
    """The measure itself: opened as their makers wish, all of them run code."""
    openings = {
        "pickle": lambda data: pickle.loads(data),
        "torch": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "numpy": lambda data: np.load(io.BytesIO(data), allow_pickle=True),
    }
    for name, make in TRAPS.items():
        openings[name](make())
        assert canary.exists(), name
        canary.unlink()
    assert zipfile.is_zipfile(io.BytesIO(torch_zip()))


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl"]
)
def test_a_directory_with_only_pickled_weights_is_refused(model_dir, trap, name, capsys):
    (model_dir / "model.safetensors").unlink()
    (model_dir / name).write_bytes(TRAPS[trap]())
    for with_config in (True, False):
        message = f"{name} is a pickle, which can run code when it is opened"
        with pytest.raises(ValueError, match=message):
            GPT.load(model_dir)
        assert main(["generate", "--model", str(model_dir), "--prompt", "a"]) == 2
        assert message in capsys.readouterr().err
        if with_config:
            (model_dir / "config.json").unlink()


def test_a_pickle_given_by_name_is_refused(tmp_path, capsys):
    path = tmp_path / "model.pt"
    path.write_bytes(torch_zip())
    assert main(["generate", "--model", str(path), "--prompt", "a"]) == 2
    assert "model.pt is a pickle" in capsys.readouterr().err


def test_a_pickle_beside_safetensors_is_not_touched(model_dir):
    before = GPT.load(model_dir)
    (model_dir / "pytorch_model.bin").write_bytes(torch_zip())
    after = GPT.load(model_dir)
    assert all(map(torch.equal, before.parameters(), after.parameters()))


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_trap_under_an_honest_name_is_refused_with_its_name(model_dir, trap, name):
    """Even with a manifest that vouches for it."""
    (model_dir / name).write_bytes(TRAPS[trap]())
    write_manifest(model_dir, "model")
    with pytest.raises(ValueError, match=name):
        open_model(model_dir)


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.safetensors", "random.safetensors", "trainer.json", MANIFEST],
)
def test_a_trap_in_a_checkpoint_is_refused_with_its_name(tmp_path, faults, trap, name):
    trainer = faults.make_run(tmp_path / "run", steps=3)
    trainer.fit()
    directory = tmp_path / "run" / "step-000003"
    (directory / name).write_bytes(TRAPS[trap]())
    if name != MANIFEST:
        facts = {"step": 3, "val_loss": trainer.state.val_loss}
        write_manifest(directory, "checkpoint", facts)
    before = faults.digest(trainer)
    with pytest.raises(ValueError, match=name):
        load_checkpoint(directory, trainer.model, trainer.take_step.optimizer)
    assert faults.digest(trainer) == before  # nothing of it got in
    if name in (MANIFEST, "trainer.json"):
        with pytest.warns(UserWarning, match=name), pytest.raises(ValueError, match=name):
            latest_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["train.bin", "train.documents.npy", "tokenizer.json"])
def test_a_trap_among_the_data_is_refused_with_its_name(tmp_path, trap, name):
    from training.prepare import prepare_data

    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten. " * 40, encoding="utf-8")
    for shard in prepare_data(str(text), "characters", tmp_path / "data"):
        shard.close()
    (tmp_path / "data" / name).write_bytes(TRAPS[trap]())
    with pytest.raises(ValueError, match=name):
        open_data(tmp_path / "data")
    # a manifest that vouches for it does not help either, where the format is checked
    manifest = json.loads((tmp_path / "data" / MANIFEST).read_text(encoding="utf-8"))
    facts = {k: v for k, v in manifest.items() if k not in ("format", "version", "files")}
    write_manifest(tmp_path / "data", manifest["format"].split("/")[1], facts)
    if name != "train.bin":  # any bytes are token ids
        with pytest.raises(ValueError, match=name) as caught:
            open_data(tmp_path / "data")
        assert "allow_pickle" not in str(caught.value)  # no advice to open it after all


@pytest.mark.parametrize("trap", TRAPS)
def test_an_adapter_that_is_a_pickle_is_refused(model_dir, tmp_path, trap):
    model = apply_lora(GPT.load(model_dir), LoRAConfig(r=2))
    save_adapter(model, tmp_path / "adapter")
    fresh = GPT.load(model_dir)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(TRAPS[trap]())
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        load_adapter(fresh, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(TRAPS[trap]())
    with pytest.raises(ValueError, match=r"only adapter_model\.bin, a pickle that can run code"):
        load_adapter(fresh, tmp_path / "adapter")


REMOTE = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}


def test_auto_map_is_refused_and_its_module_never_imported(model_dir, monkeypatch):
    """`auto_map` asks a library to import a .py file that came with the weights."""
    (model_dir / "trap.py").write_text(f"open({CANARY!r}, 'w').close()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(model_dir))
    values = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**values, "auto_map": REMOTE})
    (model_dir / "config.json").write_text(text, encoding="utf-8")
    write_manifest(model_dir, "model")
    with pytest.raises(ValueError, match="unknown key 'auto_map'"):
        GPT.load(model_dir)
    theirs = {"model_type": "gpt2", "activation_function": "gelu_new", "auto_map": REMOTE}
    with pytest.raises(ValueError, match="auto_map must be None for a gpt2 model"):
        config_from_huggingface(theirs)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for c in [].__class__.__base__.__subclasses__() %}{% endfor %}",
        "{{ cycler.__init__.__globals__.os.system('touch " + CANARY + "') }}",
    ],
)
def test_templates_of_a_tokenizer_are_never_run(model_dir, template, capsys):
    """A chat template is a program in Jinja; it lies beside the model and stays there."""
    settings = {"chat_template": template, "auto_map": {"AutoTokenizer": ["trap.Tok", None]}}
    for name in ("tokenizer_config.json", "chat_template.json"):
        (model_dir / name).write_text(json.dumps(settings), encoding="utf-8")
    (model_dir / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_manifest(model_dir, "model")
    assert Tokenizer.load(model_dir).encode("abc")
    command = ["generate", "--model", str(model_dir), "--prompt", "abc", "--max-new-tokens", "2"]
    assert main(command) == 0
    assert "abc" in capsys.readouterr().out


def test_no_module_that_runs_files_is_used(model_dir, tmp_path, monkeypatch):
    """Saving, loading and generating with unpickling taken away altogether."""

    def refuse(*arguments, **options):
        raise AssertionError("something was unpickled")

    for module, name in (("pickle", "loads"), ("pickle", "load"), ("torch", "load")):
        monkeypatch.setattr(importlib.import_module(module), name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    model = GPT.load(model_dir)
    model.save(tmp_path / "again", Tokenizer.load(model_dir))
    shutil.rmtree(model_dir)
    assert main(["generate", "--model", str(Path("again")), "--prompt", "ab"]) == 0
