"""Downloads from a server of the test's own, which speaks the hub's language."""

import hashlib
import http.server
import json
import sys
import threading
from pathlib import Path

import pytest

from foundation.hub import dataset_commit, download_checkpoint
from fromzero.main import main

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.constants")  # loaded when first named, not with the package
SHA = "0123456789abcdef0123456789abcdef01234567"
OLD = "f" * 40
NAME = "someone/tiny"


class Hub:
    """One repository: its files by path, what was asked of it, and how it shall misbehave."""

    def __init__(self):
        self.files = {}
        self.requests = []
        self.cut_off_at = None  # a download of the weights ends here, once
        self.status = None  # the answer to everything about the repository

    def start(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):  # noqa: N802
                outer.answer(self, body=False)

            def do_GET(self):  # noqa: N802
                outer.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body):
        path = handler.path.split("?")[0]
        wanted = handler.headers.get("Range")
        self.requests.append((handler.command, path, wanted))
        if self.status is not None:
            code, header = self.status
            self.reply(handler, b"{}", body, code, {"X-Error-Code": header} if header else {})
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [self.entry(name) for name in self.files]
            self.reply(handler, json.dumps(entries).encode(), body)
        elif path.startswith((f"/api/models/{NAME}", f"/api/datasets/{NAME}")):
            revision = path.partition("/revision/")[2] or "main"
            sha = {"main": SHA, "v1": OLD, SHA: SHA, OLD: OLD}.get(revision)
            if sha is None:
                self.reply(handler, b"{}", body, 404, {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": NAME, "sha": sha, "siblings": siblings, "tags": [], "private": False}
            self.reply(handler, json.dumps(info).encode(), body)
        elif path.startswith(f"/{NAME}/resolve/"):
            sha, _, name = path.removeprefix(f"/{NAME}/resolve/").partition("/")
            self.file(handler, sha, name, body, wanted)
        else:
            self.reply(handler, b"{}", body, 404, {"X-Error-Code": "RepoNotFound"})

    def entry(self, name):
        data = self.files[name]
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "path": name, "size": len(data), "oid": oid}

    def file(self, handler, sha, name, body, wanted):
        data = self.files[name]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        headers["Accept-Ranges"] = "bytes"
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.cut_off_at if body and name.endswith(".safetensors") else None
        if cut is not None:
            self.cut_off_at = None
            handler.send_response(200)
            for key, value in {**headers, "Content-Length": len(data)}.items():
                handler.send_header(key, str(value))
            handler.end_headers()
            handler.wfile.write(data[:cut])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(2)
            return
        self.reply(handler, data[start:], body, 206 if start else 200, headers)

    def reply(self, handler, data, body, code=200, headers=None):
        handler.send_response(code)
        handler.close_connection = True
        common = {"Content-Length": len(data), "Connection": "close"}
        for key, value in {**common, **(headers or {})}.items():
            handler.send_header(key, str(value))
        handler.end_headers()
        if body:
            handler.wfile.write(data)

    def fetched(self):
        return {path.rpartition("/")[2] for verb, path, _ in self.requests if verb == "GET"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    found = Hub()
    found.start()
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    found.files = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": bytes(range(256)) * 4000,
        "pytorch_model.bin": b"pickle",
        "modeling_evil.py": b"raise SystemExit('executed')",
        "README.md": b"hello",
        "onnx/model.safetensors": b"another",
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
        "additional_chat_templates/evil.py": b"raise SystemExit('executed')",
    }
    yield found
    found.stop()


def test_only_what_can_run_no_code_is_fetched(server):
    folder = download_checkpoint(NAME)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    template = "additional_chat_templates/tool_use.jinja"
    assert found == {"config.json", "tokenizer.json", "model.safetensors", template}
    assert (folder / "model.safetensors").read_bytes() == server.files["model.safetensors"]
    unwanted = {"pytorch_model.bin", "modeling_evil.py", "README.md", "evil.py"}
    assert not server.fetched() & unwanted


def test_shards_are_fetched_with_their_index(server):
    data = server.files.pop("model.safetensors")
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    server.files |= dict.fromkeys(names, data[:100])
    server.files["model.safetensors.index.json"] = b"{}"
    server.files["model-x.safetensors"] = b"something else"
    folder = download_checkpoint(NAME)
    assert {path.name for path in folder.glob("model*")} == {*names, "model.safetensors.index.json"}


def test_the_configuration_is_checked_before_the_weights_are_fetched(server):
    def refuse(folder):
        assert json.loads((folder / "config.json").read_text(encoding="utf-8"))
        raise ValueError("no such family")

    with pytest.raises(ValueError, match="no such family"):
        download_checkpoint(NAME, check_config=refuse)
    assert "config.json" in server.fetched()
    assert "model.safetensors" not in server.fetched()


def test_the_command_asks_for_room_and_for_the_tokenizer_before_it_fetches(
    server, tmp_path, capsys
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years", encoding="utf-8")
    assert main(["import", NAME, "--out", str(tmp_path / "taken")]) == 2
    assert "taken already exists" in capsys.readouterr().err
    assert server.requests == []
    del server.files["tokenizer.json"]
    words = ["import", NAME, "--out", str(tmp_path / "new")]
    assert main(words) == 2
    assert f"{NAME} has no tokenizer.json: save it with" in capsys.readouterr().err
    assert server.fetched() == {"tiny"}  # what the server tells about it
    assert main([*words, "--without-tokenizer"]) == 2
    assert "llama" in capsys.readouterr().err  # its config.json is read, and lacks everything
    # an adapter needs none
    server.files["adapter_config.json"] = b"{}"
    server.files["adapter_model.safetensors"] = server.files.pop("model.safetensors")
    assert main(words) == 2
    assert "is a LoRA adapter; give the model directory" in capsys.readouterr().err


def test_a_download_that_was_cut_off_goes_on_where_it_was(server, monkeypatch):
    monkeypatch.setattr(hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    server.cut_off_at = 300_000
    folder = download_checkpoint(NAME)
    assert (folder / "model.safetensors").read_bytes() == server.files["model.safetensors"]
    ranges = [
        wanted
        for verb, path, wanted in server.requests
        if verb == "GET" and path.endswith("model.safetensors")
    ]
    starts = [int(wanted[6:].split("-")[0]) for wanted in ranges if wanted]
    assert starts
    assert 200_000 < starts[-1] <= 300_000


def test_a_revision_is_pinned_to_its_commit(server):
    folder = download_checkpoint(NAME, revision="v1")
    assert folder.name == OLD
    files = [path for verb, path, _ in server.requests if "/resolve/" in path]
    assert files
    assert all(f"/resolve/{OLD}/" in path for path in files)
    with pytest.raises(ValueError, match="someone/tiny has no revision 'v9'"):
        download_checkpoint(NAME, revision="v9")


def test_the_commit_of_a_dataset_is_asked_for(server):
    assert dataset_commit(NAME) == SHA
    assert dataset_commit(NAME, "v1") == OLD
    assert dataset_commit(NAME, "v9") is None
    assert dataset_commit("someone/other") is None
    server.stop()
    assert dataset_commit(NAME) is None


def test_a_repository_of_pickles_is_refused_before_anything_is_fetched(server):
    del server.files["model.safetensors"]
    with pytest.raises(ValueError, match="no safetensors, only pytorch_model.bin, which can run"):
        download_checkpoint(NAME)
    del server.files["pytorch_model.bin"]
    with pytest.raises(ValueError, match="holds no weights in safetensors"):
        download_checkpoint(NAME)
    assert not any("/resolve/" in path for _, path, _ in server.requests)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ((404, "RepoNotFound"), "has no model 'someone/tiny', or it is private"),
        ((403, "GatedRepo"), "someone/tiny is gated: accept its conditions at http"),
        ((500, None), "refused someone/tiny: .*500"),
    ],
)
def test_a_refusal_of_the_server_is_explained(server, status, message):
    server.status = status
    with pytest.raises(ValueError, match=message):
        download_checkpoint(NAME)


def test_offline_the_cache_serves_and_without_it_the_message_tells_what_to_do(server, monkeypatch):
    folder = download_checkpoint(NAME)
    server.stop()
    assert download_checkpoint(NAME) == folder
    assert Path(folder, "model.safetensors").is_file()
    message = "cannot reach http://127.0.0.1:.* to download someone/other.* HF_ENDPOINT to a mirror"
    with pytest.raises(ValueError, match=message):
        download_checkpoint("someone/other")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert download_checkpoint(NAME) == folder
    with pytest.raises(ValueError, match="cannot reach .* give their folder"):
        download_checkpoint("someone/other")


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'llm-from-zero\[hub\]'"):
        download_checkpoint(NAME)
