r"""对话数据有四种常见的写法：怎样不问格式就读对，读不懂时又怎样说清楚？

网上的对话数据没有统一的格式，常见的有四种。写的都是同一件事：谁说了什么。

    写法        凭哪个键认出     一条的样子
    ──────────  ───────────────  ─────────────────────────────────────────────────────────
    messages    messages         {"messages": [{"role": "user", "content": "2+2="}, …]}
    ShareGPT    conversations    {"conversations": [{"from": "human", "value": "2+2="}, …]}
    Alpaca      instruction      {"instruction": "翻译", "input": "猫", "output": "cat"}
    一问一答    prompt           {"prompt": "2+2=", "response": "4"}

全都变成同一个样子，后面的人（sft.py）只认它：

    Conversation( Message("system", …)?  Message("user", …)  Message("assistant", …)  … )

要学的是助手的话，所以一段对话必须答得上来：

$$\text{role}_1 \ne \text{assistant}, \qquad \text{role}_n = \text{assistant}$$

（第一句就由助手来说，没有前文可看；最后一句是用户的，问了没有人答，一个数也教不了。）

逐条认，不看文件名：一个文件里混着几种写法也读得对。同时有几种键时按上表的先后，
因为完整的对话比它的第一问更完整。多余的键（编号、来源）不管。

常见的错法：
    坏的一行悄悄跳过    用户以为每一行都用上了；数据少了一半也看不出来
    猜一个角色          把 ShareGPT 的 "gpt" 当成用户，角色全反，模型学会的是提问
    修剪空白            提问末尾的换行、答案开头的空格，都可能是格式的一部分
    null 变成 "None"    模型学会了一本正经地回答 None

常见疑问：
    为什么不让用户说是哪种？   他多半不知道名字；键就在数据里，一看便知。
    同一个人连说两句可以吗？   可以，照原样保留；只有谁先谁后有讲究。
    工具调用、图片呢？         这里只有文字；遇到了就报错，不悄悄丢掉一半。

论文：Taori et al. 2023, Stanford Alpaca；Ouyang et al. 2022, InstructGPT；
      Köpf et al. 2023, OpenAssistant Conversations, arXiv:2304.07327
改哪里：多认一种写法，在 `SHAPES` 里添一行、写一个函数；多认一个角色的别名，改 `ROLES`；
        从文件读，见 conversation_files.py；对话怎样变成词元，见 sft.py。
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from foundation.checks import nearest
from foundation.demonstration import run_demo
from tokenization.input_checks import check_text

__all__ = ["EXAMPLE", "Conversation", "Message", "Pair", "conversation_of", "text_of"]

# 别名 → 三种角色；各家起的名字不同，意思只有三个
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
    "system": "system",
}
# 一问一答里，答案可能叫什么；按先后
ANSWER_KEYS = ("response", "answer", "completion", "output")
# 写在报错里：最常见的问题是不知道该写成什么样
EXAMPLE = '{"messages": [{"role": "user", "content": "2+2="}, {"role": "assistant", …}]}'


@dataclass(frozen=True)
class Message:
    """一句话：谁说的，说了什么。

    role     system（开场的吩咐）、user（用户）、assistant（助手）三者之一
    content  空白原样保留：末尾的换行可能就是格式的一部分
    """

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """一段对话：几句话，按先后。

    公式：要学的位置 𝒜 = 所有 role = assistant 的那几句；别的都是前文
    例：Conversation((Message("user", "2+2="), Message("assistant", "4")))
    冻结的、可以放进集合：划分训练与留出时，靠它认出重复的
    """

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Pair:
    """一问一答，最短的对话。prompt 原样喂给模型，连同末尾的换行；answer 是要学会说的。

    例：Pair("2+2=", "4")。提问末尾要有个明白的收尾（"="、"：\n"），模型才知道该它说了；
    生成时也要用同样的收尾
    """

    prompt: str
    answer: str

    @property
    def messages(self) -> tuple[Message, ...]:
        """写成两句话，与多轮的对话走同一条路。"""
        return (Message("user", self.prompt), Message("assistant", self.answer))


def conversation_of(value: Any, where: str) -> Conversation:
    """一条 → 一段对话；按 SHAPES 的先后认。

    value 是 JSON 读出来的东西，where 是它在哪里，写进每一条报错
    错误：一种也不是 → ValueError，列出它有的键、认得的键、最像的一个
    """
    check_object(value, where)
    for key, read in SHAPES.items():
        if key in value:
            return checked(read(value, where), where)
    # 一种也不是：多半是键名拼错了，给出最像的一个
    known = list(SHAPES)
    guess = next(filter(None, (nearest(key, known) for key in value)), None)
    hint = f"did you mean {guess!r}? " if guess else ""
    raise ValueError(
        f"{where} has the keys {', '.join(value) or '(none)'}, but none of {', '.join(known)}; "
        f"{hint}write it as {EXAMPLE}"
    )


def from_messages(value: Mapping[str, Any], where: str) -> list[Message]:
    """OpenAI 的写法：role 与 content。

    例：{"messages": [{"role": "system", "content": "…"}, {"role": "user", "content": "…"}, …]}
    """
    return turns(value, "messages", "role", "content", where)


def from_sharegpt(value: Mapping[str, Any], where: str) -> list[Message]:
    """ShareGPT 的写法：from 与 value；系统提示有时单放在外面。

    名字来自早年分享 ChatGPT 对话的网站，所以助手叫 gpt、用户叫 human
    """
    return system_of(value, where) + turns(value, "conversations", "from", "value", where)


def from_alpaca(value: Mapping[str, Any], where: str) -> list[Message]:
    """Alpaca 的写法：任务、材料（可以没有或为空）、回答；没有第二轮。

    原文还套着一段英文的说明（Below is an instruction…）：那是写法的事，不归数据管
    """
    question = text_of(value, "instruction", where)
    material = value.get("input")
    # 空字符串与 null 是「没有材料」，是这个格式的一部分
    if material not in (None, ""):
        # 空一行接在任务后面，与原文的习惯相同
        question += "\n\n" + text_of(value, "input", where)
    # 它自己的叫 output；改名为 response 的也常见
    answer = text_of(value, answer_key(value, ("output", *ANSWER_KEYS)), where)
    return [*system_of(value, where), Message("user", question), Message("assistant", answer)]


def from_prompt(value: Mapping[str, Any], where: str) -> list[Message]:
    """一问一答：答案叫 response、answer、completion 或 output，取第一个有的。

    键名是自己起的（question、reply……），用 read_pairs 明说
    """
    answer = text_of(value, answer_key(value, ANSWER_KEYS), where)
    prompt = Message("user", text_of(value, "prompt", where))
    return [*system_of(value, where), prompt, Message("assistant", answer)]


# 凭哪个键 → 怎样读；先后就是优先的次序
SHAPES: dict[str, Callable[[Mapping[str, Any], str], list[Message]]] = {
    "messages": from_messages,
    "conversations": from_sharegpt,
    "instruction": from_alpaca,
    "prompt": from_prompt,
}


def answer_key(value: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """答案叫什么：第一个有的。

    都没有就返回首选的，由 text_of 报「没有这个键」，那里会列出有哪些
    """
    return next((key for key in keys if key in value), keys[0])


def system_of(value: Mapping[str, Any], where: str) -> list[Message]:
    """单放在外面的系统提示；没有、null 或空的就是没有。

    不理会它也能训练，只是模型学会了不听吩咐：数据里说「用法语答」，它却没看见
    """
    if value.get("system") in (None, ""):
        return []
    return [Message("system", text_of(value, "system", where))]


def turns(
    value: Mapping[str, Any], key: str, role_key: str, text_key: str, where: str
) -> list[Message]:
    """一串「谁说了什么」→ Message 的列表。

    两种写法只差键的名字，所以名字当参数传进来
    错误：不是列表、空的、角色不认识、内容不是文字 → ValueError，写明是第几句
    """
    # 一段对话里有几十句也不少见，只说「这一行错了」，用户还要自己去数
    listed = value[key]
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{where}: {key} must be a non-empty list, got {short(listed)}")
    found = []
    for number, turn in enumerate(listed, start=1):
        # 第几句，从 1 数起
        here = f"{key} {number} in {where}"
        name = text_of(turn, role_key, here)
        # 认不出的角色不猜：猜反了，模型学会的是提问
        if name not in ROLES:
            raise ValueError(f"{here}: {role_key} must be one of {', '.join(ROLES)}, got {name!r}")
        # content 也可以是几段的列表；只收文字的，图与声音我们学不了
        text = turn.get(text_key)
        if isinstance(text, list):
            text = "".join(text_of(part, "text", f"a part of {here}") for part in text)
            turn = {text_key: text}
        found.append(Message(ROLES[name], text_of(turn, text_key, here)))
    return found


def checked(messages: list[Message], where: str) -> Conversation:
    """一段对话要答得上来：系统提示只在开头，助手不先开口，最后一句是助手的。

    为什么要拒绝：这三样都不妨碍训练，只是教的东西不是用户以为的那些
    错误：ValueError，写明是哪一条
    """
    # ① 半路的吩咐：多数模板没有它的位置
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise ValueError(f"{where}: a system message must come first, the roles are {roles}")
    # ② 谁先开口
    spoken = [role for role in roles if role != "system"]
    if not spoken or spoken[0] == "assistant":
        raise ValueError(
            f"{where}: the first to speak must be the user, the roles are {roles}; "
            "the assistant's first word needs something to answer"
        )
    # ③ 最后一句问了没有人答，多半是数据被截断了
    if spoken[-1] != "assistant":
        raise ValueError(
            f"{where}: the last message must be the assistant's, the roles are {roles}; "
            "an unanswered question teaches nothing, so remove it"
        )
    return Conversation(tuple(messages))


def check_object(value: Any, where: str) -> None:
    """一条要是一个 JSON 对象。

    例：一行是 ["问", "答"]，或列表里混着字符串 → ValueError，说出它是什么
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(value).__name__}")


