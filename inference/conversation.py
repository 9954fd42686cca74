r"""模型没有记忆，怎样能「对话」？——把说过的话，连同新的一句，从头再读一遍。

    第 1 轮   读 [问₁]                      写 [答₁]
    第 2 轮   读 [问₁ 答₁ 问₂]              写 [答₂]
    第 3 轮   读 [问₁ 答₁ 问₂ 答₂ 问₃]      写 [答₃]

上下文是有限的。一轮要读 n_prompt 个词元，还要留出 n_new 个位置给回答：

$$n_{\text{prompt}} + n_{\text{new}} \le n_{\text{context}}$$

放不下时丢掉最早的一轮，整轮地丢：只丢一半，模型就会读到没有问题的回答。

                     丢掉            留下
    [问₁ 答₁]   ▏[问₂ 答₂] [问₃ 答₃] 问₄ │ 留给答₄的位置 ▕
                ▏◀──────── n_context ─────────────────▶▕

基座模型（base model）只会续写，没有「用户」与「助手」之分，所以各轮之间只隔一个换行
（Conversation）；指令微调过的模型要用它训练时的模板，否则它认不出哪句是问题
（TemplatedConversation，模板见 tokenization/chat_template.py）。两者记的、丢的都一样。

常见疑问：
    为什么不直接删最早的词元？  删掉半句话，模型读到的就是没头没尾的文本，训练时很少见过。
    每轮都从头读，岂不越聊越慢？  前文没变的部分，K、V 可以留着（prefix_cache.py；chat 就这样做）；
                                  丢掉最早的一轮，位置全变了，就得重算一次。
    模型怎么知道该停？          基座模型不知道，写满 n_new 个词元为止；微调过的会写出结束符。

论文：把对话写成一段文本 — Zhang et al., *DialoGPT*, arXiv:1911.00536。

改哪里：换基座模型的写法 → `Conversation.text`；丢哪一轮、要不要先做摘要 → `Conversation.fit`。
"""

from __future__ import annotations

from typing import Protocol

from foundation.checks import check_int
from foundation.demonstration import run_demo
from inference.prompts import Prompt
from tokenization.chat_template import encode_chat
from tokenization.tokenizer import Tokenizer

__all__ = ["Conversation", "TemplatedConversation", "conversation_for"]


class Encoder(Protocol):
    """只需要它会数词元；一般是 Tokenizer。

    用协议（Protocol）而不写死类型：试验时随手写一个「一字一词元」的就能用，见演示。
    """

    def encode(self, text: str) -> list[int]:
        """文本 → 编号。"""


class Conversation:
    """一场对话：记住各轮，放不下时从最早的一轮丢起。

    类型：n_context 是模型的上下文，n_new 是留给回答的位置，单位都是词元
    错误：n_new 不小于 n_context → ValueError，写明两个数
    """

    def __init__(
        self, tokenizer: Encoder, n_context: int, n_new: int, *, separator: str = "\n"
    ) -> None:
        self.tokenizer = tokenizer
        self.n_context = check_int("n_context", n_context, 2)
        self.separator = separator
        # 每轮是（问，答）
        self.turns: list[tuple[str, str]] = []
        self.make_room_for(n_new)

    def make_room_for(self, n_new: int) -> None:
        """改变留给回答的位置；提问至少要有一个词元的地方。

        留得越多，回答可以越长，记得住的轮数就越少：两者分的是同一个上下文。
        """
        self.n_new = check_int("max_new_tokens", n_new, 1, self.n_context - 1)

    def text(self, question: str) -> str:
        """模型这一轮要读的全文：留下的各轮，加上新的一句。

        一轮是一整段：基座模型的回答就是问句的下文，中间什么也不隔
        """
        return self.separator.join([*(said + answer for said, answer in self.turns), question])

    def prompt(self, question: str) -> tuple[str, int]:
        """返回（要读的全文，为了放下它而丢掉的轮数）；错误见 fit。"""
        n_dropped = self.fit(question)
        return self.text(question), n_dropped

    def read(self, question: str) -> tuple[Prompt, int]:
        """同 prompt，但照模型认得的样子：这里是文本，有模板的是编号。

        生成器两种都收，所以调用者不必问是哪一种
        """
        return self.prompt(question)

    def fit(self, question: str) -> int:
        """丢掉最早的几轮，直到放得下；返回丢了几轮。

        丢掉的就真的忘了：每一轮都重新计算的话，忘掉的会在短句之后又「想起来」，前后矛盾。
        错误：单是这一句就放不下 → ValueError，写明它的长度与上限
        """
        limit = self.n_context - self.n_new
        # ① 先看这一句自己放不放得下：放不下就什么也不丢，免得一句废话赔上全部记忆；
        #    模板自己写的记号也占位置，所以不能只数这一句的字
        kept, self.turns = self.turns, []
        length = self.length(question)
        self.turns = kept
        if length > limit:
            raise ValueError(
                f"this message has {length} tokens, at most {limit} fit: the context is "
                f"{self.n_context} and max_new_tokens keeps {self.n_new} for the answer"
            )
        # ② 每次都数整段：切口两侧的字符可能并成一个词元，各段的词元数不能相加
        n_dropped = 0
        while self.turns and self.length(question) > limit:
            self.turns.pop(0)
            n_dropped += 1
        return n_dropped

    def length(self, question: str) -> int:
        """这一轮要读的合多少个词元。"""
        return self.count(self.text(question))

    def count(self, text: str) -> int:
        """一段文本合多少个词元；上下文的长短是按词元算的，不是按字。"""
        # 分词器规定的开头（Llama 的 <s>）也占位置；随手写的那种没有
        return len(getattr(self.tokenizer, "start_ids", ())) + len(self.tokenizer.encode(text))

    def remember(self, question: str, answer: str) -> None:
        """记下一轮；回答中途被打断的，也记下已经说出口的部分。"""
        self.turns.append((question, answer))

    def reset(self) -> None:
        """全部忘掉。"""
        self.turns.clear()


