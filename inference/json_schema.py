r"""怎样保证写出来的 JSON 一定合乎格式？——把 JSON Schema 也变成一棵树，与正则表达式同一台机器。

    {"type": "object",                 {"name": "       string       ", "age": integer}
     "properties": {            ──▶    └─照抄──┘ └──任意字符──┘ └──照抄──┘ └─数字─┘
       "name": {"type": "string"},
       "age":  {"type": "integer"}}}

JSON 本身要用栈才认得全（括号套括号，层数不限）；但一份**给定的** schema 若不引用自己，层数就是
有限的，有限自动机足够。写出来的文本是合格文本的一个子集（为什么不是全部，见 json_text.py）：

$$L(\text{机器}) \subseteq \{\, x : \text{schema 认可 } x \,\}$$

认得的关键字；type 可以是一种，也可以是一个列表：

    object    properties（按列出的次序写）、required、additionalProperties（从来不写额外的）
    array     items、minItems、maxItems
    string    minLength、maxLength、pattern（其中有一段匹配就行；想要整段，写 ^…$）
    number    minimum、maximum、exclusiveMinimum、exclusiveMaximum（见 number_bounds.py）
    integer   同上
    boolean   null
    任何地方  enum、const、anyOf、$ref（指向本文件之内，不许绕回自己）
    略过的    title、description、default、examples 一类的说明

其余的一律报错，写明在哪里、叫什么。悄悄不理会 multipleOf，写出来的就可能不合格，而用户以为有保证；
拒绝一份 schema，好过答应了又做不到。

一份 schema 怎样读成树：从外到内，每一层只看自己认得的关键字，里面的交给自己再读一遍，

    value("#")  ── type: object ── object
                    ├─ value("#/name")  ── type: string  ── string_of(…)
                    └─ value("#/tags")  ── type: array   ── array_of(…)
                         └─ value("#/tags/items") ── enum ── 照抄其中之一

每一层都带着自己的位置，所以错误说得出在哪里。位置的写法是 JSON Pointer：# 是整份，
/ 之后是属性名，与文件里看到的一层一层对得上。

从简单的写起，三份常用的：

    打标签    {"enum": ["正面", "负面", "中性"]}
    抽信息    {"type": "object", "properties": {"人名": {"type": "string", "maxLength": 20},
               "年份": {"type": ["integer", "null"], "maximum": 2100}},
               "required": ["人名", "年份"]}
    几条要点  {"type": "array", "items": {"type": "string", "maxLength": 60},
               "minItems": 1, "maxItems": 5}

给字符串与数组都写上 maxLength 与 maxItems：不写也合格，但模型不肯收尾时，会一直写到没有地方。
不知道就写 null：抽不到的信息若没有 null 可写，模型只好编一个。

常见疑问：
    oneOf 为什么不认？    它要「恰好一个」合格，等于求几台机器的对称差；多半的人想要的是 anyOf
    pydantic 的呢？       它生成的多半就是这些关键字；有 format、multiple_of 的，先去掉
    属性想换个次序？      把 properties 里的次序换了就是；模型先写的，后写的就看得见
    为什么不许 {}？       「任何值」可以无限嵌套，有限自动机认不全；把想要的结构写出来

读错误信息：json schema, #/tags/items: 'format' is not supported … 说的是，
属性 tags 的 items 里写了 format。删掉它，或者换成 pattern。

常见的错法：
    忘了 required          模型会省掉一切可有可无的，{} 也算合格
    把推理写在答案之后     次序就是写的次序：先写答案，推理就只能替它辩护

规范：JSON Schema 2020-12 (json-schema.org)；RFC 6901（位置的写法）。

改哪里：支持一个关键字 → 在 ALLOWED 里登记，在写它的那个函数里用上；文本的样子 → json_text.py。
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from foundation.demonstration import run_demo
from inference.automaton import ByteAutomaton, Either, Node
from inference.json_text import (
    SCALARS,
    array_of,
    as_written,
    is_kind,
    object_of,
    string_of,
    write_characters,
)
from inference.number_bounds import LIMITS, number_of
from inference.regex_syntax import parse_regex

__all__ = ["parse_schema"]

# 只说明、不限制的关键字
NOTES = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
}
# 每种类型各认得哪些限制
ALLOWED: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    **{"number": set(LIMITS), "integer": set(LIMITS), "boolean": set(), "null": set()},
}
# 每一层要占 Python 的十几层调用
DEEPEST = 30  # 嵌套多少层


def parse_schema(schema: Any) -> Node:
    """schema（已经读成字典）→ 树。

    用法：Constraint.json_schema(schema) 会叫它，再搭成机器
    错误：不认识的关键字、自相矛盾的、绕回自己的 → ValueError，写明在 schema 的哪里
    """
    return Reader(schema).value(schema, "#", ())


class Reader:
    """把 schema 读成树；where 是此刻所在的位置，inside 是正在展开的 $ref。

    root 是整份 schema：$ref 的路径从它数起，与写在哪里无关
    """

    def __init__(self, root: Any) -> None:
        self.root = root
        # 同一个 $ref 只读一遍：几个定义一层引用一层两次，逐个展开会翻倍地长
        self.known: dict[str, Node] = {}

    def fail(self, where: str, problem: str) -> NoReturn:
        """位置在前：大 schema 里要先找得到地方。"""
        raise ValueError(f"json schema, {where}: {problem}") from None

    def value(self, schema: Any, where: str, inside: tuple[str, ...]) -> Node:
        """任何一个 schema；它里面的 schema 又会回到这里。

        次序：$ref 与 anyOf、现成的值、类型；前面的写了，后面的就不看，也不许写
        """
        # true 与 false 在规范里也是 schema，意思是「什么都行」「什么都不行」
        if not isinstance(schema, Mapping):
            self.fail(where, f"a schema must be an object such as {{'type': …}}, got {schema!r}")
        # 太深的，Python 的调用栈先受不了：在那之前说清楚
        if where.count("/") > DEEPEST:
            self.fail(where[:60] + "…", f"nested more than {DEEPEST} deep")
        # 说明不影响合不合格，先去掉；剩下的每一个都得有人认领
        rules = {name: rule for name, rule in schema.items() if name not in NOTES}
        # ① 这两样自己就说尽了，旁边不许再有别的限制
        alone: dict[str, Callable[..., Node]] = {"$ref": self.reference, "anyOf": self.any_of}
        #    它们旁边的限制要两边都守，等于求交集，没有做
        for name, read in alone.items():
            if name in rules:
                self.only(rules, {name}, name, where)
                return read(rules[name], where, inside)
        # ② 现成的值：照抄，所以类型只用来核对
        if "const" in rules or "enum" in rules:
            return self.listed(rules, where)
        # ③ 其余的看类型；限制属于其中哪一种类型都行
        if "type" not in rules:
            self.only(rules, set(), "a schema without type", where)
            self.fail(where, "needs type, enum, const, anyOf or $ref (any value: not supported)")
        #    {"type": ["string", "null"], "maxLength": 5}：null 不理会 maxLength
        kinds = self.kinds(rules.pop("type"), where)
        known = set().union(*(ALLOWED[kind] for kind in kinds))
        self.only(rules, known, "type " + " or ".join(kinds), where)
        # 几种类型的写法开头各不相同，写第一个字节就分得出是哪一种
        return Either(tuple(self.typed(kind, rules, where, inside) for kind in kinds))

    def kinds(self, given: Any, where: str) -> list[str]:
        """type 的值：一种类型，或者几种的列表；返回列表。

        列表等于几种类型任选，限制各归各的
        """
        found = [given] if isinstance(given, str) else given
        # 别的名字（例如 text、int、dict）是别的语言的类型。
        # [*ALLOWED] 而不是 ALLOWED：值可能是列表，查字典会因为不可哈希而出错
        if not isinstance(found, list) or not found or not all(one in [*ALLOWED] for one in found):
            self.fail(where, f"type must be among {', '.join(ALLOWED)}, got {given!r}")
        return found

    def only(self, rules: Mapping[str, Any], known: set[str], beside: str, where: str) -> None:
        """多出来的关键字，不认识就不能当作没看见；错误里列出此处认得的。"""
        for name in rules:
            # 说出第一个就够了：改掉它，再来一遍
            if name not in known:
                allowed = ", ".join(sorted(known - {beside})) or "nothing else"
                self.fail(
                    where, f"{name!r} is not supported beside {beside} (supported: {allowed})"
                )

    # ── 逐种类型 ────────────────────────────────────────────────────────

    def typed(self, kind: str, rules: Any, where: str, inside: tuple[str, ...]) -> Node:
        """七种类型；有内部结构的三种各有一段，数只有上下限，其余两种的样子是固定的。"""
        if kind == "object":
            return self.object(rules, where, inside)
        if kind == "array":
            # 什么都许的数组，同样可以无限嵌套
            if "items" not in rules:
                self.fail(where, "an array needs items (items of any kind are not supported)")
            # 每个元素都是同一种；前几个各不相同的（prefixItems）没有做
            item = self.value(rules["items"], f"{where}/items", inside)
            return array_of(item, *self.bounds(rules, "minItems", "maxItems", where))
        if kind == "string":
            return self.string(rules, where)
        if kind in ("integer", "number"):
            return self.written(lambda: number_of(kind, rules), where)
        return SCALARS[kind]

    def object(self, rules: Mapping[str, Any], where: str, inside: tuple[str, ...]) -> Node:
        """一个对象：每个属性（名字，值的树，是不是必须有），次序照 schema 里的。

        额外的属性从来不写，所以 additionalProperties 写什么都不会违反
        """
        properties, required = rules.get("properties"), rules.get("required", [])
        if not isinstance(properties, Mapping):
            self.fail(where, "an object needs properties (free keys are not supported)")
        # 规范许可 required 里写没有列出的名字；我们写不出它，所以不许。
        # 自己先查一遍：写了 required 却没有这个属性，就没有一份 JSON 合格。
        # 一个名字忘了写成列表，"name" in "rename" 会悄悄成立
        if not isinstance(required, list):
            self.fail(where, f"required must be a list of names, got {required!r}")
        # 少一个属性的定义，多半是改了名字忘了改这里
        for name in required:
            if name not in properties:
                self.fail(where, f"required names {name!r}, which is not among its properties")
        found = []
        for name, schema in properties.items():
            # 位置里的 / 与 ~ 要换个写法，才不会看成两层
            place = f"{where}/{name.replace('~', '~0').replace('/', '~1')}"
            found.append((name, self.value(schema, place, inside), name in required))
        # 名字本身也可能写不成 JSON
        return self.written(lambda: object_of(found), where)

    def string(self, rules: Mapping[str, Any], where: str) -> Node:
        """pattern 说的是读回来的文字，不是写出来的：里面的换行要写成转义。

        所以解析器换一个 write：同样的语法，每个字符按 JSON 的写法落笔
        """
        # 没有 pattern：任意字符，只管个数
        if "pattern" not in rules:
            return string_of(*self.bounds(rules, "minLength", "maxLength", where))
        # 两样都要守，得两台机器同时走；没有做。长度可以写进 pattern：^[a-z]{2,5}$
        if {"minLength", "maxLength"} & set(rules):
            self.fail(where, "pattern beside minLength or maxLength is not supported")
        # 正则表达式的错误也带上位置，并说出是 pattern
        name = f"json schema, {where}: pattern"
        pattern = rules["pattern"]
        inside = parse_regex(pattern, write=write_characters, search=True, name=name)
        return string_of(inside=inside)

    def bounds(
        self, rules: Mapping[str, Any], least: str, most: str, where: str
    ) -> tuple[int, int | None]:
        """两个个数；没写就是 0 与没有上限。

        minLength 与 maxLength 数字符，minItems 与 maxItems 数元素
        """
        # true 在 Python 里是 1，在 JSON 里不是数
        for name in (least, most):
            given = rules.get(name, 0)
            if isinstance(given, bool) or not isinstance(given, int) or given < 0:
                self.fail(where, f"{name} must be an integer >= 0, got {given!r}")
        # 上限没写是 None，不是 0：get 的默认值因此不同
        low, high = rules.get(least, 0), rules.get(most)
        if high is not None and low > high:
            self.fail(where, f"{least} {low} is larger than {most} {high}")
        return low, high

    # ── 现成的值、任选、引用 ────────────────────────────────────────────

    def listed(self, rules: Mapping[str, Any], where: str) -> Node:
        """enum 与 const：照抄其中之一；type 若写了，每个值都得是那一种。"""
        # 与 minLength 之类同写的 enum：一个个筛也行，但多半是写错了
        self.only(rules, {"enum", "const", "type"}, "enum or const", where)
        # 两样都写，取交集也至多剩一个值，多半是写错了
        if "enum" in rules and "const" in rules:
            self.fail(where, "give enum or const, not both")
        # const 就是只有一个值的 enum
        values = rules["enum"] if "enum" in rules else [rules["const"]]
        if not isinstance(values, list) or not values:
            self.fail(where, f"enum must be a list of at least 1 value, got {values!r}")
        # 类型对不上的值永远写不得，多半是手误：说出来，而不是悄悄少一个选项
        kinds = self.kinds(rules["type"], where) if "type" in rules else list(ALLOWED)
        for value in values:
            if not any(is_kind(value, kind) for kind in kinds):
                self.fail(where, f"the value {value!r} is not of type {' or '.join(kinds)}")
        return self.written(lambda: Either(tuple(map(as_written, values))), where)

    def written(self, make: Callable[[], Node], where: str) -> Node:
        """写不成 JSON 的值、写不出数的上下限，补上它在哪里。"""
        # 它们的错误只说值，不说位置
        try:
            return make()
        except ValueError as error:
            self.fail(where, str(error))

    def any_of(self, schemas: Any, where: str, inside: tuple[str, ...]) -> Node:
        """任选一个 schema；几个可以都认可同一个值，反正只写一次。"""
        # 空的 anyOf 谁也不认可
        if not isinstance(schemas, list) or not schemas:
            self.fail(where, f"anyOf must be a list of at least 1 schema, got {schemas!r}")
        # 位置带上是第几个：几个 schema 往往很像
        pairs = enumerate(schemas)
        return Either(tuple(self.value(one, f"{where}/anyOf/{i}", inside) for i, one in pairs))

    def reference(self, target: Any, where: str, inside: tuple[str, ...]) -> Node:
        """$ref：#/$defs/名；绕回自己的要用栈，有限自动机做不到。

        pydantic 里一个模型用了另一个，生成的就是 $defs 与 $ref
        """
        if not isinstance(target, str) or not target.startswith("#/"):
            self.fail(where, f"$ref must be like '#/$defs/name', got {target!r}")
        # 正在展开的又出现在自己里面：再展开也没有尽头
        if target in inside:
            self.fail(where, f"$ref {target!r} contains itself; recursion is not supported")
        # 一段一段地往下找；~1 是 /，~0 是 ~，次序不能反：~01 是「~1」两个字
        found = self.root
        for name in target[2:].split("/"):
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or name not in found:
                self.fail(where, f"$ref {target!r} points to nothing")
            found = found[name]
        # 找到的也是 schema，照样读；
        # 读过的直接用：树的结点可以出现在好几处
        if target not in self.known:
            self.known[target] = self.value(found, where, (*inside, target))
        return self.known[target]


# 两样必须有，两样可有可无；名字与值里都有汉字
DEMO_SCHEMA = {
    "type": "object",
    "properties": {
        "诗人": {"type": "string", "minLength": 2, "maxLength": 4},
        "朝代": {"enum": ["唐", "宋"]},
        "首数": {"type": ["integer", "null"], "minimum": 1, "maximum": 900},
        "佳句": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
    },
    "required": ["诗人", "朝代"],
}


def demo() -> None:
    """一份 schema 认得什么；没训练过的模型也写得出合格的 JSON；不认得的各怎么说。"""
    machine = ByteAutomaton(parse_schema(DEMO_SCHEMA), "the schema")
    print(f"1. 四个属性的 schema：{len(machine.table) - 1} 个状态")
    # 机器是搭好的，与模型、分词器都无关，拿几段文字试试。
    # 前两行合格：可有可无的可以不写，空格可以没有，引号要转义
    for text, good in (
        ('{"诗人": "李白", "朝代": "唐"}', True),
        ('{"诗人":"李白","朝代":"唐","佳句":["\\"床前\\"", "举头"]}', True),
        ('{"朝代": "唐", "诗人": "李白"}', False),  # 次序
        ('{"诗人": "李白", "朝代": "元"}', False),  # 不在 enum 里
        ('{"诗人": "李白", "朝代": "唐", "首数": 0}', False),  # 比 minimum 小
        ('{"诗人": "李白", "朝代": "唐", }', False),  # 多余的逗号
    ):
        print(f"   {'✓' if machine.matches(text.encode()) else '✗'} {text}")
        assert machine.matches(text.encode()) == good
    random_model_writes_json()
    # 不认得的关键字、绕回自己的引用、没有说清结构的对象
    print("3. 不认得的：")
    # 每一种都可能是用户真想要的，所以错误说清差在哪里
    for schema in (
        {"type": "integer", "multipleOf": 5},
        {"$defs": {"树": {"type": "array", "items": {"$ref": "#/$defs/树"}}}, "$ref": "#/$defs/树"},
        {"type": "object"},
    ):
        try:
            parse_schema(schema)
            raise AssertionError(f"{schema} was accepted")
        except ValueError as error:
            print(f"   {error}")


def random_model_writes_json() -> None:
    """随机权重、温度 2：写的是乱码，却句句是合格的 JSON。"""
    from gpt_model.config import preset
    from gpt_model.model import GPT
    from inference.constraints import Constraint
    from inference.generator import SamplingParams, TextGenerator
    from tokenization.tokenizer import Tokenizer

    # 字节级的词表，汉字多半是三个半截；模型的词表比它大，多出来的也不会被选中
    # 没学过 JSON，也没学过任何东西：格式全靠规则
    tokenizer = Tokenizer.train_bpe(["李白，唐；苏轼，宋。举头望明月"] * 3, 300)
    model = GPT(preset("modern-micro", vocab_size=320, dim=32, n_layers=1, n_heads=2))
    writer, rule = TextGenerator(model, tokenizer), Constraint.json_schema(DEMO_SCHEMA)
    print("2. 没训练过的模型，温度 2，至多 70 个词元：")
    for seed in range(3):
        params = SamplingParams(max_new_tokens=70, temperature=2.0, seed=seed)
        (found,) = writer.generate(["诗人："], params, constraint=rule)
        print(f"   {found.text}（{found.finish_reason}）")
        # 没有一句是「大致合格」：
        # 读得回来，而且每一样都合乎 schema
        value = json.loads(found.text)
        assert value["朝代"] in ("唐", "宋")
        assert 2 <= len(value["诗人"]) <= 4


if __name__ == "__main__":
    run_demo(demo)
