r"""怎样把积木拼成 GPT？词元 → 向量 → L 个 Transformer 块 → 每个词的分数。

    p(x₁ … x_T) = ∏_t p(x_t | x_<t)        语言模型：逐个预测下一个词元

    ids (B, T)
      │  词向量 + 位置                       x = E[ids] + P        (B, T, D)
      ▼
    ┌──────────── 块 × L ────────────┐
    │  x = x + Attention(Norm(x))    │      只许往回看（causal mask）
    │  x = x + FeedForward(Norm(x))  │      Pre-LN：残差通路畅通无阻
    └────────────────────────────────┘
      │  最后一次归一化
      ▼
    logits = x · Eᵀ  (B, T, V)              与词向量共用一个矩阵（weight tying）

    loss = −(1/n) Σ log softmax(logits_t)[target_t]，n 是有标签的位置数

「只有解码器」（decoder-only）：没有编码器，也没有交叉注意力；一个块看到的全是自己和前文。
因为第 t 个输出只依赖前 t 个输入，一次前向就同时得到 T 个预测，训练才这样快。

先一行一行看 forward：它就是上面这张图。其余都是「在坏输入变成看不懂的错误之前拦住它」
与「看和用」的小方法。初始化另有一课 initialization.py，损失另有一课 loss.py。

论文：GPT-2, Radford et al. 2019；weight tying, arXiv:1608.05859；Pre-LN, arXiv:2002.04745。

改哪里：换零件 → gpt_model/config.py 的字段；块的顺序 → transformer_basics/layers.py；
       损失 → loss.py；初始化 → initialization.py；与 Hugging Face 互换 → huggingface.py。
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_choice
from foundation.demonstration import run_demo
from gpt_model.building import build_block, build_norm, build_rotary
from gpt_model.caches import CacheSettings, build_cache
from gpt_model.chunked_loss import chunked_loss
from gpt_model.config import GPTConfig, preset
from gpt_model.initialization import initialize_weights
from gpt_model.inputs import check_inputs, real_positions, visibility
from gpt_model.loss import language_modeling_loss
from transformer_basics.attention import CausalSelfAttention
from transformer_basics.embeddings import LearnedPositions, SinusoidalPositions, TokenEmbedding
from transformer_basics.kv_cache import ModelCache
from transformer_basics.linear import Linear
from transformer_basics.previous_token import PreviousToken
from transformer_basics.quantized_linear import quantized_parts
from transformer_basics.recomputation import use_checkpointing

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = ["GPT", "GPTOutput"]


class GPTOutput(NamedTuple):
    """一次前向的结果；像元组一样拆开用：logits, loss = model(ids, targets)。"""

    logits: Tensor  # (B, T, V)，还不是概率：softmax 之后才是；need_logits=False 时是空的
    loss: Tensor | None  # 标量；没给 targets 就是 None


class GPT(nn.Module):
    """一个类，所有家族：差别全在 GPTConfig 的字段里。

    形状：ids (B, T) → logits (B, T, V)
    参数名：token_embedding、position_embedding、previous_token、
           blocks.i.{attention, feed_forward, attention_norm, ffn_norm}、final_norm、lm_head；
           存盘、LoRA 与名字表都靠它们
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        # ① 词与位置：RoPE 把位置写进注意力，这里就没有位置向量
        #    正弦位置没有参数；学出来的位置是一张 (T, D) 的表，比它长的句子就没法算
        self.token_embedding = TokenEmbedding(config.vocab_size, config.dim)
        self.position_embedding: nn.Module | None = None
        if config.position == "learned":
            self.position_embedding = LearnedPositions(config.max_seq_len, config.dim)
        elif config.position == "sinusoidal":
            self.position_embedding = SinusoidalPositions(config.max_seq_len, config.dim)
        #    「前一个词元是谁」也可以直接加在词向量上（token shift 与二元词嵌入）；
        #    两样都不要就是 None，与从前逐比特相同
        self.previous_token: PreviousToken | None = None
        if config.token_shift or config.bigram_rows is not None:
            self.previous_token = PreviousToken(
                config.vocab_size, config.dim, shift=config.token_shift, rows=config.bigram_rows
            )
        # ② L 个块共用一张旋转表：角度只取决于位置，与层无关
        self.rotary = build_rotary(config)  # 位置不是 rope 的就是 None
        self.blocks = nn.ModuleList(
            build_block(config, self.rotary) for _ in range(config.n_layers)
        )
        # ③ Post-LN 的每个块已经以归一化收尾，最后不再需要一次
        #    Pre-LN 的残差一路只加不减，不归一化就直接打分会太大
        self.final_norm = build_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.lm_head = Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            # 同一个 Parameter 挂在两处：梯度自动相加，小模型省下一大块参数
            self.lm_head.weight = self.token_embedding.weight
        # ④ 从一开始就平稳的权重；载入现成权重时会被整个换掉
        initialize_weights(self, config.init_std, config.n_layers, zero_residual=config.zero_init)

    def forward(
        self,
        ids: Tensor,  # (B, T)
        targets: Tensor | None = None,  # (B, T)，通常是 ids 左移一位
        *,
        positions: Tensor | None = None,  # (T,) 或 (B, T)；None 就从缓存末尾接着数
        attention_mask: Tensor | None = None,  # (B, S) 布尔，真 = 真实词元
        document_ids: Tensor | None = None,  # (B, T)，同号的词元才互相看得见
        cache: ModelCache | None = None,  # 以前词元的 K、V，用过之后会变长
        last_only: bool = False,  # 只要最后一个位置的分数（生成时）
        ignore_index: int = -100,
        reduction: str = "mean",
        need_logits: bool = True,  # 假：只要损失，不必有整张打分表（训练时）
    ) -> GPTOutput:
        r"""给每个位置的下一个词打分；给了 targets 就顺便算损失。

        公式：logits = Norm(Block_L(… Block_1(E[ids] + P) …)) · Eᵀ
        形状：ids (B, T) int64 → logits (B, T, V)，last_only 时 (B, 1, V)；S = 已缓存长度 + T
        类型：logits 与权重同 dtype（混合精度时由 autocast 决定）；损失 float32
        错误：编号 ≥ V、S 超出 max_seq_len、掩码长度不是 S → ValueError，写明两个数
        """
        # 滑动的缓存没有上限：位置由它自己定，见 sliding_cache.py
        start = cache.length if cache is not None else 0  # 先记下：各层 append 之后它就变了
        c = self.config
        # 坏输入在这里变成一句看得懂的话，见 inputs.py
        check_inputs(
            ids,
            start,
            vocab_size=c.vocab_size,
            max_seq_len=None if cache is not None and cache.reach is not None else c.max_seq_len,
            document_ids=document_ids,
        )
        # 缓存里有几个，决定了新来的从第几个数起
        # ① 位置：None 表示接着缓存往后数；左填充的批里，各行按自己的真实词元数
        if positions is None and attention_mask is not None:
            positions = real_positions(attention_mask, ids.shape[1])  # (B, T)
        mask = visibility(ids, cache, attention_mask, document_ids, c.sliding_window)
        # ② 查表：词向量加位置向量；RoPE 不在这里加，它在注意力里转动 q 与 k
        x = self._embed(ids, positions, start, cache, attention_mask, document_ids)  # (B, T, D)
        # ③ 一层层往残差里加东西；每层有自己的一份 K、V 缓存
        for layer, block in enumerate(self.blocks):
            layer_cache = cache[layer] if cache is not None else None
            x = block(x, positions=positions, mask=mask, cache=layer_cache)  # (B, T, D)
        # ④ 归一化，再与每个词的向量做内积；生成时只要最后一个位置，省去其余的大乘法
        if last_only:
            x = x[:, -1:]  # (B, 1, D)
        x = self.final_norm(x)
        #    只要损失时，V 个分用完就扔：一段一段算，见 chunked_loss.py
        #    lm_head 装了 LoRA 或量化过的，走下面的老路
        #    reduction="none" 要的是每个位置的损失，也走老路
        brief = not (need_logits or last_only) and reduction != "none"
        if targets is not None and brief and type(self.lm_head) is Linear:
            loss = self._loss_in_chunks(x, targets, ignore_index, reduction)
            return GPTOutput(x.new_empty(0), loss)
        logits = self.lm_head(x)  # (B, T, V)
        if c.logit_softcap is not None:
            # 平滑地限幅：分数再大也只趋近 ±cap，训练后期不会冲得太高
            logits = c.logit_softcap * torch.tanh(logits / c.logit_softcap)
        # ⑤ 损失：同一次前向里 T 道题一起判分
        #    标签由调用者左移好：这样打包、只算答案等做法都不必改模型
        if targets is None:
            return GPTOutput(logits, None)
        if last_only:
            raise ValueError("targets need the logits of every position; drop last_only")
        loss = language_modeling_loss(
            logits, targets, ignore_index=ignore_index, reduction=reduction
        )
        return GPTOutput(logits, loss)

    def _loss_in_chunks(
        self, x: Tensor, targets: Tensor, ignore_index: int, reduction: str
    ) -> Tensor:
        """与老路同一个损失，只是不产生整张 logits；x 是归一化之后的 (B, T, D)。"""
        weight, cap = self.lm_head.weight, self.config.logit_softcap
        total = chunked_loss(
            x.flatten(0, 1), weight, targets.flatten(), ignore_index=ignore_index, softcap=cap
        )
        return total if reduction == "sum" else total / (targets != ignore_index).sum()

    def _embed(
        self,
        ids: Tensor,
        positions: Tensor | None,  # 左填充的批里，各行不同
        start: int,  # 缓存里已有几个
        cache: ModelCache | None,  # 以下三样只给「前一个词元」用
        real: Tensor | None,  # (B, S) 真 = 不是填充
        document_ids: Tensor | None,  # (B, T)
    ) -> Tensor:
        """词向量，加上（如果有）前一个词元的与位置的，训练时再 dropout。

        公式：x_t = E[id_t] + w ⊙ E[id_{t−1}] + B[id_{t−1}, id_t] + P[t]，没有的项不加
        形状：ids (B, T) → (B, T, D)
        为什么在这里问前一个：只有编号才知道，进了残差流就分不清了；
        续写时它在缓存里，填充与别的文档不算，见 previous_token.py
        """
        x = self.token_embedding(ids)  # (B, T, D)
        # 混合精度时，冻结的词表可以只存 bf16；残差一路要加许多次，仍用 float32
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()
        if self.previous_token is not None:
            x = self.previous_token(x, ids, self.token_embedding, cache, real, document_ids)
        if self.position_embedding is not None:
            if positions is None:
                positions = torch.arange(start, start + ids.shape[1], device=ids.device)  # (T,)
            x = x + self.position_embedding(positions)  # (T, D) 广播到每一行
        # dropout 只在训练时：随机抹掉一些维，逼模型不依赖某一维
        if self.training and self.config.dropout > 0:
            x = F.dropout(x, self.config.dropout)
        return x  # type: ignore[no-any-return]

    # ── 看与用 ──────────────────────────────────────────────────────────
    @property
    def device(self) -> torch.device:
        """权重所在的设备；输入要放到同一处。"""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """权重的类型。"""
        return self.token_embedding.dtype

    def make_cache(
        self, batch_size: int, *, capacity: int | None = None, kind: CacheSettings | str = "static"
    ) -> ModelCache:
        """为一批生成准备 KV 缓存，每层一份，一起进退；有哪几种见 caches.py。

        static 一次占好、就地写入；growing 每次拼接，便于读懂；int8 存得粗；sliding 只留最近的
        形状：每层 K、V 各 (B, G, S, d)，S = capacity，缺省为 max_seq_len
        错误：kind 不认识、与模型不合 → ValueError
        """
        # 与权重同类型、同设备，免得每步转换
        sizes = {"capacity": capacity, "dtype": self.dtype, "device": self.device}
        return build_cache(self.config, kind, batch_size, **sizes)  # type: ignore[arg-type]

    def num_parameters(self, *, trainable_only: bool = False) -> int:
        """参数个数；共用的矩阵只数一次，量化成整数的也算（它们不训练）。"""
        # parameters() 已经去重；LoRA 训练时只有一小部分 requires_grad
        if trainable_only:
            return sum(p.numel() for p in self.parameters() if p.requires_grad)
        # 共用的词表在两处是同一个张量
        tables = {id(part.packed): part.n_weights() for part in quantized_parts(self).values()}
        return sum(p.numel() for p in self.parameters()) + sum(tables.values())

    def use_implementation(self, name: str) -> None:
        """全模型切换 "fast"（融合的算子）、"lesson"（写出来的公式）与 "flash"（分块的注意力）。

        几条路径签名相同、结果只差舍入：读懂慢的，用快的，再用慢的核对快的
        """
        check_choice("implementation", name, CausalSelfAttention.implementations)
        for module in self.modules():
            if hasattr(module, "implementation"):
                # "flash" 只有注意力才有，别的层照旧走快路
                known = name in getattr(module, "implementations", ("fast", "lesson"))
                setattr(module, "implementation", name if known else "fast")  # noqa: B010

    def use_checkpointing(self, kind: str) -> None:
        """训练时拿时间换内存："none" 不换，"selective" 少换，"block" 多换；见 recomputation.py。

        结果逐比特相同，只是反向时把扔掉的激活再算一遍
        """
        use_checkpointing(self, kind)

    @classmethod
    def on_meta(cls, config: GPTConfig) -> GPT:
        """只有形状、不占内存的模型：数参数、载入权重前先搭骨架，1.5B 也是一瞬间。"""
        with torch.device("meta"):
            return cls(config)

    def save(self, directory: Path | str, tokenizer: Tokenizer | None = None) -> None:
        """存成模型目录（配置、权重、分词器、清单），要么完整要么没有；见 model_directory.py。"""
        from gpt_model.model_directory import save_model  # 那一课要用本课，所以用时才取

        save_model(self, directory, tokenizer)

    @classmethod
    def load(
        cls,
        directory: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> GPT:
        """读回模型目录；任何损坏都会写明是哪个文件。dtype 为 None 时保持存下时的类型。"""
        from gpt_model.model_directory import load_model

        return load_model(directory, device, dtype)


def demo() -> None:
    """拼一个 gpt-micro，看形状、初始损失、因果性、两条路径与 KV 缓存。"""
    # ① 形状与初始损失：还没学过，应当和瞎猜差不多
    config = preset("gpt-micro", vocab_size=65, max_seq_len=64)
    model = GPT(config).eval()
    ids = torch.randint(65, (2, 16))
    logits, loss = model(ids[:, :-1], ids[:, 1:])
    assert loss is not None
    print(f"gpt-micro：{model.num_parameters():,} 个参数")
    print(f"ids {tuple(ids[:, :-1].shape)} → logits {tuple(logits.shape)}")
    # 权重很小，logits 都接近 0，softmax 几乎是均匀的
    print(f"初始损失 {loss.item():.3f}，均匀瞎猜是 log 65 = {math.log(65):.3f}")
    assert abs(loss.item() - math.log(65)) < 0.1

    # ② 因果：改动一个词元，它之前的输出不该有任何变化
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 65
    difference = (model(ids).logits - model(changed).logits).abs().amax(dim=(0, 2))  # (T,)
    print("改动第 10 个词元，各位置输出的变化：")
    print("  " + " ".join(f"{value:.0e}" if value else "0" for value in difference.tolist()))
    # 不是「很小」，而是恰好为 0：掩码之外没有任何通路
    assert difference[:10].max() == 0 < difference[10]  # 未来不泄漏，一个比特也不

    # ③ 快路径与写出来的公式
    fast = model(ids).logits
    model.use_implementation("lesson")
    lesson = model(ids).logits
    model.use_implementation("fast")
    print(f"写出来的公式与融合算子相差 {(fast - lesson).abs().max():.1e}")
    assert torch.allclose(fast, lesson, atol=1e-5)  # 两条路，一个答案

    # ④ 缓存：旧词元的 K、V 不会再变，分几段喂都一样
    cache = model.make_cache(2)
    with torch.no_grad():
        pieces = [model(piece, cache=cache).logits for piece in ids.split([7, 1, 8], dim=1)]
    gap = (torch.cat(pieces, dim=1) - fast).abs().max()
    print(f"分三段喂、用 KV 缓存，与一次算完相差 {gap:.1e}")
    assert gap < 1e-5  # 只差舍入：加法的次序不同

    # ⑤ 检验整条链路最快的办法：背下一个批
    print("反复学同两句话（overfit one batch），损失：", end="")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(31):
        loss = model.train()(ids[:, :-1], ids[:, 1:]).loss
        assert loss is not None
        if step % 10 == 0:
            print(f" {loss.item():.3f}", end="")
        optimizer.zero_grad()  # 忘了它，梯度会一直累加
        loss.backward()
        optimizer.step()
    # 两句话 30 步都背不下来，就不必去训练大语料
    print("  ← 降不到 0 附近，就是哪里写错了")
    assert loss.item() < 0.2


if __name__ == "__main__":
    run_demo(demo)
