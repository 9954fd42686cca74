r"""网上的数据集随时会变：怎样使两遍读的是同一版，怎样记下用的是哪一版？

Hugging Face 的数据集是一个 git 仓库，名字指向最新的提交（commit）。准备数据要读两遍（先学分词器，
再分词），断了还要接着做；中间作者更新了一次，两遍就不是同一份文本，而没有一处会报错：

    hf:NAME ──问一次──▶ 提交 c0ffee… ──▶ 第一遍 hf:NAME@c0ffee…   学分词器
                            │        ──▶ 第二遍 hf:NAME@c0ffee…   分词
                            │        ──▶ 断了再来，还是它          半成品旁边的 revisions.json
                            └────────▶ 写进数据目录的 manifest.json，日后查得到

提交的编号是内容的散列，所以它唯一地说出了文本：

$$\text{commit} = \mathrm{SHA1}(\text{文件树},\ \text{上一个提交},\ \text{作者与时间})$$

自己也可以指定：hf:NAME@分支、标签或提交，后面照样接 :CONFIG:SPLIT。要几年后还能重现，就写提交。

为什么不把提交算进语料的指纹？ 算进去，每次训练都要连网去问；没有网就认不出已经做好的数据，
白白重做。所以指纹只看写法：不写版本的，做好了就一直用；想要新的，换一个目录，或写明版本。

问不到呢（没有网、镜像不支持）？ 不猜、不拦：照样读，但不记版本；manifest.json 里就没有它。

常见疑问：
    本地的文件夹（hf:./mine）？  没有提交；指纹看文件的大小与时间，见 corpus.py。
    镜像站（HF_ENDPOINT）呢？    问的就是镜像；它若同步得慢，记下的是它有的那一版。
    与权重的写法（a@0.7）混吗？  @ 后面是数才是权重；分支若真叫 0.7，就写它的提交。
    @main 会不会被当成文件名？  真有这样一个文件夹时，它优先；不要这样起名字。

文献：可重现的数据 — Gebru et al. 2018, *Datasheets for Datasets*, arXiv:1803.09010。

改哪里：别的数据仓库 → versions_of 里换一个「问版本」的函数；记在哪里 → prepare.py 的 facts。
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from foundation.demonstration import run_demo
from foundation.files import read_json, write_json
from foundation.hub import dataset_commit
from training.corpus import Spec, split_spec
from training.records import HUB_MARK, hub_folder, split_hub

__all__ = ["pinned_once", "with_versions"]

# 半成品旁边的一个小文件：断了再来，用的还是这一版
VERSIONS_FILE = "revisions.json"
# (名字, 用户写的版本或 None) → 提交；问不到就是 None
Ask = Callable[[str, "str | None"], "str | None"]


def pinned_once(
    folder: Path, key: str, specs: Sequence[Spec], ask: Ask = dataset_commit
) -> tuple[list[Spec], dict[str, str]]:
    """几份语料 → 写明了版本的同样几份，与 {写法: 提交}；同一把钥匙只问一次。

    参数：key 是「要做的是什么」的哈希，与分词器的钥匙相同；变了就是另一件事，重新问
    约定：没有网上的数据集时，不连网、不写文件，原样返回
    """
    # ① 上次做到一半：照旧，哪怕网上已经有新的
    note = folder / VERSIONS_FILE
    known = read_json(note) if note.exists() else None
    if isinstance(known, dict) and known.get("key") == key:
        versions = dict(known["revisions"])
    # ② 第一次：问，记下来，然后才读
    else:
        versions = versions_of(specs, ask)
        if versions:
            write_json(note, {"key": key, "revisions": versions})
    return [with_versions(spec, versions) for spec in specs], versions


def versions_of(specs: Sequence[Spec], ask: Ask = dataset_commit) -> dict[str, str]:
    """{hf:… 的写法: 它现在的提交}；本地的、问不到的不在其中。

    >>> versions_of(["a.txt", "hf:x/y@v1:c", "hf:./mine"], lambda name, version: "c0ffee")
    {'hf:x/y@v1:c': 'c0ffee'}
    """
    found: dict[str, str] = {}
    for spec in specs:
        for part in split_spec(spec):
            # 同一份写了两次，也只问一次
            if not part.startswith(HUB_MARK) or part in found or hub_folder(part) is not None:
                continue
            name, version, _, _ = split_hub(part)
            # ./folder 一类的路径写错了，不该去网上问；读的时候会说没有这个文件夹
            commit = None if name.startswith((".", "/", "~")) else ask(name, version)
            if commit is not None:
                found[part] = commit
    return found


def with_versions(spec: Spec, versions: Mapping[str, str]) -> Spec:
    """把版本写进去；没有要写的，就是原来的 spec（类型也不变）。

    >>> with_versions("hf:x/y:c:test", {"hf:x/y:c:test": "c0ffee"})
    ['hf:x/y@c0ffee:c:test']
    >>> with_versions("a.txt", {})
    'a.txt'
    """
    parts = split_spec(spec)
    if not any(part in versions for part in parts):
        return spec
    return [pinned(part, versions[part]) if part in versions else part for part in parts]


def pinned(part: str, commit: str) -> str:
    """一份的写法换成提交；省略的配置、份照样省略。

    >>> pinned("hf:x/y@main::validation", "c0ffee")
    'hf:x/y@c0ffee::validation'
    """
    name, _, _, _ = split_hub(part)
    # 名字（与版本）之后的部分原样接回去；名字里不会有冒号
    rest = part.removeprefix(HUB_MARK).partition(":")
    return f"{HUB_MARK}{name}@{commit}{rest[1]}{rest[2]}"


def demo() -> None:
    """问一次、记下来；网上更新了，断了再来的仍用旧的；换一件事才问新的。

    演示不连网：版本由一个小函数说
    """
    newest = ["aaaa1111"]  # 假装是网上最新的提交
    asked: list[str] = []

    def ask(name: str, version: str | None) -> str | None:
        asked.append(name)
        # 用户指定了版本，就是它；没有网的那个数据集问不到
        return None if name == "no/network" else version or newest[0]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        specs = ["python-docs", "hf:poems/tang", "hf:poems/song@v2:default:test"]
        pinned_specs, versions = pinned_once(folder, "key-1", specs, ask)
        print("① 写明了版本的写法：")
        for before, after in zip(specs, pinned_specs, strict=True):
            print(f"   {before:<32} → {after}")
        assert versions == {specs[1]: "aaaa1111", specs[2]: "v2"}

        newest[0] = "bbbb2222"
        again = pinned_once(folder, "key-1", specs, ask)[1]
        print(f"② 作者更新了，断了再来：还是 {again[specs[1]]}，一共只问了 {len(asked)} 次")
        assert again == versions
        assert len(asked) == 2

        other = pinned_once(folder, "key-2", specs, ask)[1]
        print(f"③ 换了做法（钥匙不同）：用新的 {other[specs[1]]}")
        assert other[specs[1]] == "bbbb2222"

        spec, none = pinned_once(folder, "key-3", ["hf:no/network"], ask)
        print(f"④ 问不到：照样读 {spec[0]}，记下的版本 {len(none)} 个")
        assert (spec, none) == (["hf:no/network"], {})


if __name__ == "__main__":
    run_demo(demo)
