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

初始化：权重取 N(0, 0.02²)；每个块往残差上加两次，L 个块加 2L 次，方差会涨到 2L 倍，
所以写回残差的两个投影再除以 √(2L)，让深模型一开始和浅模型一样平稳。

论文：GPT-2, Radford et al. 2019；weight tying, arXiv:1608.05859；Pre-LN, arXiv:2002.04745。

改哪里：换零件 → gpt_model/config.py 的字段；块的顺序 → transformer_basics/layers.py；
       损失 → 本文件的 language_modeling_loss；名字与形状对应 Hugging Face → huggingface.py。
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
from gpt_model.config import GPTConfig, preset
from transformer_basics.attention import CausalSelfAttention, attention_mask
from transformer_basics.embeddings import LearnedPositions, SinusoidalPositions, TokenEmbedding
from transformer_basics.kv_cache import GrowingCache, KVCache, ModelCache, StaticCache
from transformer_basics.layers import NORMS, FeedForward, LayerNorm, TransformerBlock
from transformer_basics.rotary import RotaryEmbedding

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = ["GPT", "GPTOutput", "language_modeling_loss"]


class GPTOutput(NamedTuple):
    """一次前向的结果：logits (B, T, V)；给了 targets 才有 loss。"""

    logits: Tensor
    loss: Tensor | None


