import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from foundation import files
from foundation.files import (
    atomic_directory,
    atomic_file,
    read_json,
    read_text,
    sort_metadata,
    sweep_temporaries,
    verify_manifest,
    write_json,
    write_text,
)


def save(target, content="weights", extra=None):
    with atomic_directory(target, kind="model", extra=extra) as temporary:
        (temporary / "a.bin").write_text(content, encoding="utf-8")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b.txt").write_text("二", encoding="utf-8")
    return target


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_directory_appears_whole_with_a_manifest_of_every_file(tmp_path):
    target = save(tmp_path / "runs" / "m", extra={"step": 7})
    manifest = verify_manifest(target, kind="model")
    assert manifest["step"] == 7
    assert sorted(manifest["files"]) == ["a.bin", "sub/b.txt"]
    assert manifest["files"]["sub/b.txt"]["size"] == 3
    assert names(tmp_path / "runs") == ["m"]


def test_an_error_leaves_the_old_directory_and_no_rubbish(tmp_path):
    target = save(tmp_path / "m", "old")

    def interrupted():
        with atomic_directory(target, kind="model") as temporary:
            (temporary / "a.bin").write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (target / "a.bin").read_text(encoding="utf-8") == "old"
    verify_manifest(target)
    assert names(tmp_path) == ["m"]


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    target = tmp_path / "out" / "m.bin"

    def write(data, error=None):
        with atomic_file(target) as temporary:
            temporary.write_bytes(data)
            assert temporary.parent == target.parent
            if error is not None:
                raise error

    write(b"old")
    with pytest.raises(KeyboardInterrupt):
        write(b"half", KeyboardInterrupt())
    assert target.read_bytes() == b"old"
    write(b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "out") == ["m.bin"]
    with pytest.raises(ValueError, match="out is a folder, a file name is needed"):
        atomic_file(tmp_path / "out").__enter__()


@pytest.mark.parametrize("k", range(1, 6))
def test_a_failing_rename_or_flush_never_loses_the_old_directory(tmp_path, monkeypatch, k):
    """Fail the k-th os.replace / os.fsync of a save that replaces an older one."""
    target = save(tmp_path / "m", "old")
    calls = {"n": 0}

    def failing(function):
        def wrapper(*args, **kwargs):
            calls["n"] += 1
            if calls["n"] == k:
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(files.os, "replace", failing(os.replace))
    monkeypatch.setattr(files.os, "fsync", failing(os.fsync))
    with pytest.raises(OSError, match="No space"):
        save(target, "new")
    monkeypatch.undo()
    sweep_temporaries(tmp_path)
    verify_manifest(target, kind="model")
    assert (target / "a.bin").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["m"]


def test_sudden_death_between_the_two_renames_is_mended_by_the_sweep(tmp_path):
    target = save(tmp_path / "m", "old")
    target.rename(tmp_path / "m.old-deadbeef")
    (tmp_path / "m.tmp-deadbeef").mkdir()
    removed = sweep_temporaries(tmp_path)
    assert [path.name for path in removed] == ["m.tmp-deadbeef"]
    assert (target / "a.bin").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "a.bin").unlink(), "a.bin is missing"),
        (lambda d: (d / "a.bin").write_text("weightz", encoding="utf-8"), "a.bin is damaged: SHA"),
        (lambda d: (d / "a.bin").write_text("w", encoding="utf-8"), "1 bytes, but .* says 7"),
        (lambda d: (d / "manifest.json").unlink(), "has no manifest.json"),
        (lambda d: (d / "manifest.json").write_text("{", encoding="utf-8"), "line 1, column 2"),
        (lambda d: (d / "manifest.json").write_text("[]", encoding="utf-8"), "lists no files"),
    ],
)
def test_damage_is_noticed_and_the_file_named(tmp_path, damage, message):
    target = save(tmp_path / "m")
    damage(target)
    with pytest.raises(ValueError, match=message):
        verify_manifest(target)


def test_every_flipped_bit_of_a_small_directory_is_noticed(tmp_path):
    target = save(tmp_path / "m")
    path = target / "a.bin"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="a.bin is damaged"):
            verify_manifest(target)


def test_manifest_refuses_other_kinds_newer_versions_and_escaping_names(tmp_path):
    target = save(tmp_path / "m")
    with pytest.raises(ValueError, match="holds 'llm-from-zero/model', expected .*/shards"):
        verify_manifest(target, kind="shards")
    manifest = read_json(target / "manifest.json")
    write_json(target / "manifest.json", {**manifest, "version": 2})
    with pytest.raises(ValueError, match="format version 2; this program reads 1"):
        verify_manifest(target)
    manifest["files"]["../secret"] = {"size": 0, "sha256": ""}
    write_json(target / "manifest.json", manifest)
    with pytest.raises(ValueError, match="outside its directory"):
        verify_manifest(target)


def test_text_errors_name_file_offset_and_byte(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("好".encode() + b"\xff!")
    with pytest.raises(ValueError, match=r"t.txt is not valid UTF-8: byte 0xff at offset 3"):
        read_text(path)
    assert read_text(path, errors="replace") == "好�!"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc")
    assert read_text(path) == "a\nb\nc"
    with pytest.raises(ValueError, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        read_text(tmp_path / "none")


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.booleans()))
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "v.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_with_nan_is_not_written_and_the_old_file_stays(tmp_path):
    path = tmp_path / "v.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"loss": 1.0}
    assert names(tmp_path) == ["v.json"]


def test_a_failing_write_keeps_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "t.txt"
    write_text(path, "old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["t.txt"]


def test_equal_weights_with_equal_metadata_are_equal_files(tmp_path):
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    metadata = {name: f"{name}: “值”\n\t/" for name in "zyxw"}
    contents = set()
    for number in range(20):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, metadata=metadata)
        size = path.stat().st_size
        sort_metadata(path)
        assert path.stat().st_size == size
        contents.add(path.read_bytes())
    assert len(contents) == 1
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), tensors[name]) for name in tensors)
    # a file without metadata of its own is left readable
    save_file(tensors, path)
    sort_metadata(path)
    assert load_file(path).keys() == tensors.keys()
