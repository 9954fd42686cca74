r"""训练目录里有许多存档，哪个最新、哪个最好、哪个坏了、哪个可以删？

没有 latest 这样的指针文件：两份说法总有一天会不一致（指针写了，存档没写完）。
目录的列表就是唯一的事实：

    runs/my-run/
    ├── step-000200/   有清单，核对无误      是存档
    ├── step-000400/   有清单，一个比特翻了  坏了：说出是哪个文件，退回前一个
    ├── step-000600/   没有清单              不是存档（删到一半的）
    ├── step-000800.tmp-3f2a/                不是存档（写到一半就断电的），下次开始时扫掉
    └── metrics.jsonl

最新的 = 步数最大、且核对无误的；最好的 = 验证损失最小的（一样小取较晚的）。

$$\text{best} = \arg\min_{s}\ \text{val\_loss}(s)$$

清单核对每个文件的大小与 SHA-256，但谁来核对清单自己？步数与验证损失写了两处：清单里一份
（找「最好的」时只读清单，不必读大文件），trainer.json 里一份（有 SHA-256 担保）；两份不同，
就是清单坏了。清单里别的字，改了任何一个，要么不再是 JSON，要么与文件对不上。

删旧的：只在新的存好、核对过之后；先改名再删，改名是一下子的事，死在删的半路也不会留下
一个「看起来像存档」的残骸。最近的几个与最好的那个总是留着。

常见疑问：
    为什么至少留两个？  最新的那个可能坏了（磁盘、误删），有前一个可退，只损失一小段。
    坏了为什么不自动删？ 删是没法反悔的；警告一声，退回前一个，残骸留给人看。

论文：写了又坏、坏了不说的磁盘 — Bairavasundaram et al., *An Analysis of Data Corruption in the
      Storage Stack*, FAST 2008。

改哪里：留哪些 → remove_old_checkpoints；怎样算「最好」→ best_checkpoint
        （gpt_model/model_directory.py 的 find_model_directory 用同一条规则，要一起改）。
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.demonstration import run_demo
from foundation.files import MANIFEST, atomic_directory, read_json, verify_manifest, write_json

__all__ = [
    "Checkpoint",
    "best_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "remove_checkpoint",
    "remove_old_checkpoints",
    "step_directory",
    "verify_checkpoint",
]

CHECKPOINT_KIND = "checkpoint"  # 写进清单，与模型目录、词元分片区分
TRAINER_FILE = "trainer.json"  # 计数、配置、描述；与张量分开放
STEP_NAME = re.compile(r"step-(\d{6,})")  # 临时的、改过名的都匹配不上


@dataclass(frozen=True)
class Checkpoint:
    """磁盘上的一个存档：第几步、在哪里、当时的验证损失（没有评估过就是 None）。"""

    step: int  # 权重走完了几步
    directory: Path  # 整个目录才是存档，缺一个文件都不算
    val_loss: float | None  # 越小越好


def step_directory(run_dir: Path, step: int) -> Path:
    """第 step 步的存档放在哪里；补足六位，按名字排也就是按步数排。

    约定：六位不够用时照实变长；列表按数而不按名字排，所以次序仍然是对的
    """
    return run_dir / f"step-{step:06d}"


def list_checkpoints(run_dir: Path | str) -> list[Checkpoint]:
    """写完了的存档，按步数从早到晚；只读清单，还没有核对内容。

    约定：目录不存在就是空列表；坏了的也在列表里，读之前要 verify_checkpoint
    代价：每个存档只读一个小文件，所以随时可以问
    """
    found = []
    for directory in Path(run_dir).glob("step-*"):  # glob 的次序不定，最后再排
        match = STEP_NAME.fullmatch(directory.name)
        # 没有清单的，是删到一半的残骸，或不是我们写的
        if match is None or not (directory / MANIFEST).is_file():
            continue
        # 步数从名字取：清单也许坏了，名字总还在
        found.append(Checkpoint(int(match[1]), directory, _recorded_loss(directory)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _recorded_loss(directory: Path) -> float | None:
    """清单里记的验证损失；清单若已损坏就当没有，留给核对时去报告。"""
    try:
        value = read_json(directory / MANIFEST).get("val_loss")
    except (ValueError, AttributeError):  # 不是 JSON，或不是字典
        return None
    # bool 也是 int；损坏的清单里什么都可能有
    return float(value) if isinstance(value, (int, float)) else None


def verify_checkpoint(directory: Path) -> dict[str, Any]:
    """核对一个存档的每个文件，返回 trainer.json 的内容。

    错误：缺文件、大小或 SHA-256 不符、清单与 trainer.json 说法不同 → ValueError，写明是哪个文件
    """
    # ① 每个文件与清单相符
    manifest = verify_manifest(directory, kind=CHECKPOINT_KIND)  # 读遍全部文件
    # ② 清单自己：它多说的话，trainer.json 里都有一份
    progress = read_json(directory / TRAINER_FILE)
    claimed = {key: manifest[key] for key in manifest if key not in ("format", "version", "files")}
    actual = {key: progress.get(key) for key in ("step", "val_loss")}
    if claimed != actual:
        raise ValueError(
            f"{directory / MANIFEST} is damaged: it says {claimed}, but {TRAINER_FILE} {actual}"
        )
    # ③ 目录名也是一份说法：改了名的存档会让学习率与数据从错的地方接
    if directory.name != step_directory(directory.parent, actual["step"]).name:
        raise ValueError(f"{directory} was renamed: it holds step {actual['step']}")
    return dict(progress)


def latest_checkpoint(
    run_dir: Path | str, warn: Callable[[str], None] | None = None
) -> Checkpoint | None:
    """最新的完好的存档；坏的跳过并说出来，一个存档也没有则 None。

    参数：warn 收到每一句警告；不给就用 warnings.warn
    错误：有存档，但个个都坏了 → ValueError，逐个写明坏在哪里
    """
    problems = []  # 个个都坏时，要一次列全
    for checkpoint in reversed(list_checkpoints(run_dir)):  # 从最新的往回试
        try:
            verify_checkpoint(checkpoint.directory)
        except (ValueError, OSError) as error:  # 坏了，或读不出来
            problems.append(str(error))
            message = f"{error}; falling back to the checkpoint before it"
            if warn is None:
                warnings.warn(message, stacklevel=2)
            else:
                warn(message)
        else:
            return checkpoint
    # 悄悄从头开始，等于把几天的训练扔了还不说
    if problems:
        raise ValueError(f"every checkpoint in {run_dir} is damaged: {'; '.join(problems)}")
    return None


def best_checkpoint(run_dir: Path | str) -> Checkpoint | None:
    """验证损失最小的一个；都没有评估过则 None。一样小时取较晚的。

    公式：arg minₛ val_loss(s)
    约定：只看清单，不核对内容；要用它的人自己核对（load_weights 会）
    """
    best = None
    for checkpoint in list_checkpoints(run_dir):
        if checkpoint.val_loss is None:  # 没量过的不参加比较
            continue
        # ≤ 而不是 <：一样好时，练得久的那个多看了些数据
        if best is None or checkpoint.val_loss <= (best.val_loss or 0.0):
            best = checkpoint
    return best


def remove_old_checkpoints(run_dir: Path, keep_last: int) -> list[Path]:
    """只留最近 keep_last 个与最好的一个；返回删掉的。

    约定：最好的若就在最近几个里，便不另占一个名额
    约定：只在新的存好、核对过之后调用，否则可能把唯一完好的删掉
    """
    found = list_checkpoints(run_dir)
    kept = {checkpoint.directory for checkpoint in found[-keep_last:]}  # 续训要用的
    best = best_checkpoint(run_dir)
    if best is not None:
        kept.add(best.directory)  # 练完了要用的
    old = [checkpoint.directory for checkpoint in found if checkpoint.directory not in kept]
    for directory in old:
        remove_checkpoint(directory)
    return old


def remove_checkpoint(directory: Path) -> None:
    """先改成临时的名字，再删：死在半路，剩下的也不像一个存档，下次开始时会扫掉。"""
    doomed = directory.with_name(f"{directory.name}.tmp-{secrets.token_hex(4)}")
    os.replace(directory, doomed)  # 一下子的事：要么还是存档，要么不是
    # Windows 上若有别的程序正读着，删不掉也不要紧：名字已经换了
    shutil.rmtree(doomed, ignore_errors=True)


def demo() -> None:
    """五个假的存档（只有 trainer.json）：看列表、删旧、翻一个比特、清单自己坏了。"""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        losses = {100: 3.0, 200: 2.5, 300: 2.1, 400: 2.3, 500: 2.2}  # 最好的在中间
        for step, loss in losses.items():
            facts = {"step": step, "val_loss": loss}
            with atomic_directory(
                step_directory(run, step), kind=CHECKPOINT_KIND, extra=facts
            ) as temporary:
                write_json(temporary / TRAINER_FILE, facts)

        # 断电留下的半成品、别人的目录，都不算
        (run / "step-000600.tmp-0a1b").mkdir()  # 写到一半
        (run / "step-000700").mkdir()  # 没有清单
        print("① 列表：" + "，".join(f"{c.step} 步 {c.val_loss}" for c in list_checkpoints(run)))
        assert [c.step for c in list_checkpoints(run)] == [100, 200, 300, 400, 500]

        removed = remove_old_checkpoints(run, keep_last=2)
        left = [c.step for c in list_checkpoints(run)]
        print(f"② 留最近 2 个与最好的（300 步）：删了 {len(removed)} 个，剩 {left}")
        assert left == [300, 400, 500]

        print("③ 最新的翻转一个比特：")
        file = step_directory(run, 500) / TRAINER_FILE
        damaged = bytearray(file.read_bytes())
        damaged[10] ^= 1  # 磁盘上一个比特翻了，大小没变
        file.write_bytes(damaged)
        heard: list[str] = []  # 收下警告，看它说了什么
        latest = latest_checkpoint(run, heard.append)
        print(f"   {heard[0].replace(name, '…')[:88]}")
        assert latest is not None
        assert latest.step == 400  # 退回前一个

        print("④ 清单里的验证损失 2.3 被改成 0.3（想冒充最好的）：")
        manifest = step_directory(run, 400) / MANIFEST
        manifest.write_bytes(manifest.read_bytes().replace(b"2.3", b"0.3"))  # 文件都没动
        try:
            verify_checkpoint(step_directory(run, 400))
        except ValueError as error:
            print(f"   {str(error).replace(name, '…')}")
        else:
            raise AssertionError("a manifest that lies must be noticed")


if __name__ == "__main__":
    run_demo(demo)
