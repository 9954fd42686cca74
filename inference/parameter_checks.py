r"""哪些采样参数没有意义？在写第一个词之前就说清楚，而不是写完才发现没起作用。

坏参数有三种，一种比一种隐蔽：

    越界        top_p = 1.5             数学上没有定义
    自相矛盾    温度 0 却要 3 份        贪心每次都一样，三份只是重复
    对不上模型  束宽大于词表            第一步就凑不够这么多条路

越界的尺子，逐个写出来（∞ 与 NaN 一律不收，偏置的 −∞ 除外）：

$$\tau \ge 0,\quad k \ge 0,\quad 0 < p \le 1,\quad 0 \le m \le 1,\quad \theta > 0$$

为什么连「不起作用」也要报错？用户写了 top_k=40 又写了 num_beams=4，一定以为两样都在起作用；
悄悄忽略其中一样，他会在错误的结论上花掉一个下午。

改哪里：SamplingParams 加了字段 → 在 check_ranges 里加一行尺子；
       新策略与旧策略互斥 → check_combinations；要看词表才知道的 → check_vocabulary。
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from foundation.checks import check_bool, check_float, check_int
from foundation.demonstration import run_demo

if TYPE_CHECKING:
    from inference.sampling import SamplingParams

__all__ = ["check_parameters", "check_vocabulary"]


def check_parameters(params: SamplingParams) -> None:
    """三类检查的前两类；顺手把可变的容器换成不可变的，免得建好之后又被改掉。

    错误：ValueError，写明字段、给的值、允许的范围
    """
    check_ranges(params)
    # frozen 只挡住给字段赋值，挡不住别人改同一个字典；复制一份并锁上
    object.__setattr__(params, "stop", checked_stop(params.stop))
    object.__setattr__(params, "logit_bias", checked_bias(params.logit_bias))
    check_combinations(params)


def check_ranges(params: SamplingParams) -> None:
    """每个数单独看：类型对不对，在不在范围里。"""
    check_int("max_new_tokens", params.max_new_tokens, 0)  # 0 合法：只是什么也不写
    check_int("num_beams", params.num_beams, 1)
    check_int("num_return", params.num_return, 1)
    check_bool("logprobs", params.logprobs)
    check_int("top_logprobs", params.top_logprobs, 0)
    if params.seed is not None:
        check_int("seed", params.seed)  # 负的也行：反正要先搅匀
    # 分布的形状
    check_float("temperature", params.temperature, 0.0)
    check_int("top_k", params.top_k, 0)
    check_float("top_p", params.top_p, exclusive_minimum=0.0, maximum=1.0)
    check_float("min_p", params.min_p, 0.0, 1.0)
    # 惩罚可正可负，负的就是鼓励；只有乘除的那个必须是正数
    check_float("repetition_penalty", params.repetition_penalty, exclusive_minimum=0.0)
    check_float("presence_penalty", params.presence_penalty)
    check_float("frequency_penalty", params.frequency_penalty)
    check_float("length_penalty", params.length_penalty)


def checked_stop(stop: Any) -> tuple[str, ...]:
    """停止串：一组不空的文本。空串在任何文本的开头都「出现」，等于一个字也不写。"""
    # 一个 str 也能逐个字符地遍历：stop="END" 会悄悄变成遇到 E、N、D 都停
    if isinstance(stop, str):
        raise ValueError(f"stop must be a list of texts, got one text; write stop=({stop!r},)")
    found = tuple(stop)
    for index, text in enumerate(found):
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop[{index}] must be a text of at least 1 character, got {text!r}")
    return found


def checked_bias(bias: Mapping[int, float] | None) -> Mapping[int, float] | None:
    """偏置：编号 → 有限的数，或 −∞（禁用）。+∞ 不收：两个 +∞ 之间没法比。"""
    if bias is None:
        return None
    found = {}
    for token, value in bias.items():
        number = check_int("each token id in logit_bias", token, 0)
        is_ban = isinstance(value, float) and value == -math.inf
        found[number] = value if is_ban else check_float(f"logit_bias[{number}]", value)
    return MappingProxyType(found)


def check_combinations(params: SamplingParams) -> None:
    """各自合法、合在一起没有意义的：说出是哪两个在打架。"""
    if params.num_beams > 1:
        # 束搜索不抽样；温度有默认值，无从知道是不是用户给的，所以不管它
        ignored = {"top_k": params.top_k, "min_p": params.min_p}
        if params.top_p < 1.0:
            ignored["top_p"] = params.top_p
        for name, value in ignored.items():
            if value:
                raise ValueError(
                    f"{name}={value} has no effect with num_beams={params.num_beams}: beam search "
                    "draws nothing; drop one of them"
                )
        if params.num_return > params.num_beams:
            raise ValueError(
                f"num_return must be <= num_beams ({params.num_beams}), got {params.num_return}"
            )
    elif params.is_greedy and params.num_return > 1:
        raise ValueError(
            f"temperature {params.temperature:g} always gives the same text: num_return must be 1, "
            f"got {params.num_return}; raise the temperature or use num_beams"
        )
    if params.top_logprobs and not params.logprobs:
        raise ValueError(f"top_logprobs={params.top_logprobs} needs logprobs=True")


def check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """要知道词表才能查的：束宽、候选数、偏置的编号。"""
    check_int("num_beams", params.num_beams, 1, vocab_size)
    check_int("top_logprobs", params.top_logprobs, 0, vocab_size)
    for token in params.logit_bias or ():
        check_int("each token id in logit_bias", token, 0, vocab_size - 1)


def demo() -> None:
    """把每一种坏参数试一遍，读一读它们的错误信息。"""
    from inference.sampling import SamplingParams  # 它要用本课，所以到演示时才取

    bad: list[dict[str, Any]] = [
        {"temperature": math.nan},
        {"temperature": -1},
        {"top_p": 0},
        {"top_k": -3},
        {"max_new_tokens": 2.5},
        {"stop": ("END", "")},
        {"stop": "END"},
        {"logit_bias": {7: math.inf}},
        {"num_beams": 4, "top_k": 40},
        {"temperature": 0, "num_return": 3},
    ]
    for given in bad:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        try:
            SamplingParams(**given)
        except ValueError as error:
            print(f"{shown}\n    {error}")
        else:
            raise AssertionError(f"{shown} was accepted")
    # 只有看到词表才知道的
    try:
        check_vocabulary(SamplingParams(num_beams=65), vocab_size=50)
    except ValueError as error:
        print(f"num_beams=65，词表 50\n    {error}")
    else:
        raise AssertionError("more beams than tokens were accepted")


if __name__ == "__main__":
    run_demo(demo)
