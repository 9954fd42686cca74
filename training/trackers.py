r"""同一次训练，怎样交给四家记录实验的工具，续训时还接在原来那条曲线上？

tracking.py 说的接口只有三个方法：start、log、finish。每家各有各的叫法，这里各用二十行对上：

    名字          数放在哪里                 没有网络时                            另装
    tensorboard   训练目录里                 本来就不用网                          tensorboard
    wandb         wandb 的网站               WANDB_MODE=offline                    wandb
    swanlab       swanlab 的网站             SWANLAB_MODE=offline                  swanlab
    mlflow        mlflow 自己的设置说了算    MLFLOW_TRACKING_URI=sqlite:///a.db    mlflow

    我们的         wandb                 swanlab                  mlflow
    start          init(id, resume)      init(id, resume)         start_run / start_run(run_id)
    log            run.log(数, step)     run.log(数, step)        log_metrics(数, step)
    finish(True)   finish(exit_code=0)   finish("success")        end_run("FINISHED")
    finish(False)  finish(exit_code=1)   finish("crashed", 原因)  end_run("FAILED")

续训要接在原来那条曲线后面，而不是另起一条：

$$\text{曲线} = \underbrace{1,\dots,s}_{\text{存档之前}} \cup
  \underbrace{s+1,\dots,S}_{\text{续训重走，只留一份}}$$

网上的工具凭编号认人，编号记在训练目录的 tracking.json 里；TensorBoard 没有编号，告诉它从哪一步起
作废（purge_step），断电前多走的几步就不会留下来回。

常见疑问：
    为什么用到才导入？          它们又大又慢，多数人一个也不用；没装的，不该妨碍别的
    账号、密码放在哪里？        归它们自己管（wandb login …）；这里不读，也不写
    编号泄了密吗？              没有：它只是名字，没有账号谁也写不进去
    每步都记，会不会太慢？      都是攒着、在别的线程里写；自己的写法若要等网络，请也这样做
    为什么不替我切到离线？      那样数就不在你以为的地方了；没有网络，请用环境变量说出来
    从头练一遍，会接上旧的吗？  不会：从头练就换新编号，旧的曲线留着好比较

论文：无；接口取自 wandb 0.31、swanlab 0.10、mlflow 3.17 的文档，并各自真的离线跑过。
改哪里：添一个工具 → 写三个方法，登记在 `TRACKERS` 里；项目的名字 → `PROJECT`。
"""

from __future__ import annotations

import importlib
import json
import secrets
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from foundation.files import read_json, write_json

if TYPE_CHECKING:
    from training.tracking import Tracker

__all__ = ["TRACKERS", "make_trackers"]

PROJECT = "llm-from-zero"  # 网页上的项目名：所有训练归在一处
IDS_FILE = "tracking.json"  # 名字 → 编号，续训时凭它接上


