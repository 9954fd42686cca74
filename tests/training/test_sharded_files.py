"""Real processes write and read shards in tests/parallelism; here the parts that one can see."""

import json

import pytest
import torch
from safetensors.torch import save_file

from gpt_model.sharded_weights import POSITIONS, shards_of
from training.distributed import ALONE
from training.sharded_files import TensorSource, write_tensors


@pytest.fixture
def sharded(tmp_path):
    path = tmp_path / "model.safetensors"
    shards_of(path).mkdir()
    full = torch.randn(5, 2)
    for number, (start, stop) in enumerate([(0, 3), (3, 5)]):
        header = json.dumps({"w": {"saved_offsets": [start, 0]}})
        file = shards_of(path) / f"shard-{number}.safetensors"
        save_file({"w": full[start:stop].contiguous()}, file, metadata={POSITIONS: header})
    return path, full


def test_one_file_or_shards_are_read_alike(sharded):
    path, full = sharded
    source = TensorSource(path)
    assert source.shapes == {"w": (5, 2)}
    assert torch.equal(source.read({"w": torch.empty(5, 2)})["w"], full)
    write_tensors({"w": full}, path, ALONE, sharded=False)
    source = TensorSource(path)
    assert not source.sharded, "the file comes first"
    assert source.shapes == {"w": (5, 2)}
    assert torch.equal(source.read({})["w"], full)


def test_the_other_name_is_taken_only_when_the_first_is_not_there(sharded, tmp_path):
    path, _ = sharded
    first = tmp_path / "trainable.safetensors"
    assert TensorSource(first, otherwise=path).path == shards_of(path)
    write_tensors({"a": torch.ones(1)}, first, ALONE, sharded=False)
    assert TensorSource(first, otherwise=path).shapes == {"a": (1,)}


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"model\.safetensors does not exist"):
        TensorSource(tmp_path / "model.safetensors")
