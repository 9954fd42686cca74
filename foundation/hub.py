"""从 Hugging Face 的仓库取一个检查点：只取权重、配置与分词器，断了能续，用的是官方的客户端。

Only what can run no code is fetched: safetensors, JSON, the chat template (text). What is wrong
with a repository (pickles only, an architecture that we do not have) is said before the weights
are fetched. The client keeps the files in its cache, resumes what was cut off, and serves what is
there already without a network; `HF_ENDPOINT` names a mirror, `HF_TOKEN` opens gated repositories.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

__all__ = ["dataset_commit", "download_checkpoint", "is_hub_name"]

DEFAULT_ENDPOINT = "https://huggingface.co"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SMALL = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja", "adapter_config.json"),
)
ADAPTER = "adapter_model.safetensors"
TEMPLATE = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# where a failed connection comes from: the client's transport has changed over the years
TRANSPORTS = ("httpx", "httpcore", "requests", "urllib3")


def is_hub_name(text: str) -> bool:
    """Could this be `owner/name`, or a name alone as of old (`gpt2`)?"""
    return NAME.fullmatch(text) is not None and ".." not in text and "--" not in text


def download_checkpoint(
    name: str,
    revision: str | None = None,
    check_config: Callable[[Path], object] | None = None,
    check_files: Callable[[Sequence[str]], object] | None = None,
) -> Path:
    """Fetch a repository's checkpoint into the client's cache; return the folder.

    `revision` is a branch, a tag or a commit; without it the newest. Before anything big is fetched
    `check_files` is called with the names of the files to come, and `check_config` with a folder
    that holds config.json; what they raise is passed on.
    """
    hub = client()
    endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(name, revision=revision)
    except Exception as error:
        refuse(hub, error, name, revision, endpoint)
        return cached(hub, name, revision, endpoint, error)
    files = wanted([sibling.rfilename for sibling in info.siblings or ()], f"{endpoint}/{name}")
    if check_files is not None:
        check_files(files)
    try:
        if check_config is not None and "config.json" in files and ADAPTER not in files:
            path = hub.hf_hub_download(name, "config.json", revision=info.sha, endpoint=endpoint)
            check_config(Path(path).parent)
        # one commit, which the client notes under the branch's name for the days without a network
        return Path(
            hub.snapshot_download(name, revision=revision, allow_patterns=files, endpoint=endpoint)
        )
    except Exception as error:
        refuse(hub, error, name, revision, endpoint)
        raise ValueError(
            f"downloading {name} from {endpoint} was cut off: {first_line(error)}; "
            "what is there already is kept, run the same command again to go on"
        ) from None


def dataset_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a dataset's branch or tag stands for now; without one, the newest.

    None where that cannot be asked: without the client, without a network, for a wrong name. What
    is wrong is then said by whatever reads the dataset.
    """
    try:
        endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        api = client().HfApi(endpoint=endpoint)
        commit = api.dataset_info(name, revision=revision, timeout=20).sha
    except Exception:
        return None
    return str(commit) if commit else None


def client() -> ModuleType:
    """The official client, which is an optional extra."""
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            "downloading needs the huggingface_hub library: pip install 'llm-from-zero[hub]'; "
            "or download the files yourself and give their folder"
        ) from None
    return huggingface_hub


def wanted(names: list[str], where: str) -> list[str]:
    """The files to fetch of those that a repository holds; refuse one without safetensors."""
    found = [name for name in SMALL if name in names]
    found += [name for name in names if TEMPLATE.fullmatch(name)]
    # one whole file is preferred to the same in pieces, as transformers does
    if SINGLE in names:
        return [*found, SINGLE]
    if INDEX in names:
        return [*found, INDEX, *(name for name in names if SHARD.fullmatch(name))]
    if ADAPTER in names:
        return [*found, ADAPTER]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise ValueError(
            f"{where} holds no safetensors, only {', '.join(pickles[:3])}, which can run code when "
            "they are opened; this program never opens one. Look for a copy of the model in "
            "safetensors, or ask its author to convert it"
        )
    raise ValueError(f"{where} holds no weights in safetensors ({SINGLE} or {INDEX})")


def cached(
    hub: ModuleType, name: str, revision: str | None, endpoint: str, error: Exception
) -> Path:
    """Without a network: what was fetched earlier; a shard that is missing is named on reading."""
    for file in ("config.json", "adapter_config.json"):
        path = hub.try_to_load_from_cache(name, file, revision=revision)
        if isinstance(path, str) and any(Path(path).parent.glob("*.safetensors")):
            return Path(path).parent
    raise ValueError(
        f"cannot reach {endpoint} to download {name}: {first_line(error)}; it is not in the cache "
        "either. Set HF_ENDPOINT to a mirror that you can reach, or download the files on another "
        "machine and give their folder"
    ) from None


def refuse(
    hub: ModuleType, error: Exception, name: str, revision: str | None, endpoint: str
) -> None:
    """Say what the server's refusal means; return when the server was not reached at all."""
    kinds = hub.errors
    if isinstance(error, kinds.GatedRepoError):
        raise ValueError(
            f"{name} is gated: accept its conditions at {endpoint}/{name}, "
            "make a token there and set HF_TOKEN to it"
        ) from None
    if isinstance(error, kinds.RevisionNotFoundError):
        raise ValueError(f"{endpoint}/{name} has no revision {revision!r}") from None
    if isinstance(error, kinds.RepositoryNotFoundError):
        raise ValueError(
            f"{endpoint} has no model {name!r}, or it is private (then set HF_TOKEN); "
            "nor is there a folder of this name"
        ) from None
    if isinstance(error, kinds.HfHubHTTPError) and error.response is not None:
        raise ValueError(f"{endpoint} refused {name}: {first_line(error)}") from None
    unreachable = isinstance(error, OSError) or type(error).__module__.startswith(TRANSPORTS)
    if not unreachable:
        raise error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