def load_package(module: str, package: str) -> Any:
    """用到才导入；没有装 → ValueError，写明怎样装。

    module 是要导入的，package 是要安装的：TensorBoard 的写手在 torch 里，要装的却是 tensorboard
    建的时候就说，不等训练开始；别的工具照常用
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        # from None：人只需知道怎样装，不必看导入的一长串经过
        raise ValueError(
            f"{package} is not installed; pip install {package}, or leave it out of --track: "
            "metrics.jsonl and loss.png hold the same numbers"
        ) from None


def known_ids(directory: Path) -> dict[str, str]:
    """训练目录里记着的编号：工具的名字 → 编号；没有文件就是空的。"""
    path = directory / IDS_FILE
    ids = read_json(path) if path.is_file() else {}
    # 文件是人能改的；不是「名字 → 文字」就当没有
    pairs = ids.items() if isinstance(ids, dict) else ()
    # 编号都是文字；别的多半是手改坏的，当没有就另起一个
    return {name: value for name, value in pairs if isinstance(value, str)}


def kept_id(directory: Path, name: str, done: int, fresh: str | None = None) -> str | None:
    """这次训练在某个工具里的编号：续训时取旧的；否则记下新的 fresh（没有就是 None）。

    为什么自己起：编号在开张之前就写进训练目录，开张之后立刻断电也找得回来
    """
    ids = known_ids(directory)
    # done = 0 是从头练：目录里就算有旧编号（--overwrite 之前的），也不接
    if done and name in ids:
        return ids[name]
    # 别家的编号留着，只换自己的
    if fresh is not None:
        write_json(directory / IDS_FILE, {**ids, name: fresh})
    return fresh


class TensorBoardTracker:
    """写成 TensorBoard 的文件：tensorboard --logdir runs，在浏览器里看；不用网络。

    一个目录里可以有几份文件（每次续训一份），它按步数合在一起看
    """

    name = "tensorboard"

    def __init__(self) -> None:
        # 留着模块，开张时才建写手：一建就会写出文件
        self._package = load_package("torch.utils.tensorboard", "tensorboard")
        self._writer: Any = None

    def start(self, config: Mapping[str, Any], directory: Path, done: int) -> None:
        """打开；续训时，存档之后的那些点作废；从头练，目录里以前的点全部作废。"""
        # 从存档的下一步起会重走一遍；不作废，曲线就有一段来回
        # 作废不是删：点还在旧文件里，只是不画。第 0 步也有点（开头的评估），所以从头练是 0
        self._writer = self._package.SummaryWriter(
            str(directory / "tensorboard"), purge_step=done + 1 if done else 0
        )
        # 缩进四格，网页上显示成代码
        text = json.dumps(dict(config), indent=2, ensure_ascii=False, default=str)
        self._writer.add_text("config", textwrap.indent(text, "    "), done)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """一个数一个点；横轴是步数，与 loss.png 相同。"""
        # 写手自己攒着，隔一阵子才写盘：一个点几十微秒
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, ok: bool) -> None:
        """关好文件；还攒在内存里的点，这时写出去。"""
        # 关两次也不要紧：出错时 on_end 之后，也许还有人再收一遍
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbTracker:
    """Weights & Biases。账号：wandb login；没有网络：环境变量 WANDB_MODE=offline。

    离线记下的，以后用 wandb sync 传上去
    """

    name = "wandb"

    def __init__(self) -> None:
        # 导入要一两秒；没有选它的人不付这个代价
        self._package = load_package("wandb", "wandb")
        self._run: Any = None

    def start(self, config: Mapping[str, Any], directory: Path, done: int) -> None:
        """开一次 run；续训时凭编号接上，已经记过的步它自己会略过。

        错误：没有登录、连不上 → 它自己的异常，由 TrackingHook 说成一句话
        """
        self._run = self._package.init(
            project=PROJECT,
            name=directory.name,
            dir=str(directory),  # 它自己的文件也放进训练目录，不散落在别处
            config=dict(config),
            id=kept_id(directory, self.name, done, secrets.token_hex(4)),
            resume="allow",  # 有就接上，没有就新开
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """一步的几个数一起交。"""
        self._run.log(dict(metrics), step=step)

    def finish(self, ok: bool) -> None:
        """退出码不是 0，网页上就标成失败；它会等没传完的传完。"""
        if self._run is not None:
            self._run.finish(exit_code=0 if ok else 1)
            self._run = None


class SwanLabTracker:
    """SwanLab。账号：swanlab login；没有网络：环境变量 SWANLAB_MODE=offline。

    离线记下的，以后用 swanlab sync 传上去；离线时编号不起作用，续训另成一份
    """

    name = "swanlab"

    def __init__(self) -> None:
        # 只导入，不登录：登录要网络，留到开张时
        self._package = load_package("swanlab", "swanlab")
        self._run: Any = None

    def start(self, config: Mapping[str, Any], directory: Path, done: int) -> None:
        """开一次 run；参数一律按名字给，它只收按名字给的。"""
        self._run = self._package.init(
            project=PROJECT,
            name=directory.name,
            log_dir=str(directory / "swanlog"),
            config=dict(config),
            id=kept_id(directory, self.name, done, secrets.token_hex(4)),
            resume="allow",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """一步的几个数一起交。"""
        self._run.log(dict(metrics), step=step)

    def finish(self, ok: bool) -> None:
        """成功与出错，它有各自的说法；出错要附一句原因。"""
        if self._run is not None:
            if ok:
                # 网页上是绿的
                self._run.finish(state="success")
            else:
                self._run.finish(state="crashed", error="training stopped with an error")
            self._run = None


class MLflowTracker:
    """MLflow。放在哪里由它自己的设置说了算，例如 MLFLOW_TRACKING_URI=sqlite:///mlflow.db。

    它的接口是一组函数，当前的 run 是全局的：一个进程里同时只练一个，正合适
    """

    name = "mlflow"

    def __init__(self) -> None:
        # mlflow-skinny 也行：导入的名字相同
        self._package = load_package("mlflow", "mlflow")
        self._run: Any = None

    def start(self, config: Mapping[str, Any], directory: Path, done: int) -> None:
        """开一次 run；编号由它起，所以开张之后才记下。

        实验（experiment）是它的分类，一个项目一个；续训时凭编号找，不必再说是哪个
        """
        # ① 续训：接着那一次
        known = kept_id(directory, self.name, done)
        # 找到编号就接上，找不到（例如中途才加的）就当新的
        if known is not None:
            self._run = self._package.start_run(run_id=known)
            return
        # ② 从头练：新开一次，再记下它给的编号
        self._package.set_experiment(PROJECT)
        self._run = self._package.start_run(run_name=directory.name)
        kept_id(directory, self.name, 0, self._run.info.run_id)
        # 参数只能记一次、改不得，所以续训时不再记；里层的展平成 a.b
        self._package.log_params(flat(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """不等它写完（synchronous=False）：每步等几毫秒，小模型就慢了一成。"""
        self._package.log_metrics(dict(metrics), step=step, synchronous=False)

    def finish(self, ok: bool) -> None:
        """等没写完的写完，再收摊。"""
        if self._run is not None:
            # 异步写的还在排队；不等它，最后几步就没了
            self._package.flush_async_logging()
            self._package.end_run("FINISHED" if ok else "FAILED")
            self._run = None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """里层的字典展平：{"a": {"b": 1}} → {"a.b": "1"}。

    值一律写成文字：列表、None 与路径，MLflow 都不认识
    >>> flat({"a": {"b": 1}, "c": None})
    {'a.b': '1', 'c': 'None'}
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        # 里层再展平一次，名字前面接上外层的
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


