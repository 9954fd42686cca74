r"""指令微调 (supervised fine-tuning, SFT)：怎样教模型「答」，而不是教它「出题」？

同样是预测下一个词元，只有一处不同：只有助手说的话算损失。提问是用户给的，模型不必学会编它；
若也算进去，提问往往比答案长得多，梯度里就尽是「怎样出题」。

公式：$L = -\frac{1}{|\mathcal A|}\sum_{t \in \mathcal A} \log p(x_{t+1} \mid x_{\le t})$，
      $\mathcal A$ 是「下一个词元属于助手的话」的那些位置；多轮对话里，每一轮的答案都算

    词元       问   问   答   答   ⏎   问   答   答   ⏎     ⏎ = <|endoftext|>：学会说完就停
    inputs     问   问   答   答        问   答   答          末尾的 ⏎ 只是目标，不必读它
    targets   −100  答   答   ⏎        答   答   ⏎           错开一位；−100 = 不算损失
                     ▲
                     提问的最后一个位置要预测答案的第一个词元，它算

提问与答案分开分词再拼接，不把整段一起分词：生成时模型只拿到提问，若边界处的两个字符在训练时
被并成了一个词元，生成时就是另一串编号，模型从没见过。

一段对话怎样变成词元，由「写法」(chat template) 定；训练与生成必须是同一种，所以写法跟着分词器走，
见 tokenization/chat_template.py。基座模型没有模板：各轮之间一个换行，问与答之间什么也不隔，
前文里也没有结束符。所以中间各轮的 ⏎ 只当目标，教它停，却不放进它要读的前文（图里就是这样）。

常见的错法，每一种都不报错，只是学得差：
    目标没有错开        模型学会照抄当前的词元，损失很快到零，生成却是复读
    掩码差了一位        少盖一个：学了提问的最后一个词元；多盖一个：答案的第一个词元没人教
    忘了结束符          学会了答，没学会停，生成时没完没了
    只算最后一轮        前面几轮的答案白白读了一遍；它们也是好教材
    训练一种、生成一种  多一个空格、少一个换行，模型就认不出哪句是问题

训练之前看一眼（marked）：哪些字算损失，一段样本印出来，比读代码更容易发现错。

论文：Radford et al. 2018 (GPT)；Ouyang et al. 2022, InstructGPT；
      Shi et al. 2024, Instruction Modelling（提问也算损失何时有益：答案很短、数据很少时）
改哪里：换对话的写法，改模型目录里的 chat_template.jinja，或写一个「若干句话 → 若干段
        ChatPiece」的函数，当作 render 传进来；
        提问也要算损失，让它的 learned 为真；数据从哪里来，见 conversations.py；
        怎样拼成批，见 packing.py。
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from rich.text import Text

from finetuning.conversations import Conversation, Message, Pair
from foundation.demonstration import run_demo
from tokenization.chat_template import ChatPiece, encode_chat
from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX

__all__ = ["Encoded", "Render", "Spoken", "encode", "marked", "question_of"]


class Spoken(Protocol):
    """一段对话：Conversation、Pair，或别的有 messages 的东西。

    用协议（Protocol）而不写死类型：测试里、别的数据里，有这一样就够了
    """

    @property
    def messages(self) -> tuple[Message, ...]:
        """按先后的几句话。"""


class Encoded(NamedTuple):
    """一段对话的词元：inputs 与 targets 等长，不算损失的 target 是 −100。

    例（P = 3，A = 2）：inputs [p₀ p₁ p₂ a₀ a₁]，targets [−100 −100 a₀ a₁ ⏎]
    """

    inputs: list[int]
    targets: list[int]


# 写法：若干句话 → 若干段词元。换写法只换这一个函数，掩码、打包、训练都不必知道
Render: TypeAlias = Callable[[Sequence[Message]], "list[ChatPiece]"]


def default_render(tokenizer: Tokenizer) -> Render:
    """分词器带着的写法：有模板照模板，没有就用基座模型的写法；见 tokenization/chat_template.py。

    错误：没有模板、又没有结束符 → ValueError：模型就学不会停
    """
    if tokenizer.settings.template() is None and tokenizer.end_id is None:
        raise ValueError("the tokenizer has no end token: the model could not learn to stop")
    return lambda messages: encode_chat(tokenizer, messages)


def encode(conversation: Spoken, tokenizer: Tokenizer, render: Render | None = None) -> Encoded:
    """一段对话 → 错开一位的 inputs 与 targets，只有助手的话不盖住。

    形状：一问一答时，提问 P 个词元、答案 A 个，则两者都长 P + A，其中 A + 1 个目标算损失
    错误：有一句没有词元、第一段就要学（没有前文可看）、没有一段要学 → ValueError
    """
    # ① 查：空的一句会让「问」与「答」连成一片，掩码就错了位
    render = default_render(tokenizer) if render is None else render
    messages = conversation.messages
    empty = [message for message in messages if not message.content]
    if empty:
        raise ValueError(f"a message must not be empty, got {empty[0]} in {messages}")
    # ② 一段一段地接；目标先全盖住，要学的再揭开
    ids: list[int] = []
    targets: list[int] = []  # targets[t] 是位置 t 该预测的
    for piece in render(messages):
        first = len(ids)
        ids += piece.ids
        targets += [IGNORE_INDEX] * len(piece.ids)
        if not piece.learned:
            continue
        if first == 0:
            raise ValueError(f"the assistant's first word needs something to answer: {messages}")
        # 第 j 个词元由它前一个位置来预测，所以整段往左错开一位
        targets[first - 1 : first - 1 + len(piece.ids)] = piece.ids
        if piece.stop is not None:
            targets[-1] = piece.stop
    # ③ 写法可能以换行收尾，没有谁要预测它之后的
    # 末尾没有目标的位置不必算：谁也不看它们
    while targets and targets[-1] == IGNORE_INDEX:
        targets.pop()
    if not targets:
        raise ValueError(f"no message of the assistant, nothing to learn: {messages}")
    return Encoded(ids[: len(targets)], targets)


def question_of(encoded: Encoded) -> list[int]:
    """最后一次作答之前的前文：生成时就从这里接着写。

    从末尾往回走到最后一段答案的第一个目标；那个位置读到的，正是提问的最后一个词元
    """
    place = len(encoded.targets) - 1
    # 末尾总是要学的；往回走，直到前一个位置不算损失
    while place and encoded.targets[place - 1] != IGNORE_INDEX:
        place -= 1
    return encoded.inputs[: place + 1]


def marked(encoded: Encoded, tokenizer: Tokenizer) -> Text:
    """给人看的一段样本：算损失的用绿色粗体、括在 ⟦ ⟧ 里，不算的暗。

    没有颜色的终端、重定向到文件的，看括号就够了；看到提问在括号里，就是掩码错了
    """
    # 一串 (算不算损失, 词元)，相邻的总是不同类
    runs: list[tuple[bool, list[int]]] = []

    def add(token: int, learned: bool) -> None:
        """接在同类的后面：一段一起解码，汉字才不会被切断。"""
        if not runs or runs[-1][0] != learned:
            runs.append((learned, []))
        runs[-1][1].append(token)

    # 第一个词元没有谁预测它，所以总是不算的
    add(encoded.inputs[0], False)
    following = [*encoded.inputs[1:], None]
    for target, after in zip(encoded.targets, following, strict=True):
        if target != IGNORE_INDEX:
            add(target, True)
        # 目标不是接着要读的那个（例如中间的结束符）：两个都显示
        if after is not None and after != target:
            add(after, False)
    # Text 自己知道终端认不认颜色，重定向时就只剩文字
    text = Text()
    for learned, ids in runs:
        words = tokenizer.decode(ids)
        text.append(f"⟦{words}⟧" if learned else words, "bold green" if learned else "dim")
    return text


def demo() -> None:
    """一对怎样变成题目，多轮的怎样算，掩码错了印出来是什么样。

    用按字分的分词器，一个字就是一个词元，看得最清楚
    """
    from rich.console import Console

    talk = Conversation(
        (
            Message("system", "简短"),
            Message("user", "法国的首都？"),
            Message("assistant", "巴黎"),
            Message("user", "德国呢？"),
            Message("assistant", "柏林"),
        )
    )
    pair = Pair("1+1=", "2")
    # 词表就是出现过的字，加上写法要用的换行
    letters = [m.content for one in (talk, pair) for m in one.messages]
    tokenizer = Tokenizer.characters([*letters, "\n"])

    def show(ids: Sequence[int]) -> str:
        """一字一格；不算损失的画一个点，换行与结束符换成看得见的。"""
        words = ["·" if i == IGNORE_INDEX else tokenizer.decode([i]) for i in ids]
        return "  ".join(w.replace("\n", "↵").replace("<|endoftext|>", "⏎") for w in words)

    print("一、一问一答：上下对着看，每个目标是它右上方的那个字（· 不算损失）")
    inputs, targets = encode(pair, tokenizer)
    print(f"  inputs   {show(inputs)}\n  targets  {show(targets)}")
    # 答案一个字，加一个结束符
    assert sum(target != IGNORE_INDEX for target in targets) == len("2") + 1

    # 上面一行是模型读的，下面一行是它该写的
    print("二、多轮：每一轮的答案都算；中间的结束符只是目标，不在前文里")
    inputs, targets = encoded = encode(talk, tokenizer)
    print(f"  inputs   {show(inputs)}\n  targets  {show(targets)}")
    counted = [target for target in targets if target != IGNORE_INDEX]
    assert tokenizer.decode(counted) == "巴黎<|endoftext|>柏林<|endoftext|>"
    assert tokenizer.end_id not in inputs
    # 与对话时拼出来的前文逐字相同（最后一句的答案还没有说）
    assert tokenizer.decode(inputs) == "简短\n法国的首都？巴黎\n德国呢？柏林"

    # 训练命令在开始之前也印这样一段
    print("三、训练之前看一眼：括号里的（终端里是绿色的）才算损失")
    Console().print(marked(encoded, tokenizer))
    assert marked(encoded, tokenizer).plain.count("⟦") == 2

    print("四、掩码若少盖一个，印出来一眼看得出：问号也在括号里")
    first = next(t for t, target in enumerate(targets) if target != IGNORE_INDEX)
    leaky = [*targets]
    leaky[first - 1] = inputs[first]  # 提问的最后一个词元，不该由模型来写
    wrong = marked(Encoded(inputs, leaky), tokenizer)
    Console().print(wrong)
    assert "⟦？巴黎" in wrong.plain


if __name__ == "__main__":
    run_demo(demo)
