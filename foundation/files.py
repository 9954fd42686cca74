"""文件：要么完整写好，要么不存在；读到的若有损坏，一定说出是哪个文件。

A directory saved here (a model, a checkpoint, token shards) is written beside its target, every
file is flushed to the disk, `manifest.json` (name, size, SHA-256 of every file) is written last,
and only then does a rename give it its name. A directory without a valid manifest is not one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "MANIFEST",
    "atomic_directory",
    "atomic_file",
    "read_json",
    "read_text",
    "refuse_foreign_directory",
    "sha256_file",
    "sort_metadata",
    "sweep_temporaries",
    "verify_manifest",
    "write_json",
    "write_manifest",
    "write_text",
]

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
TEMPORARY_MARK = ".tmp-"
BACKUP_MARK = ".old-"


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: Path | str, errors: str = "strict") -> str:
    """Read UTF-8 text; bad bytes are an error that names the file and the offset.

    A byte-order mark is dropped; line ends become "\n".
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        text = data.decode("utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not valid UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert the file, or ask for errors='replace'"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a mistake is reported with file, line and column."""
    path = Path(path)
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file so that a reader sees either the old or the new content, whole."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{secrets.token_hex(4)}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order, in place.

    The library writes several entries in a random order: the same weights, saved twice, would be
    two different files, and a resumed run could not be told to equal an uninterrupted one.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        data = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(data) <= size, f"the header of {path} has grown from {size} to {len(data)}"
        file.seek(8)
        file.write(data.ljust(size))  # spaces at the end are part of the format


def write_manifest(directory: Path, kind: str, extra: Mapping[str, Any] | None = None) -> None:
    """List every file of `directory` with size and SHA-256 in its manifest."""
    files = {
        path.relative_to(directory).as_posix(): {
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {
        "format": f"llm-from-zero/{kind}",
        "version": MANIFEST_VERSION,
        **(extra or {}),
        "files": files,
    }
    write_json(directory / MANIFEST, manifest)


def verify_manifest(directory: Path | str, *, kind: str | None = None) -> dict[str, Any]:
    """Check every file against the manifest and return it.

    Raises ValueError that names the directory and the first file that is missing, has another
    size, or another SHA-256.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, kind=kind)
    for name, facts in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise ValueError(f"{directory} is incomplete: {name} is missing")
        size = path.stat().st_size
        if size != facts["size"]:
            raise ValueError(
                f"{path} is damaged: {size} bytes, but the manifest says {facts['size']}"
            )
        found = sha256_file(path)
        if found != facts["sha256"]:
            raise ValueError(
                f"{path} is damaged: SHA-256 {found[:12]}…, "
                f"but the manifest says {str(facts['sha256'])[:12]}…"
            )
    return manifest


def read_manifest(directory: Path | str, *, kind: str | None = None) -> dict[str, Any]:
    """Read a directory's manifest and check its form, not yet the files it lists."""
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory")
    if not path.is_file():
        raise ValueError(f"{directory} has no {MANIFEST}: it was not saved whole by this project")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{path} is damaged: it lists no files")
    for facts in manifest["files"].values():
        if not isinstance(facts, dict) or not {"size", "sha256"} <= facts.keys():
            raise ValueError(f"{path} is damaged: a file's entry lacks its size or SHA-256")
    for name in manifest["files"]:
        # A name that climbs out of the directory would make us read somebody else's files.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path} is damaged: it lists {name!r}, outside its directory")
    version = manifest.get("version")
    if version != MANIFEST_VERSION:
        raise ValueError(
            f"{path} has format version {version!r}; this program reads {MANIFEST_VERSION}. "
            "Update the program to read a newer one"
        )
    wanted = f"llm-from-zero/{kind}"
    if kind is not None and manifest.get("format") != wanted:
        raise ValueError(f"{directory} holds {manifest.get('format')!r}, expected {wanted!r}")
    return manifest


@contextmanager
def atomic_file(target: Path | str) -> Iterator[Path]:
    """Yield a path beside `target`; what is written there gets its name only if the block succeeds.

    On any error, Ctrl-C included, it is removed and `target` is as it was.
    """
    target = Path(target)
    if target.is_dir():
        raise ValueError(f"{target} is a folder, a file name is needed")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}{TEMPORARY_MARK}{secrets.token_hex(4)}")
    try:
        yield temporary
        _flush_file(temporary)
        os.replace(temporary, target)
        _flush_directory(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(
    target: Path | str, *, kind: str, extra: Mapping[str, Any] | None = None
) -> Iterator[Path]:
    """Yield a temporary directory that becomes `target` only if the block succeeds.

    On success: flush every file, write the manifest last, rename, flush the parent. An old
    `target` is moved aside first and removed only after the new one has its name. On any error,
    Ctrl-C included, the temporary directory is removed and `target` is as it was.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    temporary = target.with_name(f"{target.name}{TEMPORARY_MARK}{token}")
    backup = target.with_name(f"{target.name}{BACKUP_MARK}{token}")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush_file(path)
        write_manifest(temporary, kind, extra)
        _flush_directory(temporary)
        if target.exists():
            os.replace(target, backup)
        try:
            os.replace(temporary, target)
        except BaseException:
            if backup.exists() and not target.exists():
                os.replace(backup, target)
            raise
        _flush_directory(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(backup, ignore_errors=True)


def refuse_foreign_directory(directory: Path, own_files: Collection[str], kind: str) -> None:
    """Refuse a target that `atomic_directory` would replace although it holds other files.

    Hidden files count: a folder with a .git must not vanish either. An empty one may be used.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file, a directory is needed")
    inside = directory.iterdir() if directory.is_dir() else ()
    foreign = sorted(path.name for path in inside if path.name not in own_files)
    if foreign:
        raise ValueError(
            f"{directory} is not {kind} directory: it holds {', '.join(foreign[:3])}; "
            "saving would replace it, so give another name"
        )


def sweep_temporaries(parent: Path | str) -> list[Path]:
    """Remove what an interrupted save left in `parent`; return what was removed.

    A directory moved aside whose replacement never got its name is put back instead.
    """
    removed = []
    for path in sorted(Path(parent).glob(f"*{BACKUP_MARK}*")):
        original = path.with_name(path.name.rsplit(BACKUP_MARK, 1)[0])
        if not original.exists():
            os.replace(path, original)
        else:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    for path in sorted(Path(parent).glob(f"*{TEMPORARY_MARK}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a file is needed")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except PermissionError:
        raise ValueError(f"{path} cannot be read: permission denied") from None


def _flush_file(path: Path) -> None:
    # Windows wants a handle open for writing; "r+b" serves everywhere.
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    # Without this a power cut may forget the rename. Windows cannot open a directory.
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
