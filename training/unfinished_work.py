r"""几小时的活做到一半断了，半成品放在哪里，下次怎样认出来，别人的文件怎样不碰？

写好的数据目录要么完整、要么没有（见 foundation/files.py），所以半成品不能放在里面。
它在旁边，名字固定，下次同样的命令就找得到：

    data/books            完整的数据目录；没做完时不存在（或还是上一次的）
    data/books.parts/     半成品
    ├── lock                       谁正在做；进程一死，操作系统自动放开
    ├── tokenizer.json  .key       训练好的分词器，与它的钥匙
    └── part-000000.safetensors …  做好的各份（见 token_parts.py）

    还没有 ──mkdir──▶ 正在做 ──做完──▶ 删掉
                        │ ▲
                  被杀、出错 └── 再跑一次，接着做

半成品可不可信，不看时间，也不看「做到第几步」，只看内容是不是同样的输入做出来的：

$$\text{可用} \iff \text{key}_{\text{文件里}} = \mathrm{SHA256}(\text{输入})$$

所以换了语料、选项再跑，旧的半成品不会混进来，最多是白占地方，做完时一并删掉。

为什么要锁：两个进程做同一个目录，先做完的会删掉半成品，而另一个还要读它们。
为什么用操作系统的锁，而不是「有这个文件就算锁着」：进程被杀时那样的文件会留下，以后永远进不去。

每一种死法，留下什么，下次怎样：

    死在                      留下                     下次
    训练分词器时              空文件夹（无钥匙）       从头训练
    写 tokenizer.json 时      .tmp 文件，或没有钥匙    从头训练：钥匙后写，没有钥匙就不算
    做第 k 份时               前 k 份                  只做第 k 份以后的
    划分、改名时              全部的份                 分词一份也不必重做
    删半成品时                一部分份                 数据目录已经完整，直接用；不会再来看它们

常见疑问：
    半成品占多大地方？    与做好的数据目录差不多；做完即删。
    不想要了，怎样放弃？  删掉 NAME.parts 文件夹就是。
    出错时为什么也留着？  第一百个文件编码有错，改好它，前九十九个不必重做。

    两台机器共用网络盘？  锁未必跨机器有效；各用各的目录，或只在一台上做。
    会不会越积越多？      不会：一个目录至多一份半成品，做完就删。
    钥匙为什么不放进 tokenizer.json？  那是别的程序也读的格式，不该混进我们的记号。

    一步一步看 ──▶  mkdir ▶ 上锁 ▶ 训练 ▶ 写分词器 ▶ 写钥匙 ▶ 写各份 ▶ 换上数据目录 ▶ 放锁 ▶ 删
                    └ 每一步之前死掉，再跑一次都得到同样的字节（tests/training 里真的杀给你看）

试一试：fromzero data prepare 一个大文件，跑到一半按 Ctrl-C，看 NAME.parts；再跑一次同样的命令。

参考：写临时文件再改名、最后写钥匙 — SQLite 的原子提交说明，https://sqlite.org/atomiccommit.html。

改哪里：放到别的磁盘 → unfinished_work 里的 folder；多存一种半成品 → OURS 添上它的名字。
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from foundation.demonstration import run_demo
from foundation.files import write_text
from tokenization.tokenizer import Tokenizer

__all__ = ["trained_once", "unfinished_work"]

# 锁的文件本身没有内容；有没有锁，由操作系统记着。
# 以下名字若改了，旧版留下的半成品就会被当成别人的文件，要用户自己删。
# 半成品的文件夹里只会有这些；别的名字说明那是用户的文件夹。
LOCK, TOKENIZER_KEY = "lock", "tokenizer.key"
OURS = re.compile(
    rf"(part|val)-\d+\.safetensors(\.tmp-\w+)?|{LOCK}|tokenizer\.(json|key)(\.tmp-\w+)?"
    r"|revisions\.json(\.tmp-\w+)?"  # 网上的数据集用的是哪一版，见 dataset_versions.py
    r"|\.tmp\w+"  # safetensors 写到一半的；被杀时会留下
).fullmatch


@contextmanager
def unfinished_work(directory: Path) -> Iterator[Path]:
    """半成品放在哪里：目录旁边的 NAME.parts。做完就删；中途被杀，下次从那里接着做。

    用法：with unfinished_work(Path("data/books")) as folder: 往 folder 里写，再换上 data/books

    错误：那里有别的东西；另一个进程正在做同一个目录
    """
    folder = directory.with_name(f"{directory.name}.parts")
    # ① 只动自己的文件：名字恰好相同的文件夹，可能是用户的
    strangers = [] if not folder.exists() else [p for p in folder.iterdir() if not OURS(p.name)]
    if strangers or (folder.exists() and not folder.is_dir()):
        raise ValueError(
            f"{folder} is where unfinished work is kept, but it holds {strangers[0].name}; "
            "move it elsewhere"
            if strangers
            else f"{folder} is where unfinished work is kept, but it is a file; move it elsewhere"
        )
    # parents=True：--out a/b/c 时上级也还没有。目录写不了，在第一步就会知道，而不是分词几小时之后
    folder.mkdir(parents=True, exist_ok=True)
    # ② 两个进程做同一个目录，一个做完就会删掉另一个还要读的份
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is writing {directory}; wait for it, or choose another folder"
        ) from None
    # 只有 with 里的全部做完才算；KeyboardInterrupt 不是 Exception，所以不用 except
    done = False
    try:
        yield folder
        done = True
    finally:
        # 先放开锁再删：Windows 上打开着的文件删不掉
        lock.release()
        # ③ 一份也没做好，就没有什么值得留下
        if done or not any(folder.glob("*.safetensors")):
            shutil.rmtree(folder, ignore_errors=True)


def trained_once(folder: Path, key: str, make: Callable[[], Tokenizer]) -> Tokenizer:
    """训练分词器，或取上次训练好的；钥匙后写，所以有钥匙就有完整的分词器。

    参数：key 是决定分词器的一切的哈希；make 真正去训练，只在需要时调用
    约定：make 须是确定的：同样的 key，训练几次都得到同一个分词器
    """
    # 钥匙是输入的哈希：语料、词表大小、读法，变了一样就不能用
    note = folder / TOKENIZER_KEY
    if note.exists() and note.read_text(encoding="utf-8") == key:
        return Tokenizer.load(folder)
    # 先扔掉旧的钥匙：若死在两次写之间，旧钥匙就会配上新分词器
    note.unlink(missing_ok=True)
    tokenizer = make()
    tokenizer.save(folder)
    write_text(note, key)
    return tokenizer


def demo() -> None:
    """做到一半出错，再来一次；另一个进程同时来；文件夹里有别人的文件。"""
    # 语料很小，只为看清留下什么、认得什么
    texts = ["the cat sat on the mat"] * 3
    trained: list[str] = []  # 每训练一次记一笔

    def train() -> Tokenizer:
        trained.append("BPE")
        return Tokenizer.train_bpe(texts, 260)

    with tempfile.TemporaryDirectory() as name:
        target = Path(name, "data")
        # 中断在 with 里面抛出，与真的 Ctrl-C 一样
        print("① 训练好分词器、做好一份之后断电")
        try:
            with unfinished_work(target) as folder:
                trained_once(folder, "key 1", train)
                (folder / "part-000000.safetensors").write_bytes(b"...")
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            print(f"   留下 {sorted(path.name for path in folder.iterdir())}")
        print("② 再跑一次：同样的钥匙，分词器不必重训；换了钥匙就重训")
        with unfinished_work(target) as folder:
            for key in ("key 1", "key 2"):
                trained_once(folder, key, train)
                print(f"   {key}：一共训练过 {len(trained)} 次")
                # 半路上，别的进程也想来做同一个目录
            try:
                with unfinished_work(target):
                    raise AssertionError("the lock must keep a second one out")
            except ValueError as error:
                print(f"   同时来的：{str(error).replace(name, '…')}")
        assert len(trained) == 2
        print(f"③ 做完：半成品还在吗？{folder.exists()}")
        assert not folder.exists()
        folder.mkdir()
        (folder / "diary.txt").write_text("mine", encoding="utf-8")
        # 名字恰好撞上的文件夹：宁可停下来问，也不删
        try:
            with unfinished_work(target):
                raise AssertionError("a folder of the user's must not be used")
        except ValueError as error:
            print(f"④ 别人的文件夹：{str(error).replace(name, '…')}")
        assert (folder / "diary.txt").exists()


if __name__ == "__main__":
    run_demo(demo)
