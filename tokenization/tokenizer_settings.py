r"""tokenizer.json 之外还要知道什么？哪个词元表示开头与结束，几句话怎样排成一段文本。

    模型目录
    ├── tokenizer.json             文本 ↔ 编号
    ├── tokenizer_config.json      {"eos_token": "<|im_end|>", "chat_template": "{% for … %}", …}
    ├── chat_template.jinja        新的写法：模板单独成文件，有它就用它
    └── additional_chat_templates/tool_use.jinja   别的用途的模板，各一个文件

模板有三种写法，读进来都是「名字 → 模板」：

    一个字符串                                   {"default": …}
    [{"name": "default", "template": …}, …]      照名字
    chat_template.jinja                          {"default": …}，压过 tokenizer_config.json

词元也有两种写法："</s>"，或者 {"content": "</s>", "lstrip": false, …}，都读成前一种。

这里只读、只查，不运行模板：模板是程序，怎样放心地运行见 `foundation/template_sandbox.py`。
能在这里查出的（太大、类型不对、指着没有的词元），就不留到对话时才说：

$$|\text{模板}| \le 2^{20} \text{ 个字符}, \qquad \text{eos} \in \text{词表}$$

三个词元最要紧，各管一件事：

    bos_token   文本的开头；要不要它由模板或 tokenizer.json 决定，写两个反而不对
    eos_token   说完了；生成时遇到它就停，对话模型的往往不是「文章结束」
    pad_token   把短的补齐；补位不算损失，用哪个词元都行，所以这里不管它

别的键（model_max_length、add_bos_token、clean_up_tokenization_spaces……）是给别的程序看的，
不影响编号，读入时不理会，存下时也不照抄。

为什么不把模板也放进 tokenizer.json？它只管文本与编号，许多语言的库都读；模板是一段程序，
只有对话时才用得着，所以约定放在旁边。

常见疑问：
    模板与分词器不配怎么办？   bos、eos 指着词表里没有的词元，读入时就报错。
    没有这些文件呢？           不是错：基座模型本来就没有，对话时用固定的写法。
    两处都有模板，听谁的？     听单独成文件的：新的工具存下时写它，旧的可能忘了删。
    auto_map 之类的代码呢？    一概不看，更不会去载入。

文献：https://huggingface.co/docs/transformers/chat_templating（文件与名字的约定）。
改哪里：多认一个词元的名字 → TOKEN_NAMES；模板从别处来 → load_settings。
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.demonstration import run_demo
from foundation.files import read_json, read_text, write_json

__all__ = ["CONFIG_NAME", "TEMPLATE_NAME", "TokenizerSettings", "load_settings"]

# 名字都由 transformers 定：存下的目录，它也读得
CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
FOLDER_NAME = "additional_chat_templates"

# 模板里可以用这些名字；没有写的，在模板里就是空的
TOKEN_NAMES = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)
# 常见的模板几 KB，很长的几十 KB
MAX_TEMPLATE = 1 << 20


@dataclass(frozen=True)
class TokenizerSettings:
    """开头、结束等词元的文字，与各种用途的对话模板。

    只是数据：不知道编号，也不运行模板；两份相等，当且仅当词元与模板都相同
    tokens     {"eos_token": "<|im_end|>", …}，只有写明了的
    templates  {"default": 模板}；没有对话模板的基座模型是空的
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)

    def template(self, *, with_tools: bool = False) -> str | None:
        """该用的模板；没有就是 None。有专门用工具的那一个，用工具时就用它。

        >>> TokenizerSettings(templates={"default": "a", "tool_use": "b"}).template()
        'a'
        """
        # 没有专门的，就用平常那个；它也许自己会处理工具
        names = ["tool_use", "default"] if with_tools else ["default"]
        return next((self.templates[name] for name in names if name in self.templates), None)

    # 有多个时写成一列：transformers 5 会另存成几个文件，两种它都读
    def save(self, directory: Path | str) -> None:
        """写成一个 tokenizer_config.json；transformers 也读得懂。

        约定：load_settings(目录) 读回来的与存下的相等；从三种写法读来的，都存成一个文件
        """
        templates: Any = [{"name": n, "template": t} for n, t in self.templates.items()]
        # 只有一个时写成字符串：这种写法，旧的程序也认得
        if list(self.templates) == ["default"]:
            templates = self.templates["default"]
        written = {"tokenizer_class": "PreTrainedTokenizerFast", **self.tokens}
        if templates:
            written["chat_template"] = templates
        write_json(Path(directory, CONFIG_NAME), written)

    def check_tokens(self, vocabulary: Collection[str], where: str) -> None:
        """开头与结束的词元必须是词表里的：指着没有的，生成就永远停不下来。

        pad_token 等不查：不少模型的设置里写着词表中没有的补位词元，而我们用不着它
        """
        for name in ("bos_token", "eos_token"):
            token = self.tokens.get(name)
            if token is not None and token not in vocabulary:
                raise ValueError(
                    f"{where}: {name} is {token!r}, which is not among the {len(vocabulary)} "
                    "tokens of the vocabulary; the two files do not belong together"
                )


