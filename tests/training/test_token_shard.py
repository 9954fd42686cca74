"""Reading shards: whatever is wrong with the file is said before a token of it is used."""

import json
import os
import re
import sys

import numpy as np
import pytest

from foundation.files import MANIFEST
from tokenization.tokenizer import Tokenizer
from training import token_shard
from training.dataset import TokenBatches
from training.documents import Document
from training.shards import write_shards
from training.token_shard import TokenShard


@pytest.fixture
def directory(tmp_path):
    documents = [Document(f"第 {i} 篇，共四十篇。", f"d{i}") for i in range(40)]
    tokenizer = Tokenizer.characters(document.text for document in documents)
    write_shards(documents, tokenizer, tmp_path / "data", val_fraction=0.2)
    return tmp_path / "data"


def raw(path, values, dtype="<u2"):
    path.write_bytes(np.array(values, dtype=dtype).tobytes())
    return path


def rewrite_manifest(directory, change):
    path = directory / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_what_a_shard_knows(directory):
    with TokenShard.open(directory, "train") as shard:
        assert len(shard) == shard.n_tokens == len(shard.tokens)
        assert shard.tokens.dtype == np.dtype("<u2")
        assert shard.bytes_per_token == shard.n_bytes / shard.n_tokens
        tokenizer = Tokenizer.load(directory)
        assert shard.vocab_size == tokenizer.vocab_size
        assert shard.tokenizer_fingerprint == tokenizer.fingerprint
        assert len(shard.fingerprint) == 64
        assert shard.document_starts[0] == 0
        ends = [*shard.document_starts[1:], len(shard)]
        assert all(shard.tokens[end - 1] == tokenizer.end_id for end in ends)
        with pytest.raises(ValueError, match="read-only"):
            shard.tokens[0] = 1


def test_an_unknown_split_lists_the_known(directory):
    with pytest.raises(ValueError, match="split must be one of train, val; got 'test'"):
        TokenShard.open(directory, "test")


def test_a_closed_shard_says_so(directory):
    shard = TokenShard.open(directory)
    batches = TokenBatches(shard, 2, 4, seed=0)
    batches(0)
    shard.close()
    shard.close()
    with pytest.raises(ValueError, match=r"train\.bin is closed"):
        batches(0)


def test_closing_frees_the_mapping(directory):
    shard = TokenShard.open(directory)
    batches = TokenBatches(shard, 2, 4, seed=0, with_document_ids=True)
    batches(0)
    shard.close()  # neither the shard nor the batches keep the file mapped
    assert shard._map.closed


def test_slices_stay_valid_after_close(directory):
    shard = TokenShard.open(directory)
    part = shard.tokens[:5]
    expected = part.tolist()
    shard.close()
    assert part.tolist() == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to truncate a mapped file")
def test_truncation_during_the_run_is_an_error_not_a_crash(directory):
    with TokenShard.open(directory) as shard:
        batches = TokenBatches(shard, 2, 4, seed=0)
        batches(0)
        size = os.path.getsize(shard.path)
        os.truncate(shard.path, 10)
        message = rf"train\.bin was truncated while in use: 10 bytes, it had {size}"
        with pytest.raises(ValueError, match=message):
            batches(1)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_shard_is_refused(directory, verify):
    path = directory / "train.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    message = rf"train\.bin is damaged: {size - 2} bytes, but the manifest says {size}"
    with pytest.raises(ValueError, match=message):
        TokenShard.open(directory, verify=verify)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{size - 3} bytes"):
        TokenShard.open(directory, verify=verify)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.documents.npy", "tokenizer.json"])
def test_a_flipped_bit_is_refused(directory, name):
    path = directory / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(name) + " is damaged: SHA-256"):
        TokenShard.open(directory)
    TokenShard.open(directory, verify=False).close()  # asked not to look


def test_a_missing_file_or_directory_is_named(directory, tmp_path):
    (directory / "val.bin").unlink()
    with pytest.raises(ValueError, match=r"val\.bin is missing"):
        TokenShard.open(directory, "val")
    with pytest.raises(ValueError, match=r"val\.bin does not exist"):
        TokenShard.open(directory, "val", verify=False)
    with pytest.raises(ValueError, match="is not a directory"):
        TokenShard.open(tmp_path / "nowhere")