def language_modeling_loss(
    logits: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    r"""交叉熵（cross-entropy）：正确的下一个词得到的概率越高，损失越小。

    公式：loss_t = −log softmax(logits_t)[target_t]；target = ignore_index 的位置不算
    形状：logits (B, T, V)，targets (B, T) → 标量；reduction="none" → (B, T)
    类型：一律在 float32 中计算，bf16 的 logits 直接求 log-softmax 误差太大
    """
    # 均匀瞎猜的损失是 log V：初始损失远大于它，多半是初始化错了
    return F.cross_entropy(
        logits.flatten(0, 1).float(),  # (B·T, V)
        targets.flatten(),  # (B·T,)
        ignore_index=ignore_index,
        reduction=reduction,
    ).view(targets.shape if reduction == "none" else ())


class GPT(nn.Module):
    """一个类，所有家族：差别全在 GPTConfig 的字段里。

    形状：ids (B, T) → logits (B, T, V)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        # ① 词与位置：RoPE 把位置写进注意力，这里就没有位置向量
        self.token_embedding = TokenEmbedding(config.vocab_size, config.dim)
        self.position_embedding: nn.Module | None = None
        if config.position == "learned":
            self.position_embedding = LearnedPositions(config.max_seq_len, config.dim)
        elif config.position == "sinusoidal":
            self.position_embedding = SinusoidalPositions(config.max_seq_len, config.dim)
        # ② L 个块共用一张旋转表：角度只取决于位置，与层无关
        self.rotary: RotaryEmbedding | None = None
        if config.position == "rope":
            self.rotary = RotaryEmbedding(
                config.head_size,
                theta=config.rope_theta,
                max_seq_len=config.max_seq_len,
                scaling=config.rope_scaling,
            )
        self.blocks = nn.ModuleList(self._build_block() for _ in range(config.n_layers))
        # ③ Post-LN 的每个块已经以归一化收尾，最后不再需要一次
        self.final_norm = self._build_norm() if config.norm_position == "pre" else nn.Identity()
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        self.initialize_weights()

    def _build_norm(self) -> nn.Module:
        """按配置取一种归一化；只有 LayerNorm 才有偏置。"""
        config = self.config
        if config.norm == "layernorm":
            return LayerNorm(config.dim, eps=config.norm_eps, bias=config.proj_bias)
        return NORMS[config.norm](config.dim, eps=config.norm_eps)

    def _build_block(self) -> TransformerBlock:
        """一个块 = 注意力 + 前馈 + 两个归一化。"""
        config = self.config
        attention = CausalSelfAttention(
            config.dim,
            config.n_heads,
            n_kv_heads=config.kv_heads,
            head_dim=config.head_size,
            qkv_bias=config.qkv_bias,
            proj_bias=config.proj_bias,
            rotary=self.rotary,
            qk_norm=config.qk_norm,
            norm_eps=config.norm_eps,
            sliding_window=config.sliding_window,
            dropout=config.dropout,
        )
        feed_forward = FeedForward(
            config.dim,
            config.ffn_size,
            activation=config.activation,
            gated=config.gated_ffn,
            bias=config.proj_bias,
            dropout=config.dropout,
        )
        return TransformerBlock(
            attention,
            feed_forward,
            self._build_norm(),
            self._build_norm(),
            norm_position=config.norm_position,
            dropout=config.dropout,
        )

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """按 GPT-2 的方法初始化；归一化的权重已经是 1，不动它。

        公式：W ~ N(0, σ²)，偏置 0；写回残差的 out_proj 与 down_proj 用 σ / √(2L)
        """
        std = self.config.init_std
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                to_residual = name.endswith(("out_proj", "down_proj"))
                scale = math.sqrt(2 * self.config.n_layers) if to_residual else 1.0
                nn.init.normal_(module.weight, std=std / scale)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (TokenEmbedding, LearnedPositions)):
                nn.init.normal_(module.weight, std=std)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: ModelCache | None = None,
        last_only: bool = False,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> GPTOutput:
        r"""给每个位置的下一个词打分；给了 targets 就顺便算损失。

        形状：ids (B, T) int64 → logits (B, T, V)；last_only 时 (B, 1, V)
              attention_mask (B, S) 真 = 真实词元，S = 已缓存长度 + T；document_ids (B, T)
        类型：logits 与权重同 dtype；损失 float32
        错误：编号 ≥ V、S 超出 max_seq_len → ValueError，写明两个数
        """
        start = cache.length if cache is not None else 0  # 先记下：各层 append 之后它就变了
        self._check(ids, start, document_ids)
        # ① 位置：None 表示接着缓存往后数；左填充的批里，各行按自己的真实词元数
        if positions is None and attention_mask is not None:
            positions = self._real_positions(attention_mask)[:, -ids.shape[1] :]  # (B, T)
        mask = self._mask(ids.shape[1], start, attention_mask, document_ids)  # (B, 1, T, S) | None
        # ② 查表：词向量加位置向量
        x = self.token_embedding(ids)  # (B, T, D)
        if self.position_embedding is not None:
            if positions is None:
                absolute = torch.arange(start, start + ids.shape[1], device=ids.device)  # (T,)
            else:
                absolute = positions
            x = x + self.position_embedding(absolute)
        if self.training and self.config.dropout > 0:
            x = F.dropout(x, self.config.dropout)
        # ③ 一层层往残差里加东西
        for layer, block in enumerate(self.blocks):
            x = block(
                x, positions=positions, mask=mask, cache=cache[layer] if cache is not None else None
            )
        # ④ 归一化，再与每个词的向量做内积；生成时只需要最后一个位置，省去其余的大乘法
        if last_only:
            x = x[:, -1:]
        logits = self.lm_head(self.final_norm(x))  # (B, T, V)
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        loss = None
        if targets is not None:
            if last_only:
                raise ValueError("targets need the logits of every position; drop last_only")
            loss = language_modeling_loss(
                logits, targets, ignore_index=ignore_index, reduction=reduction
            )
        return GPTOutput(logits, loss)

    def _check(self, ids: Tensor, start: int, document_ids: Tensor | None) -> None:
        """在查表之前拦住坏输入：越界的编号在 GPU 上只会得到一句看不懂的断言。"""
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids must have shape (B, T) with T >= 1, got {tuple(ids.shape)}")
        length = start + ids.shape[1]
        if length > self.config.max_seq_len:
            raise ValueError(
                f"{length} tokens (cached {start} + new {ids.shape[1]}) do not fit into "
                f"max_seq_len {self.config.max_seq_len}"
            )
        if document_ids is not None and start:
            raise ValueError(f"document_ids cannot be used with a cache (cached length {start})")
        # 只在 CPU 上检查：在 GPU 上取最大值会迫使 CPU 等待
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in torch.aminmax(ids))
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"token id {low if low < 0 else high} is outside the vocabulary: "
                    f"ids must be >= 0 and < {self.config.vocab_size}"
                )

    @staticmethod
    def _real_positions(real: Tensor) -> Tensor:
        """填充不占位置：左填充的句子也从 0 数起。(B, S) 布尔 → (B, S) 编号。"""
        return (real.long().cumsum(dim=1) - 1).clamp(min=0)

    def _mask(
        self, n_new: int, start: int, real: Tensor | None, document_ids: Tensor | None
    ) -> Tensor | None:
        """没有填充、也没有文档边界时返回 None，注意力自己走最快的因果路径。"""
        if real is None and document_ids is None:
            return None
        if real is not None and real.shape[1] != start + n_new:
            raise ValueError(
                f"attention_mask must cover cached {start} + new {n_new} tokens, "
                f"got length {real.shape[1]}"
            )
        given = real if real is not None else document_ids
        assert given is not None
        return attention_mask(
            n_new,
            start + n_new,
            key_padding=real,
            document_ids=document_ids,
            window=self.config.sliding_window,
            device=given.device,
        )

    # ── 看与用 ──────────────────────────────────────────────────────────
    @property
    def device(self) -> torch.device:
        """权重所在的设备。"""
        return self.token_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """权重的类型。"""
        return self.token_embedding.weight.dtype

    def make_cache(
        self, batch_size: int, *, capacity: int | None = None, kind: str = "static"
    ) -> ModelCache:
        """为一批生成准备 KV 缓存：static 一次占好，growing 用多少长多少（便于读懂）。"""
        config = self.config
        check_choice("kind", kind, ("static", "growing"))
        layers: list[KVCache] = []
        for _ in range(config.n_layers):
            if kind == "growing":
                layers.append(GrowingCache())
                continue
            layers.append(
                StaticCache(
                    batch_size,
                    config.kv_heads,
                    capacity or config.max_seq_len,
                    config.head_size,
                    dtype=self.dtype,
                    device=self.device,
                )
            )
        return ModelCache(layers)

    def num_parameters(self, *, trainable_only: bool = False) -> int:
        """参数个数；共用的矩阵只数一次。"""
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if parameter.requires_grad or not trainable_only
        )

    def use_implementation(self, name: str) -> None:
        """全模型切换 "fast"（融合的算子）与 "lesson"（写出来的公式）；结果应当相同。"""
        check_choice("implementation", name, ("fast", "lesson"))
        for module in self.modules():
            if hasattr(module, "implementation"):
                setattr(module, "implementation", name)  # noqa: B010 - 类型检查看不见这个属性

    @classmethod
    def on_meta(cls, config: GPTConfig) -> GPT:
        """只有形状、不占内存的模型：数参数、载入权重前先搭骨架。"""
        with torch.device("meta"):
            return cls(config)

    def save(self, directory: Path | str, tokenizer: Tokenizer | None = None) -> None:
        """存成模型目录（config.json、model.safetensors、tokenizer.json、清单），要么完整要么没有。"""
        from gpt_model.model_directory import save_model

        save_model(self, directory, tokenizer)

    @classmethod
    def load(
        cls,
        directory: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> GPT:
        """读回模型目录；任何损坏都会写明是哪个文件。"""
        from gpt_model.model_directory import load_model

        return load_model(directory, device, dtype)


def demo() -> None:
    """拼一个 gpt-micro，看形状、初始损失、因果性、两条路径与 KV 缓存。"""
    config = preset("gpt-micro", vocab_size=65, max_seq_len=64)
    model = GPT(config).eval()
    ids = torch.randint(65, (2, 16))
    logits, loss = model(ids[:, :-1], ids[:, 1:])
    assert loss is not None
    print(f"gpt-micro：{model.num_parameters():,} 个参数")
    print(f"ids {tuple(ids[:, :-1].shape)} → logits {tuple(logits.shape)}")
    print(f"初始损失 {loss.item():.3f}，均匀瞎猜是 log 65 = {math.log(65):.3f}")
    assert abs(loss.item() - math.log(65)) < 0.1

    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 65
    difference = (model(ids).logits - model(changed).logits).abs().amax(dim=(0, 2))  # (T,)
    print("改动第 10 个词元，各位置输出的变化：")
    print("  " + " ".join(f"{value:.0e}" if value else "0" for value in difference.tolist()))
    assert difference[:10].max() == 0 < difference[10]  # 未来不泄漏，一个比特也不

    fast = model(ids).logits
    model.use_implementation("lesson")
    lesson = model(ids).logits
    model.use_implementation("fast")
    print(f"写出来的公式与融合算子相差 {(fast - lesson).abs().max():.1e}")
    assert torch.allclose(fast, lesson, atol=1e-5)

    cache = model.make_cache(2)
    with torch.no_grad():
        pieces = [model(piece, cache=cache).logits for piece in ids.split([7, 1, 8], dim=1)]
    gap = (torch.cat(pieces, dim=1) - fast).abs().max()
    print(f"分三段喂、用 KV 缓存，与一次算完相差 {gap:.1e}")
    assert gap < 1e-5

    targets = ids[:, 1:].clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    print("反复学同两句话（overfit one batch），损失：", end="")
    for step in range(31):
        loss = model.train()(ids[:, :-1], targets).loss
        assert loss is not None
        if step % 10 == 0:
            print(f" {loss.item():.3f}", end="")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("  ← 降不到 0 附近，就是哪里写错了")
    assert loss.item() < 0.2


if __name__ == "__main__":
    run_demo(demo)
