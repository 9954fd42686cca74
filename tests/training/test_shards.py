"""Writing shards: nothing lost, nothing shared between the splits, whole or not at all."""

import json
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.files import MANIFEST, atomic_directory, verify_manifest
from tokenization.tokenizer import Tokenizer
from training import token_parts
from training.documents import Document
from training.shards import write_shards
from training.token_shard import SPLITS, TokenShard


def document(text, source="somewhere"):
    return Document(text, source)


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train_bpe(["the cat sat on the mat, 春眠不觉晓" * 20], 300)


def read_back(directory, tokenizer):
    """Both splits as lists of texts, one per document, without separators."""
    found = []
    for split in SPLITS:
        with TokenShard.open(directory, split) as shard:
            pieces = np.split(shard.tokens, shard.document_starts[1:])
            found.append([tokenizer.decode(p.tolist(), skip_special=True) for p in pieces])
    return found


def manifest_of(directory):
    return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))


@settings(max_examples=30)
@given(st.lists(st.text("ab春\n", min_size=1, max_size=12), min_size=3, max_size=40))
def test_every_document_is_kept_once_and_in_order(tmp_path_factory, texts):
    directory = tmp_path_factory.mktemp("shards") / "data"
    tokenizer = Tokenizer.characters(["ab春\n"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cut at the tail may part two equal documents
        write_shards([document(text) for text in texts], tokenizer, directory, val_fraction=0.3)
    train, val = read_back(directory, tokenizer)
    manifest = manifest_of(directory)
    if manifest["split_by"] == "documents":
        assert sorted(train + val) == sorted(texts)
        assert not set(train) & set(val)
        assert [t for t in texts if t in set(train)] == train  # the order is kept
        assert manifest["shared_documents"] == 0
    else:
        assert "".join(train) + "".join(val) == "".join(texts)
    n_bytes = sum(len(text.encode()) for text in texts)
    facts = manifest["splits"]
    assert facts["train"]["n_bytes"] + facts["val"]["n_bytes"] == n_bytes
    assert facts["train"]["n_bytes"] == len("".join(train).encode())
    assert facts["train"]["n_documents"] == len(train)
    n_tokens = sum(len(text) + 1 for text in texts)
    assert facts["train"]["n_tokens"] + facts["val"]["n_tokens"] == n_tokens
    for split in SPLITS:
        with TokenShard.open(directory, split) as shard:
            assert facts[split]["max_id"] == shard.tokens.max()


def test_the_split_depends_on_the_text_alone(tmp_path, bpe):
    texts = [f"document number {i}" for i in range(300)]
    write_shards([document(t, "a") for t in texts], bpe, tmp_path / "a")
    write_shards([document(t, "b") for t in texts[::-1]], bpe, tmp_path / "b")
    characters = Tokenizer.characters(texts)
    write_shards([document(t) for t in texts], characters, tmp_path / "c")
    held_out = [
        set(read_back(tmp_path / name, tokenizer)[1])
        for name, tokenizer in (("a", bpe), ("b", bpe), ("c", characters))
    ]
    assert held_out[0] == held_out[1] == held_out[2]
    assert 15 <= len(held_out[0]) <= 45


def test_a_single_document_is_cut_at_the_tail(tmp_path, bpe):
    text = "the cat sat 春眠不觉晓 " * 50
    write_shards([document(text)], bpe, tmp_path / "data", val_fraction=0.25)
    manifest = manifest_of(tmp_path / "data")
    assert manifest["split_by"] == "tail"
    assert manifest["shared_documents"] == 0
    ids = bpe.encode(text) + [bpe.end_id]
    with (
        TokenShard.open(tmp_path / "data", "train") as train,
        TokenShard.open(tmp_path / "data", "val") as val,
    ):
        assert train.tokens.tolist() + val.tokens.tolist() == ids
        assert len(val) == round(0.25 * len(ids))
        assert train.n_bytes + val.n_bytes == len(text.encode())
        tail = b"".join(bpe.token_bytes(i) for i in val.tokens[:-1].tolist())
        assert val.n_bytes == len(tail)
        assert text.encode().endswith(tail)


def test_special_tokens_in_the_text_are_plain_text(tmp_path, bpe):
    text = "the <|endoftext|> cat"
    write_shards([document(text)] * 3, bpe, tmp_path / "data", val_documents=[document("cat cat")])
    with TokenShard.open(tmp_path / "data") as shard:
        assert (shard.tokens == bpe.end_id).sum() == 3
        assert len(shard.document_starts) == 3


def test_a_text_without_tokens_is_not_a_document(tmp_path, bpe):
    texts = [document("the cat"), document(""), document("sat")]
    write_shards(texts, bpe, tmp_path / "data", val_documents=[document("cat cat")])
    assert manifest_of(tmp_path / "data")["splits"]["train"]["n_documents"] == 2
    with TokenShard.open(tmp_path / "data") as shard:
        assert (shard.tokens == bpe.end_id).sum() == 2


def test_a_tokenizer_without_an_end_token(tmp_path):
    tokenizer = Tokenizer.characters(["abcd"], special_tokens=())
    assert tokenizer.end_id is None
    write_shards([document("abcd"), document("dcba")], tokenizer, tmp_path / "data")
    with TokenShard.open(tmp_path / "data") as train:
        assert tokenizer.decode(train.tokens.tolist()) == "abcddc"


class Wide:
    """A stand-in for a tokenizer with a large vocabulary."""

    end_id = None
    fingerprint = "wide"

    def __init__(self, vocab_size, largest):
        self.vocab_size, self.largest = vocab_size, largest

    def encode_batch(self, texts):
        return [[0, self.largest, 1, 2] * 5 for _ in texts]

    def save(self, directory):
        (directory / "tokenizer.json").write_text("{}", encoding="utf-8")

    def token_bytes(self, _):
        return b"x"


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32"), (200_000, "uint32")]
)
def test_the_width_fits_the_vocabulary(tmp_path, vocab_size, dtype):
    write_shards([document("x" * 20)], Wide(vocab_size, vocab_size - 1), tmp_path / "data")
    assert manifest_of(tmp_path / "data")["dtype"] == dtype
    with TokenShard.open(tmp_path / "data") as shard:
        assert shard.tokens.dtype == np.dtype(dtype).newbyteorder("<")
        assert shard.tokens.max() == vocab_size - 1


def test_a_tokenizer_that_breaks_its_promise_is_caught(tmp_path):
    with pytest.raises(AssertionError):
        write_shards([document("x")], Wide(100, 100), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_given_validation_documents_are_the_validation_set(tmp_path, bpe):
    train, val = [document("the cat sat")], [document("on the mat")]
    write_shards(train, bpe, tmp_path / "data", val_documents=val)
    assert read_back(tmp_path / "data", bpe) == [["the cat sat"], ["on the mat"]]
    assert manifest_of(tmp_path / "data")["split_by"] == "given"


def test_training_on_the_validation_text_warns(tmp_path, bpe):
    same = [document("the cat sat"), document("on the mat")]
    with pytest.warns(UserWarning, match="1 of 2 validation documents .* also training documents"):
        write_shards(
            same, bpe, tmp_path / "data", val_documents=[document("on the mat"), document("new")]
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_shards(same, bpe, tmp_path / "data", val_documents=[document("something else")])


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["ab"]])
def test_too_little_text_is_refused_and_leaves_nothing(tmp_path, texts):
    tokenizer = Tokenizer.characters(["ab"])
    with pytest.raises(ValueError, match=r"corpus has \d tokens \(\d bytes\).* 4 together"):
        write_shards([document(text) for text in texts], tokenizer, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_given_validation_set_is_refused(tmp_path, bpe):
    with pytest.raises(ValueError, match="val split has 0 tokens, it needs at least 2"):
        write_shards([document("the cat")], bpe, tmp_path / "data", val_documents=[])
    assert list(tmp_path.iterdir()) == []


def test_a_document_that_cannot_be_encoded_is_named(tmp_path):
    tokenizer = Tokenizer.characters(["abc"])
    documents = [document("abc", "good.txt"), document("abz", "bad.txt")]
    with pytest.raises(ValueError, match=r"bad\.txt: .*'z'.*U\+007A"):
        write_shards(documents, tokenizer, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan"), "0.1", True])
def test_val_fraction_must_lie_between(tmp_path, bpe, fraction):
    with pytest.raises(ValueError, match="val_fraction must be a finite number > 0 and < 1"):
        write_shards([document("x" * 50)], bpe, tmp_path / "data", val_fraction=fraction)


def test_an_interrupted_rewrite_leaves_the_old_shards(tmp_path, bpe):
    directory = tmp_path / "data"
    write_shards([document("the cat sat on the mat")], bpe, directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def interrupted():
        yield document("on the mat")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(interrupted(), bpe, directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_is_not_ours_is_never_replaced(tmp_path, bpe):
    text = [document("the cat sat on the mat")]
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "mine.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(ValueError, match=r"poems exists and does not hold token shards"):
        write_shards(text, bpe, tmp_path / "poems")
    assert (tmp_path / "poems" / "mine.txt").read_text(encoding="utf-8") == "precious"
    with pytest.raises(ValueError, match="it is a file"):
        write_shards(text, bpe, tmp_path / "poems" / "mine.txt")
    with atomic_directory(tmp_path / "model", kind="model") as directory:
        (directory / "weights").write_bytes(b"x")
    with pytest.raises(ValueError, match="model exists and does not hold token shards"):
        write_shards(text, bpe, tmp_path / "model")
    (tmp_path / "empty").mkdir()
    write_shards(text, bpe, tmp_path / "empty")


def test_the_directory_is_whole_and_holds_no_leftovers(tmp_path, bpe):
    write_shards([document("the cat sat")], bpe, tmp_path / "data", facts={"corpus": "cats"})
    manifest = verify_manifest(tmp_path / "data", kind="token-shards")
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {
        *("train.bin", "val.bin", "train.documents.npy", "val.documents.npy"),
        *("tokenizer.json", MANIFEST),
    }
    assert set(manifest["files"]) == names - {MANIFEST}
    assert manifest["corpus"] == "cats"
    assert manifest["tokenizer"] == bpe.fingerprint == Tokenizer.load(tmp_path / "data").fingerprint


def test_progress_counts_bytes(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(token_parts, "PART_CHARS", 10)
    seen = []
    texts = ["春眠不觉晓", "the cat sat", "a", "b"]
    write_shards([document(t) for t in texts], bpe, tmp_path / "data", progress=seen.append)
    assert seen == [15 + 11, 28]


def test_memory_does_not_grow_with_the_corpus(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(token_parts, "PART_CHARS", 1 << 14)
    stream = (document(f"{i} the cat sat on the mat " * 40) for i in range(1500))
    tracemalloc.start()
    try:
        write_shards(stream, bpe, tmp_path / "data")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    n_tokens = sum(facts["n_tokens"] for facts in manifest_of(tmp_path / "data")["splits"].values())
    assert n_tokens > 500_000  # 8 bytes each as a Python list, and as much again for the text
    assert peak < 2_500_000