def test_a_token_beyond_the_vocabulary_is_refused(directory):
    rewrite_manifest(directory, lambda manifest: manifest.update(vocab_size=5))
    with pytest.raises(ValueError, match=r"train\.bin holds token id \d+, but its vocabulary is 5"):
        TokenShard.open(directory)
    with TokenShard.open_file(directory / "train.bin", vocab_size=1000) as shard:
        largest = int(shard.tokens.max())
    rewrite_manifest(directory, lambda manifest: manifest.update(vocab_size=largest))
    with pytest.raises(ValueError, match=f"token id {largest}, but its vocabulary is {largest}"):
        TokenShard.open(directory)
    rewrite_manifest(directory, lambda manifest: manifest.update(vocab_size=largest + 1))
    TokenShard.open(directory).close()


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("splits"),
        lambda manifest: manifest["splits"].pop("train"),
        lambda manifest: manifest["splits"]["train"].pop("n_tokens"),
        lambda manifest: manifest.update(dtype="float16"),
        lambda manifest: manifest.update(splits=[1]),
        lambda manifest: manifest.update(vocab_size="many"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(directory, change):
    rewrite_manifest(directory, change)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        TokenShard.open(directory)


# --- raw files -----------------------------------------------------------------------------------


def test_a_raw_file_of_another_program(tmp_path):
    path = raw(tmp_path / "train.bin", [5, 0, 50256])
    with TokenShard.open_file(path, vocab_size=50257) as shard:
        assert shard.tokens.tolist() == [5, 0, 50256]
        assert shard.document_starts.tolist() == [0]
        assert shard.bytes_per_token is None
    wide = raw(tmp_path / "wide.bin", [5, 2**31], "<u4")
    with TokenShard.open_file(wide, vocab_size=2**32, dtype="uint32") as shard:
        assert shard.tokens.tolist() == [5, 2**31]


def test_odd_byte_counts_are_refused_with_the_number(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(7))
    with pytest.raises(ValueError, match=r"a\.bin has 7 bytes, not a multiple of 2: uint16"):
        TokenShard.open_file(tmp_path / "a.bin", vocab_size=10)
    (tmp_path / "a.bin").write_bytes(bytes(6))
    with pytest.raises(ValueError, match=r"a\.bin has 6 bytes, not a multiple of 4: uint32"):
        TokenShard.open_file(tmp_path / "a.bin", vocab_size=10, dtype="uint32")


def test_empty_absent_folder_unreadable(tmp_path, monkeypatch):
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.bin is empty: 0 bytes"):
        TokenShard.open_file(tmp_path / "empty.bin", vocab_size=10)
    with pytest.raises(ValueError, match="is a folder, a token file is needed"):
        TokenShard.open_file(tmp_path, vocab_size=10)
    with pytest.raises(ValueError, match=r"gone\.bin does not exist"):
        TokenShard.open_file(tmp_path / "gone.bin", vocab_size=10)
    path = raw(tmp_path / "a.bin", [1])

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(token_shard, "open", denied, raising=False)
    with pytest.raises(ValueError, match=r"a\.bin cannot be read: Permission denied"):
        TokenShard.open_file(path, vocab_size=10)


@pytest.mark.parametrize("place", [0, 3, 4, 9])
def test_the_first_id_beyond_the_vocabulary_is_found_in_any_block(tmp_path, monkeypatch, place):
    monkeypatch.setattr(token_shard, "BLOCK_TOKENS", 4)
    values = [0] * 10
    values[place] = 10
    path = raw(tmp_path / "a.bin", values)
    with pytest.raises(ValueError, match=rf"token id 10 at position {place}, .*vocab_size is 10 "):
        TokenShard.open_file(path, vocab_size=10)
    TokenShard.open_file(path, vocab_size=11).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an integer >= 1, got 0"),
        ({"vocab_size": 9, "dtype": "int16"}, "dtype must be one of uint16, uint32; got 'int16'"),
    ],
)
def test_options_are_checked(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        TokenShard.open_file(raw(tmp_path / "a.bin", [1]), **options)
