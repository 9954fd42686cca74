r"""一次好的训练要选对几十个数，能不能整套照抄？——配方（recipe）：一个名字，一整套选择。

一个配方是两张单子：模型的（GPTConfig 的字段）与训练的（TrainConfig 的字段），都只写与默认不同的。

    名字       为了什么                                      模型         看过的词元
    classic    nanoGPT 的 CPU 配方，一切比较的起点           4 层 × 128   1.5 M
    sprint     用最少的计算到达 classic 的损失               1 层 × 128   0.2 M
    steady     与 classic 同样的时间，损失尽量低             3 层 × 128   2.8 M
    speedrun   胜过 nanoGPT 在 A100 上的 1.4697              更大一些     见下

    fromzero train --recipe speedrun --data 莎士比亚.txt      配方里的都是默认值，后面还可以再改：
    fromzero train --recipe sprint --data 我的.txt --steps 500

后三个为什么快？每一项都单独试过（benchmarks/recipe_ablation.py 逐项关掉，打印差别），从大到小：

    token_shift + bigram_rows   「前一个是谁」不必学着找，直接递过来      previous_token.py
    Muon                        矩阵的每个方向走得一样远                  muon.py
    RoPE、q/k 归一化            位置写进注意力；打分不会越训越大          rotary.py、attention.py
    小批                        同样的词元，多更新几次：数据少时最划算    dataset.py
    层数配得上步数              两百步里，一层与三层学得一样好，只算一半  gpt_model/config.py
    WSD，后一半直线降到 0       降下来的那一段，损失掉得最快              schedule.py
    zero_init、ReLU²、RMSNorm   各给一点点                                initialization.py 等

$$\text{时间} = \frac{\text{要看的词元} \times \text{每个词元的运算}}{\text{每秒的运算}}$$

三个因子三种办法：配方减第一个（学得快）与第二个（模型小），算子减第三个（算得快，见各课「为什么快」）。

试过、没有用的（同样的步数，差别在噪声里）：值的嵌入（value embeddings）、注意力的输出闸门、把最初的
x₀ 掺进每一层、平移两格三格、logit 软限幅；没有参数的 RMSNorm 反而差一点。

什么时候不该照抄？ 这几套是在一百万个字符的小语料上试出来的。语料大得多、模型大得多时，
学习率要小，批要大，bigram 表占的份额也就可以忽略了。

论文：把训练当作比赛 — Jordan et al., *modded-nanogpt* speedruns, 2024；
      Karpathy, *nanoGPT* config/train_shakespeare_char.py（classic 的出处）。

改哪里：加一个配方 → RECIPES 里加一项；哪一项值多少 → benchmarks/recipe_ablation.py。
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from gpt_model.config import GPTConfig, preset
from training.train_config import TrainConfig

__all__ = ["RECIPES", "Recipe", "recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """一整套选择：从哪个预设出发，改哪些字段，怎样训练。

    约定：一行的长度就是模型的 max_seq_len；训练的单子里有 batch_size 与 steps
    """

    purpose: str  # 一句话：为了什么
    preset: str  # gpt_model/config.py 的 PRESETS 里的名字
    model: Mapping[str, Any]  # 与预设不同的 GPTConfig 字段
    training: Mapping[str, Any]  # 与默认不同的 TrainConfig 字段

    def model_config(self, vocab_size: int, **changes: Any) -> GPTConfig:
        """模型的单子；changes 再改几个字段，名字写错会指出最像的。

        约定：词表的大小由分词器定，所以总要给
        """
        return preset(self.preset, **{**self.model, "vocab_size": vocab_size, **changes})

    def train_config(self, **changes: Any) -> TrainConfig:
        """训练的单子；changes 再改几个字段，例如 seed、device。

        约定：改了 steps，预热与衰减的步数也要跟着改，放不下会被拒绝
        """
        return TrainConfig().replace(**{**self.training, **changes})

    @property
    def n_tokens(self) -> int:
        """一共看多少个词元。

        公式：步数 × B × A × T
        """
        config = self.train_config()
        assert config.batch_size is not None, "a recipe says its batch size"
        per_step = config.batch_size * config.grad_accumulation * int(self.model["max_seq_len"])
        return config.steps * per_step


# 后三个配方共用的零件：「现代」的预设（RoPE、RMSNorm、q/k 归一化、ReLU²、没有偏置）之外再加这些
_PARTS = {
    "token_shift": True,  # 前一个词元的向量，按维递过来几成
    "bigram_rows": 1600,  # 一对词元的表；一千多种常见的字母对，大半各有一行
    "zero_init": True,  # 每个块从「什么也不做」长起
    "tie_embeddings": False,  # 词表只有几十个，分开也不多几个参数
}
_MUON = {
    "optimizer": "muon",  # 块里的矩阵用它，其余仍是 AdamW
    "schedule": "wsd",  # 预热、平台、直线下降
    "min_lr_ratio": 0.0,  # 降到 0：最后几步几乎不动，损失却还在掉
    "warmup_steps": 10,  # 有了 q/k 归一化与零初始化，几步就够
}

# 一切比较的起点；四个数以外都是 GPT-2 与 TrainConfig 的默认值
_CLASSIC = Recipe(
    purpose="nanoGPT 的 CPU 配方：一切比较的起点",
    preset="gpt-micro",  # 4 层、4 个头、宽 128
    model={"max_seq_len": 64},
    training={
        "steps": 2000,  # 约一遍半
        "batch_size": 12,  # 每步 768 个字符
        "learning_rate": 1e-3,
        "min_lr_ratio": 0.1,
        "warmup_steps": 100,  # 与总步数相比不算短
        "betas": (0.9, 0.99),  # 批小、噪声大，二阶矩记久一些
        "weight_decay": 0.1,
        "grad_clip": 1.0,
    },
)
# 只求快到，所以上下文短、步数少、学习率大；数据一遍也看不完，谈不上过拟合
_SPRINT = Recipe(
    purpose="用最少的计算到达 classic 的损失",
    preset="modern-micro",  # 与 gpt-micro 同样大小，零件换成「现代」的
    model={**_PARTS, "n_layers": 1, "max_seq_len": 64},  # 两百步里，多几层来不及有用
    training={
        **_MUON,
        "steps": 220,
        "batch_size": 16,  # 每步 1024 个字符：同样的词元，小批更新得多
        "learning_rate": 0.015,  # 矩阵与词向量共用一个：Muon 的步子已配得与 AdamW 相当
        "decay_steps": 165,  # 后四分之三都在降
        "weight_decay": 0.0,  # 还没学会，不必拦
    },
)
# 上下文长四倍：看得远，平均每个字符的前文也多；同样的参数
_STEADY = Recipe(
    purpose="与 classic 同样的时间，损失尽量低",
    preset="modern-micro",
    model={**_PARTS, "n_layers": 3, "max_seq_len": 256},
    training={
        **_MUON,
        "steps": 1350,
        "batch_size": 8,  # 每步 2048 个字符，一共不到三遍
        "learning_rate": 0.008,  # 走得久，比 sprint 小一点
        "decay_steps": 675,  # 后一半
        "weight_decay": 0.0,
    },
)
# 参数不限（gpt-mini 的 10.7 M 以内），可是一百万个字符喂不饱大模型：大了先过拟合
_SPEEDRUN = Recipe(
    purpose="胜过 nanoGPT 在 A100 上的 1.4697",
    preset="modern-micro",
    model={**_PARTS, "n_layers": 3, "dim": 160, "n_heads": 5, "max_seq_len": 256},
    training={
        **_MUON,
        "steps": 2400,
        "batch_size": 8,
        "learning_rate": 0.006,
        "decay_steps": 1200,
        "weight_decay": 0.1,
    },
)

# 名字 → 配方；只读，免得谁改了一处，别处不知不觉也变了
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {"classic": _CLASSIC, "sprint": _SPRINT, "steady": _STEADY, "speedrun": _SPEEDRUN}
)


def recipe(name: str) -> Recipe:
    """按名字取一个配方；写错了，给出最像的。

    错误：没有这个名字 → ValueError，列出全部
    """
    return RECIPES[check_choice("recipe", name, RECIPES)]


def demo() -> None:
    """四个配方的总表；再在一小段会重复的文字上，看两个配方走同样多的步。"""
    from gpt_model.sizes import count_parameters, flops_per_token, human

    print("① 四个配方（词表按 65 个字符）")
    for name, one in RECIPES.items():
        # 计算 = 词元数 × 每个词元的运算；快慢要看机器，计算不看
        config = one.model_config(65)
        work = one.n_tokens * flops_per_token(config)
        print(
            f"   {name:<9} {config.n_layers} 层 × {config.dim}，上下文 {config.max_seq_len:>3}，"
            f"{count_parameters(config).total:>9,} 个参数，{human(one.n_tokens):>5} 个词元，"
            f"{human(work)}FLOPs　{one.purpose}"
        )
    # 能与 nanoGPT 相比的三个，参数不超过它的；sprint 的词元不到 classic 的五分之一
    # 能不能比，看的是参数：大一倍的模型学得快，不算本事
    sizes = {name: count_parameters(one.model_config(65)).total for name, one in RECIPES.items()}
    assert max(sizes["classic"], sizes["sprint"], sizes["steady"]) <= 850_000
    assert 5 * RECIPES["sprint"].n_tokens < RECIPES["classic"].n_tokens

    print("② 同样 30 步、每步同样的词元，学一千行「几的平方是几」（模型缩小到 2 层 × 32）")
    losses = {name: _short_run(name) for name in ("classic", "sprint")}  # 训练损失
    for name, loss in losses.items():
        print(f"   {name:<9} 损失 {loss:.3f}")
    assert losses["sprint"] < losses["classic"] - 0.2


def _short_run(name: str) -> float:
    """把配方的模型缩到 2 层 × 32，走 30 步；返回最后五步的平均训练损失。

    约定：批与长度两边相同，所以看过的词元也相同；学习率各用各的
    """
    import torch

    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer
    from training.accumulation import language_model_loss
    from training.dataset import TokenBatches
    from training.train_step import TrainStep

    # 数字难猜，可是「前一个字符是什么」很有用：正好看出平移与二元表
    text = "".join(f"{n} squared is {n * n}, and half of it is {n * n / 2}.\n" for n in range(900))
    # 没有特殊词元：只有一篇，不必分隔
    tokenizer = Tokenizer.characters([text], special_tokens=())
    one = recipe(name)
    torch.manual_seed(0)  # 初始的权重相同（多出来的零件从 0 开始）
    small = {"n_layers": 2, "dim": 32, "n_heads": 2}  # 其余照配方
    model = GPT(one.model_config(tokenizer.vocab_size, **small))
    config = one.train_config(steps=30, warmup_steps=3, decay_steps=15, batch_size=16)
    # 数据的次序由自己的种子定，两边相同
    batches = TokenBatches(tokenizer.encode(text), 16, 64, seed=0)
    cpu = torch.device("cpu")
    # 不经 Trainer：不评估、不存，只走步
    take = TrainStep(model, batches, language_model_loss, config, device=cpu, precision="fp32")
    reports = [take(step) for step in range(30)]
    return sum(report.loss for report in reports[-5:]) / 5  # 一步的噪声太大


if __name__ == "__main__":
    run_demo(demo)
