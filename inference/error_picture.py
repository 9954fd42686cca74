r"""量化伤了哪里？——把每一层的误差画出来：哪一种层最伤，哪一块最伤，误差怎样攒起来。

两种误差，两种画法：

    一层自己的    给它真的输入，输出差几成          √(tr δHδᵀ / tr WHWᵀ)，见 calibration.py
    攒起来的      走到第 i 块之后，残差流差几成     ‖x_i − x̂_i‖ / ‖x_i‖

$$x_{i+1} = x_i + f_i(x_i) \;\Rightarrow\; \text{每块只添一笔，误差也是一笔一笔地添}$$

    一层自己的                                  攒起来的
    │▇                    每种颜色一种层         │            ╱ rtn
    │▇▇ ▇                 （q、k、v、out、        │        ╱ ╱
    │▇▇▇▇▇▇ ▇▇▇▇▇▇ …       up、gate、down）       │    ╱ ╱  ╱ gptq
    └──块 0───块 1───                            └─0──1──2──3─ 块

怎样读：
    一种层在每一块都高      它的输入有几维特别大，或者相关；看过输入的办法帮得上
    只有一块高              那一块可以跳过（--skip），或者组取小一些
    攒起来的一路直线        没有哪一块特别坏；跳起来的那一块，就是该细看的

论文：Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339，图 3：误差集中在少数几维
改哪里：多画一种误差 → `draw_errors` 加一格；换颜色的次序 → KINDS。
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundation.demonstration import new_figure, run_demo, save_figure
from gpt_model.config import preset
from gpt_model.model import GPT
from inference.calibration import calibration_windows
from inference.quantization import quantize, quantized_layers

__all__ = ["draw_errors", "errors_by_layer", "residual_errors"]

# 块里的先后；颜色按它分
KINDS = ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "gate_proj", "down_proj")


def errors_by_layer(model: nn.Module) -> dict[str, float]:
    """层的全名 → 校准时量到的输出误差。

    错误：没有校准过 → ValueError：直接取整的不知道输入，也就不知道输出差多少
    """
    # 块以外的（lm_head）没有校准过，不在其中
    layers = quantized_layers(model)
    errors = {name: m.output_error for name, m in layers.items() if m.output_error is not None}
    if not errors:
        raise ValueError("no layer knows its error: quantize the model with calibration tokens")
    return errors


@torch.no_grad()
def residual_errors(reference: GPT, other: GPT, ids: Tensor, batch_size: int = 8) -> list[float]:
    """走完每一块之后，残差流差几成；两个模型看同样的词元。

    形状：ids (n, T) → 长为 n_layers 的列表
    公式：√(Σ‖x_i − x̂_i‖² / Σ‖x_i‖²)，对全部词元求和
    """
    # 分子与分母分别加总，最后才除：各批的大小可以不同
    wrong, whole = [0.0] * len(reference.blocks), [0.0] * len(reference.blocks)
    # 一批一批地比：不必同时留着全部的残差流
    for batch in torch.split(ids, batch_size):
        # 两个模型各走一遍，逐块配对
        pairs = zip(block_outputs(reference, batch), block_outputs(other, batch), strict=True)
        for i, (x, y) in enumerate(pairs):
            # 半精度的相减之前先变宽
            wrong[i] += float((x.float() - y.float()).square().sum())
            whole[i] += float(x.float().square().sum())
    return [(a / b) ** 0.5 if b > 0 else 0.0 for a, b in zip(wrong, whole, strict=True)]


def block_outputs(model: GPT, ids: Tensor) -> list[Tensor]:
    """每一块的输出 (B, T, D)。"""
    # 按块的先后追加
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        """每走完一块叫一次。"""
        kept.append(output)

    handles = [block.register_forward_hook(keep) for block in model.blocks]
    try:
        model(ids.to(model.device), last_only=True)
    finally:
        # 钩子一定要摘：留着的话，以后每次前向都往这里存
        for handle in handles:
            handle.remove()
    return kept


def draw_errors(
    layers: Mapping[str, Mapping[str, float]],  # 标题 → {层的全名: 误差}
    path: Path,
    residual: Mapping[str, Sequence[float]] | None = None,  # 标题 → 各块之后的误差
) -> None:
    """画成一排：每个标题一格（各层的误差），最后一格是攒起来的（给了才画）。

    各格的纵轴相同，一眼比得出高低
    错误：文件名的结尾不是图片的 → ValueError
    """
    count = len(layers) + (residual is not None)
    # 一格也没有的图没有意义，所以 layers 不会是空的
    figure, axes = new_figure(1, count, size=(1.5 + 4.2 * count, 4.2))
    panels = list(axes) if count > 1 else [axes]
    # 最高的一根，定下各格共用的纵轴
    highest = max(max(errors.values()) for errors in layers.values())
    for number, (panel, (title, errors)) in enumerate(zip(panels, layers.items(), strict=False)):
        draw_bars(panel, errors)
        # 上面留出图例的地方；各格一样高，才比得出
        panel.set(title=title, xlabel="block", ylim=(0, 130 * highest))
        # 颜色说一次就够
        if number == 0:
            panel.set_ylabel("relative error of the outputs, %")
            panel.legend(fontsize=8, ncols=4, loc="upper center")
    if residual is not None:
        for title, values in residual.items():
            panels[-1].plot(range(len(values)), [100 * v for v in values], "o-", label=title)
        panels[-1].set(title="residual stream after each block", xlabel="block")
        panels[-1].set_ylabel("relative error, %")
        # 从零画起：差一倍就看着高一倍
        panels[-1].set_ylim(bottom=0)
        panels[-1].locator_params(axis="x", integer=True)
        panels[-1].legend(fontsize=8)
    save_figure(figure, path)


def draw_bars(panel: Any, errors: Mapping[str, float]) -> None:
    """一格：横轴是块，每种层一根柱子。

    名字不像 blocks.<号>.….<种类> 的（例如 lm_head）不画
    """
    # ① 拆名字：blocks.3.attention.q_proj → 3，q_proj
    places = {name: name.split(".") for name in errors}
    inside = {name: parts for name, parts in places.items() if parts[0] == "blocks"}
    kinds = [kind for kind in KINDS if any(parts[-1] == kind for parts in inside.values())]
    width = 0.85 / max(1, len(kinds))
    # ② 一种一种地画，颜色才各是各的
    for offset, kind in enumerate(kinds):
        # 这一种在各块里的误差
        chosen = {int(p[1]): errors[name] for name, p in inside.items() if p[-1] == kind}
        # 柱子的中点：几种围着整数的块号排开
        middle = [block + (offset - (len(kinds) - 1) / 2) * width for block in chosen]
        panel.bar(middle, [100 * v for v in chosen.values()], width, label=kind)
    # 块号是整数
    panel.locator_params(axis="x", integer=True)


def three_methods() -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """同一个小模型，三种办法：各层的误差，攒起来的误差。

    没有训练过，只把归一化的 γ 弄得悬殊，输入里就有了特别大的几维
    """
    import copy

    torch.manual_seed(0)
    # 三块：看得出误差怎样一块块地添
    model = GPT(preset("gpt-micro", vocab_size=65, dim=64, n_layers=3, n_heads=2)).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("blocks") and "norm.weight" in name:
            parameter.data.copy_(torch.exp(torch.randn(64)))
    ids = calibration_windows(torch.randint(65, (4000,)), 16, 64)
    # 标题 → 一种办法的两样
    layers, residual = {}, {}
    # 三种看的是同一份词元
    for method in ("rtn", "gptq", "awq"):
        # 校准与比较用同样的词元：这里只看画法
        other = quantize(copy.deepcopy(model), method=method, calibration=ids)
        assert isinstance(other, GPT)
        layers[method] = errors_by_layer(other)
        residual[method] = residual_errors(model, other, ids)
    return layers, residual


def demo() -> None:
    """用数字打印同样的两张图；真的图：--plot FILE。"""
    # 与 plot 画的是同样的数
    layers, residual = three_methods()
    print("一层自己的误差，各块平均（%）")
    names = [kind for kind in KINDS if any(n.endswith(kind) for n in layers["rtn"])]
    print("        " + "".join(f"{name:>10}" for name in names))
    for method, errors in layers.items():
        # 一种层在各块里的平均；
        # 三块，所以除以三
        means = [sum(v for n, v in errors.items() if n.endswith(kind)) / 3 * 100 for kind in names]
        print(f"   {method:<5}" + "".join(f"{mean:>10.2f}" for mean in means))
    # 一块一块地添上去
    print("攒起来的误差，走完每一块之后（%）")
    for method, values in residual.items():
        print(f"   {method:<5}" + "".join(f"{100 * value:>10.2f}" for value in values))
    # 看过输入的两种，
    # 走到最后都差得少
    assert residual["gptq"][-1] < residual["rtn"][-1]
    assert residual["awq"][-1] < residual["rtn"][-1]


def plot(path: Path) -> None:
    """三种办法并排，最后一格是攒起来的。

    用的时候多半是自己的模型：fromzero quantize --plot FILE
    """
    layers, residual = three_methods()
    draw_errors(layers, path, residual)


if __name__ == "__main__":
    run_demo(demo, plot)
