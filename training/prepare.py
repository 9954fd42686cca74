r"""第二次训练为什么立刻就能开始？——数据目录记得自己是用什么做成的。

从语料到分片要读文件、训练分词器、分词，少则几秒，多则几小时；而改学习率重跑一次，这些都没变。
所以把「决定结果的一切」散列成一把钥匙（cache key），存进 manifest.json：

$$\text{key} = \mathrm{SHA256}(\text{格式},\ \text{语料指纹},\ \text{分词器},\ f,\ \text{读法})$$

    prepare_data(spec, tokenizer, directory)
         │  钥匙相同，文件也完好 ───────────────▶ 直接打开
         │  钥匙不同（语料、分词器或选项变了）──▶ 重做，完整写好才替换旧的
         │  钥匙相同，文件却坏了 ───────────────▶ 警告，重做
         └  目录里是别的东西 ──────────────────▶ ValueError，绝不动用户的文件

钥匙里少放一样，就会悄悄用上过期的数据；多放一样，不过是白做一遍。宁多勿少。

分词器可以现成给（Tokenizer），也可以只给种类（"characters"、"bpe"），由语料现场训练，
与分片存在同一个目录里，之后用 Tokenizer.load(directory) 取。

论文：内容决定钥匙的思想 — Dolstra et al., *Nix: A Safe and Policy-Free System*, LISA 2004。

改哪里：什么变化算「变了」→ _cache_key；语料指纹怎么算 → corpus.py。
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from foundation.checks import check_choice, check_int
from foundation.demonstration import run_demo
from foundation.files import read_manifest, verify_manifest
from tokenization.tokenizer import Tokenizer
from training.corpus import corpus_fingerprint, load_corpus
from training.shards import warn_if_shared, write_shards
from training.token_shard import KIND, TokenShard

__all__ = ["TOKENIZER_KINDS", "prepare_data"]

TOKENIZER_KINDS = ("characters", "bpe")
# 分片的写法一变（划分规则、文件格式），就加一：旧目录的钥匙随之失效。
FORMAT = 1


def prepare_data(
    spec: str | Path,
    tokenizer: Tokenizer | str,
    directory: Path | str,
    *,
    vocab_size: int = 2048,
    validation: str | Path | None = None,
    val_fraction: float = 0.1,
    errors: str = "strict",
    text_key: str = "text",
    progress: Callable[[int], None] | None = None,
    verify: bool = True,
) -> tuple[TokenShard, TokenShard]:
    """语料 → (训练分片, 验证分片)；上次做好的还能用就直接用。

    类型：tokenizer 是现成的 Tokenizer，或 "characters"、"bpe"（后者训练到 vocab_size）；
          validation 是另一份语料，给出时它就是验证集；verify=False 不再核对旧文件的 SHA-256
    错误：见 load_corpus 与 write_shards
    警告：验证集与训练集有相同的文档；旧文件损坏，已重做
    """
    directory = Path(directory)
    if isinstance(tokenizer, str):
        check_choice("tokenizer", tokenizer, TOKENIZER_KINDS)
        check_int("vocab_size", vocab_size, 1)
    specs = [spec] if validation is None else [spec, validation]
    # 先取指纹再读：若文件在读的时候被改，下次的指纹就不同，自然会重做。
    key = _cache_key(
        [corpus_fingerprint(each) for each in specs],
        _identity(tokenizer, vocab_size),
        val_fraction if validation is None else None,
        errors,
        text_key,
    )
    if not _is_usable(directory, key, verify):
        if isinstance(tokenizer, str):
            tokenizer = _train_tokenizer(tokenizer, specs, vocab_size, errors, text_key)
        held_out = None
        if validation is not None:
            held_out = load_corpus(validation, errors=errors, text_key=text_key)
        write_shards(
            load_corpus(spec, errors=errors, text_key=text_key),
            tokenizer,
            directory,
            val_fraction=val_fraction,
            val_documents=held_out,
            facts={"key": key, "corpus": str(spec)},
            progress=progress,
        )
    # 刚写好或刚核对过，不必再算一遍 SHA-256。
    train = TokenShard.open(directory, "train", verify=False)
    return train, TokenShard.open(directory, "val", verify=False)


def _is_usable(directory: Path, key: str, verify: bool) -> bool:
    try:
        manifest = read_manifest(directory, kind=KIND)
    except ValueError:
        # 没有，或是别的东西；write_shards 会分辨，该拒绝的由它拒绝。
        return False
    if manifest.get("key") != key:
        return False
    if verify:
        try:
            verify_manifest(directory, kind=KIND)
        except ValueError as error:
            warnings.warn(f"{error}; the shards are written again", stacklevel=3)
            return False
    warn_if_shared(manifest, directory)
    return True


def _cache_key(*facts: object) -> str:
    return sha256(json.dumps([FORMAT, *facts]).encode()).hexdigest()


def _identity(tokenizer: Tokenizer | str, vocab_size: int) -> list[object]:
    if isinstance(tokenizer, Tokenizer):
        return [tokenizer.fingerprint]
    return [tokenizer, vocab_size if tokenizer == "bpe" else None]


def _train_tokenizer(
    kind: str, specs: list[str | Path], vocab_size: int, errors: str, text_key: str
) -> Tokenizer:
    texts = (
        document.text
        for spec in specs
        for document in load_corpus(spec, errors=errors, text_key=text_key)
    )
    if kind == "characters":
        return Tokenizer.characters(texts)
    return Tokenizer.train_bpe(texts, vocab_size)


def demo() -> None:
    """同一份语料准备三次：第一次、没变、变了。"""
    with tempfile.TemporaryDirectory() as name:
        source, folder = Path(name, "corpus"), Path(name, "data")
        manifest = folder / "manifest.json"
        source.mkdir()
        for document in load_corpus("python-docs"):
            file = source / f"{document.source.split(':')[1]}.txt"
            file.write_text(document.text, encoding="utf-8", newline="\n")

        def prepare(what: str, kind: str) -> str:
            before = manifest.stat().st_mtime_ns if manifest.exists() else 0
            train, val = prepare_data(source, kind, folder, vocab_size=512)
            made = "直接打开" if manifest.stat().st_mtime_ns == before else "重新分词"
            with train, val:
                print(
                    f"   {what} → {made}：训练 {len(train):>7,}，验证 {len(val):>6,} 词元；"
                    f"词表 {train.vocab_size:>3}，{train.bytes_per_token:.2f} 字节/词元"
                )
                return f"{train.fingerprint}"

        print("① 第一次要训练分词器、分词；第二次钥匙没变，直接打开")
        first = prepare("第一次　　", "bpe")
        again = prepare("什么都没变", "bpe")
        assert first == again
        print("② 换了分词器，或语料多了一个文件：钥匙变了，重做")
        other = prepare("换成按字符", "characters")
        (source / "new.txt").write_text("A new page.\n" * 400, encoding="utf-8", newline="\n")
        more = prepare("多一个文件", "characters")
        assert len({first, other, more}) == 3
        print("③ 目录里若是别人的文件，绝不覆盖")
        try:
            prepare_data("python-docs", "characters", source)
        except ValueError as error:
            print(f"   {str(error).replace(name, '…')}")
        else:
            raise AssertionError("a folder with the user's files must be refused")


if __name__ == "__main__":
    run_demo(demo)
