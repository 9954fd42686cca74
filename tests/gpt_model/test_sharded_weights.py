import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from foundation.files import atomic_directory
from gpt_model.config import preset
from gpt_model.model import GPT
from gpt_model.model_directory import read_weights, state_to_save, write_config_and_tokenizer
from gpt_model.sharded_weights import POSITIONS, read_shards, shards_of, whole_shapes


def write(path, pieces):
    """As torch.distributed.checkpoint does: the place of each piece in the file's header."""
    positions = {name: {"saved_offsets": start} for name, (start, _) in pieces.items()}
    tensors = {name: piece.contiguous() for name, (_, piece) in pieces.items()}
    save_file(tensors, path, metadata={POSITIONS: json.dumps(positions)})


def split(folder, tensors, n):
    """Rows in `n` files, as FSDP cuts them; what has no rows goes into the first."""
    folder.mkdir(parents=True)
    for rank in range(n):
        pieces = {}
        for name, tensor in tensors.items():
            if tensor.ndim == 0:
                if rank == 0:
                    pieces[name] = ([], tensor)
                continue
            each = -(-len(tensor) // n)
            start = min(rank * each, len(tensor))
            pieces[name] = ([start] + [0] * (tensor.ndim - 1), tensor[start : start + each])
        write(folder / f"shard-{rank + 1:05d}.safetensors", pieces)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=4), st.integers(1, 6))
def test_what_was_cut_is_put_together(tmp_path_factory, shapes, n):
    tensors = {f"t{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    folder = tmp_path_factory.mktemp("shards") / "w-shards"
    split(folder, tensors, n)
    found = read_shards(folder)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert whole_shapes(folder) == {name: tuple(t.shape) for name, t in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_types_are_kept(tmp_path, dtype):
    tensor = torch.arange(12).view(4, 3).to(dtype)
    split(tmp_path / "w-shards", {"w": tensor}, 3)
    found = read_weights(tmp_path / "w.safetensors")["w"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_a_sharded_directory_is_a_model_directory(tmp_path):
    model = GPT(preset("gpt-micro", vocab_size=65, n_layers=1, dim=16, n_heads=2)).eval()
    with atomic_directory(tmp_path / "m", kind="checkpoint") as directory:
        write_config_and_tokenizer(model, directory, None)
        split(shards_of(directory / "model.safetensors"), state_to_save(model), 3)
    again = GPT.load(tmp_path / "m")
    ids = torch.arange(8)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.lm_head.weight is again.token_embedding.weight
    # one bit of one shard
    shard = sorted((tmp_path / "m" / "model-shards").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        GPT.load(tmp_path / "m")


def test_a_missing_piece_is_noticed(tmp_path):
    folder = tmp_path / "w-shards"
    split(folder, {"w": torch.randn(6, 2)}, 3)
    (folder / "shard-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="hold 8 of the 12 numbers of w"):
        read_shards(folder)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="holds no shard"):
        read_shards(folder)


@pytest.mark.parametrize("start", [[-1, 0], [0], [0, 0, 0], [0.0, 0], ["0", 0], [True, 0]])
def test_places_that_make_no_sense_are_refused(tmp_path, start):
    write(tmp_path / "shard-1.safetensors", {"w": (start, torch.randn(2, 2))})
    with pytest.raises(ValueError, match=r"shard-1\.safetensors is damaged, or not a shard"):
        read_shards(tmp_path)


def test_a_place_far_away_costs_no_memory(tmp_path):
    write(tmp_path / "shard-1.safetensors", {"w": ([2**50, 0], torch.randn(2, 2))})
    with pytest.raises(ValueError, match="incomplete"):
        read_shards(tmp_path)


@pytest.mark.parametrize("content", ["", "no safetensors", None])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "shard-1.safetensors"
    if content is None:
        save_file({"w": torch.ones(2)}, path)  # safetensors, but nothing says where it belongs
    else:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"shard-1\.safetensors is damaged, or not a shard"):
        read_shards(tmp_path)