# 名字 → 怎样造；命令行的 --track 认的就是这些名字
TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "swanlab": SwanLabTracker,
    "mlflow": MLflowTracker,
}


def make_trackers(spec: str) -> list[Tracker]:
    r"""auto：装了 TensorBoard 就用它；none：都不用；否则是用逗号连起来的名字。

    为什么只有 auto 容忍没装：明说了要的，没有就该停下；没说的，有就用，没有就算
    错误：名字不认识、重复、没有装 → ValueError
    """
    if spec == "none":
        return []
    if spec == "auto":
        try:
            return [TensorBoardTracker()]
        except ValueError:
            return []  # 没有明说要它，没装就算了
    # 逗号后面留个空格也认
    names = [name.strip() for name in spec.split(",")]
    for name in names:
        # auto 与 none 只能单独说；混在名单里，就说不清要什么
        check_choice("track", name, TRACKERS if len(names) > 1 else [*TRACKERS, "auto", "none"])
        # 同一家开两次，点就成双
        if names.count(name) > 1:
            raise ValueError(f"track names {name!r} twice, got {spec!r}")
    # 这一步才导入；缺哪一个，说的就是哪一个
    return [TRACKERS[name]() for name in names]


def demo() -> None:
    """编号：续训取旧的，从头练换新的；写错了名字得到什么话。"""
    with tempfile.TemporaryDirectory() as name:
        # 只看编号怎么来，不必真装那些工具
        directory = Path(name)
        # 三次训练同一个目录：从头练、在第 200 步续训、再从头练
        # aaaa、bbbb 是假的新编号，看用了哪一个
        first = kept_id(directory, "wandb", 0, "aaaa")
        resumed = kept_id(directory, "wandb", 200, "bbbb")
        again = kept_id(directory, "wandb", 0, "cccc")
        print(f"① 从头练 {first}；第 200 步续训 {resumed}；又从头练 {again}")
        assert (first, resumed, again) == ("aaaa", "aaaa", "cccc")
        # 每家一个编号，互不相干
        # 中途才加的工具，续训时也没有旧编号
        other = kept_id(directory, "swanlab", 200, "dddd")
        print(f"   另一家没有旧编号，续训也只好新起：{other}；文件里 {known_ids(directory)}")
        assert known_ids(directory) == {"wandb": "cccc", "swanlab": "dddd"}

    # MLflow 的参数是一层的：名字 → 文字
    print(f"② 展平：{flat({'model': {'dim': 128, 'rope': {'theta': 1e4}}, 'seed': 0})}")
    print("③ 认得的名字，与写错时")
    # 两个对的，两个错的
    for spec in ("none", "auto", "tensorbord", "wandb,wandb"):
        try:
            names = [tracker.name for tracker in make_trackers(spec)]
            print(f"   {spec:12} → {names}")
        except ValueError as error:
            print(f"   {spec:12} → {error}")
    assert make_trackers("none") == []


if __name__ == "__main__":
    run_demo(demo)