class TemplatedConversation(Conversation):
    """指令微调过的模型的对话：照它的模板排，用户打出来的记号只算文字。

    例：问「你好」，ChatML 的模型读到 <|im_start|>user⏎你好<|im_end|>⏎<|im_start|>assistant⏎
    交出的是编号而不是文本：从文本再编码一次，用户打的记号就成真的了
    system：开场的吩咐，每一轮都在最前面，从不丢掉；None 表示没有
    """

    def __init__(
        self, tokenizer: Tokenizer, n_context: int, n_new: int, *, system: str | None = None
    ) -> None:
        super().__init__(tokenizer, n_context, n_new)
        self.chat_tokenizer, self.system = tokenizer, system

    def ids(self, question: str) -> list[int]:
        """模型这一轮要读的编号，末尾是「该助手说了」。"""
        # 从最早留下的一轮起，照先后排好；
        # 回答是模型写的，里面若有记号的样子，也只算文字
        said = [] if self.system is None else [("system", self.system)]
        for asked, answer in self.turns:
            said += [("user", asked), ("assistant", answer)]
        talk = [{"role": role, "content": text} for role, text in [*said, ("user", question)]]
        # 只为生成，不问哪些是助手的：省得多渲染几次
        pieces = encode_chat(
            self.chat_tokenizer, talk, add_generation_prompt=True, with_spans=False
        )
        return [token for piece in pieces for token in piece.ids]

    def length(self, question: str) -> int:
        """模板自己写的记号也占位置，所以数编号，不数文字。"""
        return len(self.ids(question))

    def read(self, question: str) -> tuple[Prompt, int]:
        """返回（要读的编号，丢掉的轮数）。

        system 不在 turns 里，所以丢不到它：吩咐忘了，后面的回答就都变了样
        """
        n_dropped = self.fit(question)
        return self.ids(question), n_dropped


def conversation_for(
    tokenizer: Tokenizer, n_context: int, n_new: int, *, system: str | None = None
) -> Conversation:
    """有模板的用模板，没有的就当基座模型；基座模型没有「吩咐」可言。

    模板在模型目录里：tokenizer_config.json 或 chat_template.jinja
    公式：放得下 ⇔ length(问) + n_new ≤ n_context，两种都如此
    错误：没有模板却给了 system → ValueError：它读到的只是多出来的一行
    """
    if tokenizer.settings.template() is not None:
        return TemplatedConversation(tokenizer, n_context, n_new, system=system)
    if system is not None:
        raise ValueError(
            "this model has no chat template, so it knows no system message; begin the first "
            "message with it instead"
        )
    return Conversation(tokenizer, n_context, n_new)


def demo() -> None:
    """三轮对话挤进一个小上下文，看哪一轮被忘掉。"""

    # 有模板的那一种，记与丢的办法完全相同，只是每轮多出几个记号；
    # 真的分词器几个字才一个词元，不好数；演示里一个字符就是一个
    class Characters:
        """一个字符算一个词元，数起来一目了然。"""

        def encode(self, text: str) -> list[int]:
            """每个字符的码位。"""
            return [ord(character) for character in text]

    talk = Conversation(Characters(), n_context=24, n_new=6)
    print(f"上下文 {talk.n_context} 个词元（一字一个），留 {talk.n_new} 个给回答")
    exchanges = [
        ("我叫小明。", "你好小明。"),
        ("今天冷吗？", "有点冷。"),
        ("我叫什么？", "不知道。"),
    ]
    forgotten = []
    for number, (question, answer) in enumerate(exchanges, start=1):
        text, n_dropped = talk.prompt(question)
        forgotten.append(n_dropped)
        shown = text.replace("\n", "⏎")
        print(f"第 {number} 轮读 {len(text):2} 个：{shown}" + "  ← 忘了最早的一轮" * n_dropped)
        assert len(text) + talk.n_new <= talk.n_context
        talk.remember(question, answer)
    assert forgotten == [0, 0, 1]
    assert "小明" not in talk.text("")
    print("第三轮读不到名字，所以答不上来：对话的记忆就是读得到的文本，没有别的")

    # 一句话自己就超长：报错，并且已经记住的一轮也不丢
    try:
        talk.prompt("一" * 30)
    except ValueError as error:
        print(f"一句话就放不下：{error}")
        assert talk.turns
    else:
        raise AssertionError("a message longer than the context must be refused")


if __name__ == "__main__":
    run_demo(demo)