def load_settings(directory: Path | str) -> TokenizerSettings:
    """读一个模型目录里的设置；什么都没有时，得到空的设置。

    错误：不是 JSON 对象、类型不对、模板太大 → ValueError，写明文件与键
    """
    # ① 词元的文字；文件不在，就是什么也没有写
    directory = Path(directory)
    path = directory / CONFIG_NAME
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    # 只取认得的几个键；别的是给别的程序看的
    tokens = {}
    for name in TOKEN_NAMES:
        token = values.get(name)
        # 详细的写法：还说了要不要吃掉左右的空格，那些 tokenizer.json 里也有
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if not isinstance(token, str) or not token:
                # 空串也不行：处处都能找到它
                raise ValueError(f"{path}: {name} must be a non-empty string, got {token!r}")
            tokens[name] = token
    # ② 模板；先读 tokenizer_config.json 里的
    templates = named_templates(values.get("chat_template"), str(path))
    # 文件名去掉 .jinja 就是名字，例如 tool_use；
    # 单独成文件的后读：同名时压过前面的
    files = {"default": directory / TEMPLATE_NAME}
    files |= {each.stem: each for each in sorted(directory.glob(f"{FOLDER_NAME}/*.jinja"))}
    for name, file in files.items():
        if file.is_file():
            templates[name] = checked_template(read_text(file), str(file))
    return TokenizerSettings(tokens, templates)


def named_templates(value: Any, where: str) -> dict[str, str]:
    """tokenizer_config.json 里的 chat_template，两种写法读成一种。

    字符串就是 "default"；一列有名字的，照名字放
    >>> named_templates([{"name": "default", "template": "{{ a }}"}], "here")
    {'default': '{{ a }}'}
    >>> named_templates(3, "tokenizer_config.json")
    Traceback (most recent call last):
    ValueError: tokenizer_config.json: chat_template must be a string or a list of named ...
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": checked_template(value, where)}
    # 别的类型当成一个坏的条目，与坏的条目说同一句话
    entries = value if isinstance(value, list) else [None]
    # 一个一个地查，报错时说得出是哪一个
    templates: dict[str, str] = {}
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        name, template = fields.get("name"), fields.get("template")
        if not isinstance(name, str) or not isinstance(template, str):
            raise ValueError(
                f"{where}: chat_template must be a string or a list of named templates "
                f'such as {{"name": "default", "template": "…"}}, got {json.dumps(entry)[:80]}'
            )
        # 列表里才可能同名；JSON 的键写两次是另一回事。
        # 同名的两个，后一个悄悄盖掉前一个，就不知道用的是哪一个了
        if name in templates:
            raise ValueError(f"{where}: chat_template names {name!r} twice")
        templates[name] = checked_template(template, where)
    return templates


def checked_template(text: str, where: str) -> str:
    """模板不能大得离谱：编译它的时间与它的长度成正比。

    语法错不错，这里不管：不对话的人用不着它，不该因此读不了分词器
    """
    if len(text) > MAX_TEMPLATE:
        raise ValueError(
            f"{where}: the chat template has {len(text)} characters, at most {MAX_TEMPLATE} "
            "are allowed"
        )
    return text


def demo() -> None:
    """写一个目录，用三种写法给出模板，看读成什么；再看坏的怎样说。

    每一步都断言读成的样子，所以改坏了读法，演示就停下
    """
    default = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    # 右边是 tokenizer_config.json 里的内容
    forms: dict[str, Any] = {
        "一个字符串": {"eos_token": "</s>", "chat_template": default},
        "有名字的几个": {
            "eos_token": {"content": "</s>", "lstrip": False},
            "chat_template": [
                {"name": "default", "template": default},
                {"name": "tool_use", "template": "{{ tools }}"},
            ],
        },
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, CONFIG_NAME)
        for number, (title, values) in enumerate(forms.items(), 1):
            write_json(path, values)
            settings = load_settings(name)
            print(f"{number}. {title}：词元 {settings.tokens}，模板 {list(settings.templates)}")
            assert settings.tokens == {"eos_token": "</s>"}
            assert settings.template() == default
        # 循环里最后读的是有名字的几个：用工具时换一个
        assert settings.template(with_tools=True) == "{{ tools }}"

        # 两处都有，听单独成文件的
        Path(name, TEMPLATE_NAME).write_text("{{ 1 }}", encoding="utf-8")
        print(f"3. 另有 {TEMPLATE_NAME}：用的是 {load_settings(name).template()!r}")
        assert load_settings(name).template() == "{{ 1 }}"

        # 每一种坏法，报错都说出文件与键
        print("4. 存下再读，还是同样的设置；坏的：")
        # 删掉那个文件，不然它又会压过刚存下的
        settings.save(name)
        Path(name, TEMPLATE_NAME).unlink()
        assert load_settings(name) == settings
        for values in ({"eos_token": 7}, {"chat_template": [{"name": "default"}]}, []):
            write_json(path, values)
            try:
                load_settings(name)
            except ValueError as error:
                print("  ", str(error).replace(name, "…"))
            else:
                raise AssertionError(f"{values} was accepted")


if __name__ == "__main__":
    run_demo(demo)