def text_of(value: Any, key: str, where: str) -> str:
    """取一个键的字符串，一个空白也不动。

    错误：不是对象、没有这个键（给出最像的）、不是非空的字符串、有孤立的代理码位
          → ValueError，写明是哪一行
    """
    check_object(value, where)
    if key not in value:
        guess = nearest(key, value)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise ValueError(f"{where} has no key {key!r}, only {', '.join(value) or 'nothing'}{hint}")
    # 取到什么就是什么，不修剪空白
    text = value[key]
    # null 与数字都不悄悄转成 "None"、"4"：那样会教模型说 None
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where}: {key} must be a non-empty string, got {short(text)}")
    # 孤立的代理码位编不成 UTF-8；在这里说，才知道是哪一行
    check_text(text, f"{key} in {where}")
    return text


def short(value: Any) -> str:
    """报错里显示的值，太长的只留开头。

    一整段对话印出来，就没人看得见错在哪里了
    """
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def demo() -> None:
    """四种写法变成同一段对话；再看几种坏数据各说什么。

    都是一条一条地认，与放在什么文件里无关
    """
    pair = [("user", "2+2="), ("assistant", "4")]
    lines: list[dict[str, Any]] = [
        {"messages": [{"role": role, "content": text} for role, text in pair]},
        {"conversations": [{"from": "human", "value": "2+2="}, {"from": "gpt", "value": "4"}]},
        {"instruction": "2+2=", "input": "", "output": "4"},
        {"prompt": "2+2=", "response": "4", "id": 7},
    ]

    print("一、四种写法，同一段对话")
    found = [conversation_of(line, "the example") for line in lines]
    for line, conversation in zip(lines, found, strict=True):
        said = "  ".join(f"{m.role}：{m.content}" for m in conversation.messages)
        print(f"  {next(iter(line)):14} → {said}")
    # 认完之后，谁也看不出它原来的写法
    assert len(set(found)) == 1
    assert found[0].messages == Pair("2+2=", "4").messages

    # 材料接在任务后面，空一行；这是 Alpaca 的习惯
    print("二、Alpaca 带着材料")
    (question, answer) = conversation_of(
        {"instruction": "翻译成英文", "input": "猫", "output": "cat"}, "the example"
    ).messages
    print(f"  {question.content!r} → {answer.content!r}")
    assert question.content == "翻译成英文\n\n猫"

    print("三、坏数据：在哪里、有什么、该有什么")
    bad: list[dict[str, Any]] = [
        {"mesages": []},
        {"messages": [{"role": "narrator", "content": "…"}]},
        {"messages": [{"role": "user", "content": "在吗"}]},
        {"prompt": "2+2=", "response": 4},
    ]
    # 一句话里要有：哪一条、给了什么、可以给什么
    for value in bad:
        try:
            conversation_of(value, "line 2")
            raise AssertionError(f"{value} must be refused")
        except ValueError as error:
            message = str(error)
        print(f"  {message.split(';')[0]}")
        # 无论哪一种错，都说得出是哪一条
        assert "line 2" in message


if __name__ == "__main__":
    run_demo(demo)
