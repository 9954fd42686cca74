r"""GPT 有哪些旋钮？一个配置类，说尽 GPT-2、Llama、Qwen、Mistral 的差别。

一个只有解码器的模型（decoder-only）由三种数字决定：

    宽  dim                 每个词元是多少维的向量
    深  n_layers            叠多少个 Transformer 块
    词  vocab_size          认得多少种词元

每个块约有 12·dim² 个参数（注意力 4·dim²，前馈 8·dim²），所以不算词表时

    N ≈ 12 · n_layers · dim²

    gpt2：12 · 12 · 768² = 84,934,656，再加词表 50257 · 768 与位置 1024 · 768，
    各种偏置与归一化，合计 124,439,808。GPT-2 论文的表 2 写作 117M，是当时数错了，
    作者后来在代码仓库里更正为 124M；本课的数字由真正建出的模型核对。

其余字段互不相干（正交）：换归一化不影响位置编码，换激活不影响头数。
一个模型家族只是这些字段的一组取值，代码里没有任何一处问「你是 Llama 吗」。

                 norm       position   activation   gated_ffn  bias   n_kv_heads
    GPT-2        layernorm  learned    gelu_tanh    否         有     = n_heads
    Llama 3      rmsnorm    rope       silu         是         无     < n_heads
    Qwen3        rmsnorm    rope       silu         是         无     < n_heads，qk_norm
    modern-*     rmsnorm    rope       relu2        否         无     = n_heads，qk_norm

论文：GPT-2, Radford et al. 2019；Llama 3, arXiv:2407.21783；Qwen3, arXiv:2505.09388；
      ReLU² 出自 Primer, arXiv:2109.08668；q/k norm 出自 arXiv:2302.05442。

改哪里：加一种预设 → PRESETS 里加一行；加一个旋钮 → GPTConfig 加字段并在 __post_init__ 里检查；
       让新的归一化或激活可选 → transformer_basics/layers.py 的 NORMS 与 ACTIVATIONS。
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foundation.checks import check_bool, check_choice, check_float, check_int, unknown_key_message
from foundation.demonstration import run_demo
from transformer_basics.layers import ACTIVATIONS, NORMS
from transformer_basics.rotary import RopeScaling

__all__ = ["PRESETS", "PRESET_PURPOSES", "GPTConfig", "preset"]

POSITIONS = ("learned", "sinusoidal", "rope", "none")
NORM_POSITIONS = ("pre", "post")


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """一个 GPT 的全部形状与选择；建好后不能改，改用 `replace` 得到新的一份。

    形状：dim 必须被 n_heads 整除（除非给出 head_dim）；n_heads 必须被 n_kv_heads 整除
    错误：任何越界的值 → ValueError，写明字段、允许的范围和给出的值
    """

    # ── 大小 ────────────────────────────────────────────────────────────
    vocab_size: int  # 词元的种类数 V；载入分词器后以它为准
    max_seq_len: int  # 上下文长度（context length），一次最多看这么多词元
    dim: int  # 残差流（residual stream）的宽度
    n_layers: int  # 块的个数 L
    n_heads: int  # 查询头的个数 H，每头 d = dim / H 维
    # None 表示「按惯例」：n_kv_heads = n_heads，head_dim = dim / n_heads，ffn_dim = 4·dim。
    # 保留 None 而不立刻算出，是为了 replace(dim=…) 时它们跟着变。
    n_kv_heads: int | None = None  # 键值头的个数 G；读取用 kv_heads
    head_dim: int | None = None  # 每头的维数 d；读取用 head_size
    ffn_dim: int | None = None  # 前馈中间层的宽度 F；读取用 ffn_size

    # ── 归一化 ──────────────────────────────────────────────────────────
    norm: str = "layernorm"  # rmsnorm 不减均值、没有偏置，更快而一样好
    norm_eps: float = 1e-5  # 除以标准差时加在根号里，免得除以 0
    norm_position: str = "pre"  # pre：残差通路上没有任何东西挡着梯度；post：2017 年的原版
    qk_norm: bool = False  # 打分前先把 q、k 各自归一，注意力分数不会越训越大

    # ── 位置 ────────────────────────────────────────────────────────────
    position: str = "learned"  # 学出来的、正弦的、旋转的，或不给
    rope_theta: float = 10000.0  # 旋转的底数，越大最慢的频率越慢
    rope_scaling: RopeScaling | None = None  # 把训练时的上下文拉长的办法
    sliding_window: int | None = None  # 只看最近这么多个词元；None 表示全看
    token_shift: bool = False  # 词向量里掺进前一个词元的，见 previous_token.py
    bigram_rows: int | None = None  # 「前一个与这一个」的嵌入表有几行；None 表示没有

    # ── 前馈与偏置 ──────────────────────────────────────────────────────
    activation: str = "gelu_tanh"  # GPT-2 用的是 GELU 的 tanh 近似
    gated_ffn: bool = False  # 多一个矩阵当闸门；silu 加门控即 SwiGLU
    qkv_bias: bool = True  # q、k、v 投影的偏置
    proj_bias: bool = True  # 注意力输出、前馈与 LayerNorm 的偏置

    # ── 输出与训练 ──────────────────────────────────────────────────────
    tie_embeddings: bool = True  # 输入词表与输出词表共用一个矩阵
    logit_softcap: float | None = None  # c·tanh(logits / c)：分数不会超过 ±c
    dropout: float = 0.0  # 大语料只看一两遍时不需要；小语料反复看才有用
    init_std: float = 0.02  # 权重初始化的标准差 σ，见 initialization.py
    zero_init: bool = False  # 写回残差的投影从 0 开始：每个块一开始什么也不做

    def __post_init__(self) -> None:
        # ① 整数：bool 是 int 的子类，JSON 里的 true 必须在这里被拒绝
        for name in ("vocab_size", "max_seq_len", "dim", "n_layers", "n_heads"):
            check_int(name, getattr(self, name), 1)
        for name in ("n_kv_heads", "head_dim", "ffn_dim", "sliding_window", "bigram_rows"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        # ② 小数：NaN 与无穷大会一直潜伏到训练中途，在门口就拦住
        check_float("norm_eps", self.norm_eps, exclusive_minimum=0.0)
        check_float("rope_theta", self.rope_theta, exclusive_minimum=0.0)
        check_float("dropout", self.dropout, 0.0, exclusive_maximum=1.0)
        check_float("init_std", self.init_std, 0.0)
        if self.logit_softcap is not None:
            check_float("logit_softcap", self.logit_softcap, exclusive_minimum=0.0)
        # ③ 选项与开关
        check_choice("norm", self.norm, NORMS)
        check_choice("norm_position", self.norm_position, NORM_POSITIONS)
        check_choice("position", self.position, POSITIONS)
        check_choice("activation", self.activation, ACTIVATIONS)
        for name in ("qk_norm", "gated_ffn", "qkv_bias", "proj_bias", "tie_embeddings"):
            check_bool(name, getattr(self, name))
        for name in ("token_shift", "zero_init"):
            check_bool(name, getattr(self, name))
        # ④ 字段之间的约束
        self._check_heads()
        self._check_rope()

    def _check_heads(self) -> None:
        """头必须能平分：宽度分给头，查询头分给键值头（grouped-query attention）。

        公式：dim mod n_heads = 0（除非另给 head_dim），n_heads mod n_kv_heads = 0
        """
        if self.head_dim is None and self.dim % self.n_heads != 0:
            raise ValueError(
                f"dim must be divisible by n_heads: {self.dim} % {self.n_heads} = "
                f"{self.dim % self.n_heads}; change one of them or give head_dim"
            )
        if self.n_heads % self.kv_heads != 0:
            raise ValueError(
                f"n_heads must be divisible by n_kv_heads: {self.n_heads} % {self.kv_heads} = "
                f"{self.n_heads % self.kv_heads}"
            )

    def _check_rope(self) -> None:
        """RoPE 两两成对地旋转，所以每个头必须有偶数维。"""
        if self.position == "rope" and self.head_size % 2 != 0:
            raise ValueError(f"position 'rope' needs an even head_dim, got {self.head_size}")
        if self.rope_scaling is not None:
            if not isinstance(self.rope_scaling, RopeScaling):
                raise ValueError(f"rope_scaling must be a RopeScaling, got {self.rope_scaling!r}")
            if self.position != "rope":
                raise ValueError(f"rope_scaling needs position 'rope', got {self.position!r}")

    # ── 「按惯例」的三个字段，读取时用这些 ───────────────────────────────
    @property
    def kv_heads(self) -> int:
        """键值头的个数 G；G < n_heads 时几个查询头共用一份 K、V，缓存小 n_heads / G 倍。"""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_size(self) -> int:
        """每个头的维数 d。"""
        return self.dim // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def ffn_size(self) -> int:
        """前馈中间层的宽度；None 时取 4·dim，门控时取 8/3·dim 向上取到 16 的倍数，参数量相当。"""
        if self.ffn_dim is not None:
            return self.ffn_dim
        if self.gated_ffn:
            return -(-8 * self.dim // 3 // 16) * 16
        return 4 * self.dim

    # ── 与 JSON 互换 ────────────────────────────────────────────────────
    def to_dict(self) -> dict[str, Any]:
        """得到只含 JSON 类型的字典；`from_dict` 能原样读回。"""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.rope_scaling is not None:
            values["rope_scaling"] = self.rope_scaling.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the configuration") -> GPTConfig:
        """由字典建立配置；where 写进错误信息，让人知道去改哪个文件。

        错误：不认识的键 → ValueError，给出最接近的字段名；缺少必需的键 → 列出它们
        """
        names = [field.name for field in dataclasses.fields(cls)]
        # ① 多出来的键多半是拼错了：静静忽略，等于用默认值训练了一夜
        for key in values:
            if key not in names:
                raise ValueError(unknown_key_message(key, names, where))
        # ② 没有默认值的五个大小必须给全
        required = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.name not in values
        ]
        if required:
            raise ValueError(f"{where} lacks {', '.join(required)}")
        # ③ 嵌套的一层：RoPE 的缩放自己也会检查
        arguments = dict(values)
        if isinstance(arguments.get("rope_scaling"), Mapping):
            arguments["rope_scaling"] = RopeScaling.from_dict(arguments["rope_scaling"])
        return cls(**arguments)

    def to_json(self) -> str:
        """得到 JSON 文本，就是模型目录里 config.json 的内容。"""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    @classmethod
    def from_json(cls, text: str) -> GPTConfig:
        """由 JSON 文本建立配置；不是对象、键不认识、值越界都是 ValueError。"""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"the configuration is not valid JSON: {error.msg} at line {error.lineno}"
            ) from None
        if not isinstance(values, dict):
            raise ValueError(
                f"the configuration must be a JSON object, got {type(values).__name__}"
            )
        return cls.from_dict(values)

    def replace(self, **changes: Any) -> GPTConfig:
        """复制一份并改动几个字段；写错的字段名会得到最接近的提示。

        新的一份从头检查：改了 dim 却除不尽 n_heads，当场就会知道
        """
        return self.from_dict({**self.to_dict(), **changes}, where="GPTConfig.replace")


def _gpt2(n_layers: int, dim: int, n_heads: int) -> GPTConfig:
    """GPT-2 家族只有这三个数不同；其余就是 GPTConfig 的默认值。"""
    return GPTConfig(
        vocab_size=50257, max_seq_len=1024, dim=dim, n_layers=n_layers, n_heads=n_heads
    )


def _modern(classic: GPTConfig) -> GPTConfig:
    """同样大小，换上今天公认训练得更好的零件；没有偏置，位置写进注意力。"""
    return classic.replace(
        norm="rmsnorm",  # 少减一次均值
        qk_norm=True,  # 学习率可以更大而不发散
        position="rope",  # 只看相对距离，还省下位置表的参数
        activation="relu2",  # 与 SwiGLU 相当，却不多一个矩阵
        qkv_bias=False,  # 归一化之后偏置几乎不起作用
        proj_bias=False,
    )


# 上下文也短一些：注意力的计算随长度平方增长，几分钟的训练用不上更长的。
# 小模型的词表也小：gpt-micro 若用 GPT-2 的词表，八成参数都会花在词向量上。
_MICRO = _gpt2(4, 128, 4).replace(vocab_size=2048, max_seq_len=256)
_MINI = _gpt2(6, 384, 6).replace(vocab_size=4096, max_seq_len=256)
_SMALL = _gpt2(8, 512, 8).replace(max_seq_len=512)

PRESETS: dict[str, GPTConfig] = {
    # 三个学习用的小号：块的参数约 0.8M、10.6M、25M
    "gpt-micro": _MICRO,
    "gpt-mini": _MINI,
    "gpt-small": _SMALL,
    # GPT-2 的四个型号，与公开的权重形状相同
    "gpt2": _gpt2(12, 768, 12),  # 124M
    "gpt2-medium": _gpt2(24, 1024, 16),  # 355M
    "gpt2-large": _gpt2(36, 1280, 20),  # 774M
    "gpt2-xl": _gpt2(48, 1600, 25),  # 1.56B
    # 与前三个一一对照
    "modern-micro": _modern(_MICRO),
    "modern-mini": _modern(_MINI),
    "modern-small": _modern(_SMALL),
}

PRESET_PURPOSES: dict[str, str] = {
    "gpt-micro": "几分钟看到整条路：笔记本 CPU 即可",
    "gpt-mini": "小语料上认真训练：CPU 一夜，GPU 几分钟",
    "gpt-small": "真实分词器的第一个模型：一块消费级 GPU",
    "gpt2": "复现 GPT-2，载入公开权重",
    "gpt2-medium": "载入公开权重，练习 LoRA",
    "gpt2-large": "载入公开权重，练习量化",
    "gpt2-xl": "GPT-2 的最大号：看懂规模的代价",
    "modern-micro": "同 gpt-micro，换上今天的零件，对照着学",
    "modern-mini": "同 gpt-mini，换上今天的零件",
    "modern-small": "同 gpt-small，换上今天的零件",
}


def preset(name: str, **changes: Any) -> GPTConfig:
    """按名字取一份预设，可顺手改几个字段：preset("gpt-micro", vocab_size=65)。

    错误：没有这个名字 → ValueError，列出全部并给出最接近的
    """
    check_choice("preset", name, PRESETS)
    return PRESETS[name].replace(**changes)


def demo() -> None:
    """打印预设的总表，并核对正文里的数字。

    表里每个参数个数都由公式算出，测试再与 meta 设备上真正建出的模型核对
    """
    from gpt_model.sizes import count_parameters, preset_table  # 公式在那一课，它又要读本课

    print(preset_table())
    gpt2 = count_parameters(PRESETS["gpt2"])
    assert gpt2.total == 124_439_808
    assert 12 * 12 * 768**2 == 84_934_656
    print("gpt2 的参数从哪来：")
    for part, number in gpt2.by_part().items():
        print(f"  {part:<22}{number:>14,}  {number / gpt2.total:6.1%}")
    print(f"  {'合计':<20}{gpt2.total:>14,}   论文表 2 写作 117M，作者后来更正为 124M\n")

    print("写错了会怎样：")
    for changes in ({"n_head": 4}, {"n_heads": 5}, {"dropout": float("nan")}, {"n_layers": True}):
        try:
            preset("gpt-micro", **changes)
        except ValueError as error:
            print(f"  {changes} → {error}"[:160])


if __name__ == "__main__":
    run_demo(demo)
