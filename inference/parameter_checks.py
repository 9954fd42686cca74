r"""哪些采样参数没有意义？在写第一个词之前就说清楚，而不是写完才发现没起作用。

坏参数有三种，一种比一种隐蔽：

    越界        top_p = 1.5             数学上没有定义
    自相矛盾    温度 0 却要 3 份        贪心每次都一样，三份只是重复
    对不上模型  束宽大于词表            第一步就凑不够这么多条路

越界的尺子，逐个写出来（∞ 与 NaN 一律不收，偏置的 −∞ 除外）：

$$\tau \ge 0,\quad k \ge 0,\quad 0 < p \le 1,\quad 0 \le m \le 1,\quad \theta > 0$$

每个边界上的值，是收还是不收，都有理由：

    温度 0              收：就是贪心。1e-40 也收，与 0 没有差别
    top_k = 0           收：不用这一样；比词表大也收，等于不淘汰
    top_p = 0           不收：一个也不留，没法选。1e-300 收，只留最好的一个
    top_p = 1           收：全留
    min_p = 1           收：只留与第一名并列的
    重复惩罚 0          不收：要除以它
    max_new_tokens = 0  收：什么也不写，但提示会照样检查

错误信息有一个模子：哪个字段、必须怎样、给的是什么。读的人不必翻文档就知道改哪里。

为什么连「不起作用」也要报错？用户写了 top_k=40 又写了 num_beams=4，一定以为两样都在起作用；
悄悄忽略其中一样，他会在错误的结论上花掉一个下午。
只有温度例外：它总有一个值，无从知道是不是用户特意给的。

这些检查各有一条测试，连同错误信息里的数：信息写错了数，比没有信息更误导人。

改哪里：SamplingParams 加了字段 → 在 check_ranges 里加一行尺子；
       新策略与旧策略互斥 → check_combinations；要看词表才知道的 → check_vocabulary。
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foundation.checks import check_bool, check_float, check_int
from foundation.demonstration import run_demo

if TYPE_CHECKING:
    from inference.sampling import SamplingParams

__all__ = ["check_parameters", "check_vocabulary"]


def check_parameters(params: SamplingParams) -> None:
    """三类检查的前两类；顺手把列表与字典各抄一份，免得建好之后又被别人改掉。

    约定：只在 SamplingParams 建好时叫一次；它不可变，以后只剩词表一关要过
    错误：ValueError，写明字段、给的值、允许的范围
    """
    # 先逐个看，再看搭配：温度是 NaN 时，比较大小的结论没有意义
    check_ranges(params)
    # frozen 只挡住给字段赋值，挡不住别人改他手里的那个字典；所以各抄一份
    object.__setattr__(params, "stop", checked_stop(params.stop))
    object.__setattr__(params, "logit_bias", checked_bias(params.logit_bias))
    check_combinations(params)


def check_ranges(params: SamplingParams) -> None:
    """每个数单独看：类型对不对，在不在范围里。

    NaN 与谁比都是假，所以「小于下限就报错」这样的写法拦不住它；check_float 先查是不是有限数。
    True 在 Python 里也是整数 1，同样要单独拦下
    """
    check_int("max_new_tokens", params.max_new_tokens, 0)  # 0 合法：只是什么也不写
    check_int("num_beams", params.num_beams, 1)  # 上限是 V，现在还不知道
    check_int("num_return", params.num_return, 1)  # 一份也不要，就不该来问
    check_bool("logprobs", params.logprobs)  # "false" 这个词也算真，所以只认真假
    check_int("top_logprobs", params.top_logprobs, 0)
    # 种子没有范围：反正要先搅匀，负的、很大的都行；小数不行，多半是传错了参数
    if params.seed is not None:
        check_int("seed", params.seed)
    # 分布的形状。温度没有上限：再高也只是趋于均匀
    check_float("temperature", params.temperature, 0.0)
    check_int("top_k", params.top_k, 0)  # 个
    check_float("top_p", params.top_p, exclusive_minimum=0.0, maximum=1.0)
    check_float("min_p", params.min_p, 0.0, 1.0)  # 最好者的几分之几
    # 惩罚的大小不设上限，只要是有限数。
    # 惩罚可正可负，负的就是鼓励；只有乘除的那个必须是正数
    check_float("repetition_penalty", params.repetition_penalty, exclusive_minimum=0.0)
    check_float("presence_penalty", params.presence_penalty)
    check_float("frequency_penalty", params.frequency_penalty)
    check_float("length_penalty", params.length_penalty)  # 指数 α，负的就是偏爱短的


def checked_stop(stop: Any) -> tuple[str, ...]:
    """停止串：一组不空的文本。空串在任何文本的开头都「出现」，等于一个字也不写。"""
    # 一个 str 也能逐个字符地遍历：stop="END" 会悄悄变成遇到 E、N、D 都停
    if isinstance(stop, str):
        raise ValueError(f"stop must be a list of texts, got one text; write stop=({stop!r},)")
    # 次序不重要：谁先写完谁算数，见 stop_strings.py
    found = tuple(stop)
    for index, text in enumerate(found):
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop[{index}] must be a text of at least 1 character, got {text!r}")
    return found


def checked_bias(bias: Mapping[int, float] | None) -> dict[int, float] | None:
    """偏置：编号 → 有限的数，或 −∞（禁用）。+∞ 不收：两个 +∞ 之间没法比。"""
    if bias is None:
        return None
    found = {}
    # 编号的上限要看词表，见 check_vocabulary；这里先拦住负的、小数的、写成字符串的
    for token, value in bias.items():
        number = check_int("each token id in logit_bias", token, 0)
        # 有限数的尺子会拒绝 −∞，所以要先认出来；字符串 "-inf" 与 NaN 照样不收
        is_ban = isinstance(value, float) and value == -math.inf
        found[number] = value if is_ban else check_float(f"logit_bias[{number}]", value)
    return found


def check_combinations(params: SamplingParams) -> None:
    """各自合法、合在一起没有意义的：说出是哪两个在打架。

    束搜索 + 淘汰          不抽样，淘汰就没有对象
    要的份数 > 束宽        名单里至多有束宽那么多
    贪心 + 好几份          每份都一样
    候选数而没要对数概率   没有地方记
    """
    n_beams, n_return = params.num_beams, params.num_return
    # ① 束搜索：逐个看三种淘汰，哪一种真的开着
    switched_on = {"top_k": params.top_k > 0, "top_p": params.top_p < 1, "min_p": params.min_p > 0}
    for name, is_on in switched_on.items():
        if n_beams > 1 and is_on:
            raise ValueError(
                f"{name}={getattr(params, name)} has no effect with num_beams={n_beams}: "
                "beam search draws nothing; drop one of them"
            )
    if 1 < n_beams < n_return:
        raise ValueError(f"num_return must be <= num_beams ({n_beams}), got {n_return}")
    # ② 贪心：没有随机数，写几份都一样；想要几份不同的，要么抽，要么用束搜索的名单
    if n_beams == 1 and params.is_greedy and n_return > 1:
        raise ValueError(
            f"temperature {params.temperature:g} always gives the same text: num_return must be 1, "
            f"got {n_return}; raise the temperature or use num_beams"
        )
    # ③ 候选是对数概率的附录
    #    没开 logprobs 就没有地方挂它
    if params.top_logprobs and not params.logprobs:
        raise ValueError(f"top_logprobs={params.top_logprobs} needs logprobs=True")


def check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """要知道词表才能查的：束宽、候选数、偏置的编号。

    束宽大于词表时，第一步只有 V 条路可走，凑不够 b 条；建参数时还不知道 V，所以在写之前查
    """
    check_int("num_beams", params.num_beams, 1, vocab_size)
    check_int("top_logprobs", params.top_logprobs, 0, vocab_size)  # 候选不会比词还多
    # 编号从 0 数起，所以最大的是 V − 1
    for token in params.logit_bias or ():
        check_int("each token id in logit_bias", token, 0, vocab_size - 1)


def demo() -> None:
    """把每一种坏参数试一遍，读一读它们的错误信息。

    好的错误信息是写给半夜里调参数的自己看的：不必打开源码，照着改就能接着跑
    """
    from inference.sampling import SamplingParams  # 它要用本课，所以到演示时才取

    # 都是顺手就会写错的：
    # 三个越界，三个写法不对，两个自相矛盾
    bad: list[dict[str, Any]] = [
        *({"temperature": math.nan}, {"top_p": 0}, {"top_k": -3}),
        *({"stop": ("END", "")}, {"stop": "END"}, {"logit_bias": {7: math.inf}}),
        *({"num_beams": 4, "top_k": 40}, {"temperature": 0, "num_return": 3}),
    ]
    for given in bad:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        try:
            SamplingParams(**given)
        except ValueError as error:
            print(f"{shown}\n    {error}")
        else:
            raise AssertionError(f"{shown} was accepted")
    # 只有看到词表才知道的：同一组参数，对大模型合适，对小模型就不合适
    try:
        check_vocabulary(SamplingParams(num_beams=65), vocab_size=50)
    except ValueError as error:
        print(f"num_beams=65，词表 50\n    {error}")
    else:
        raise AssertionError("more beams than tokens were accepted")


if __name__ == "__main__":
    run_demo(demo)
