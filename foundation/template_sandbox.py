"""沙箱：别人写的对话模板是一段程序，它只许做一件事，几句话 → 一段文本。

A chat template is a program in Jinja that came with a model. What it could do wrong, and the wall:

    ''.__class__.__subclasses__()        the sandbox: no underscores, only the types of data
    include a file                       no loader: there is no file
    range(10**9), endless loops          it runs in a process that is killed (template_process.py)
    'x' * 10**10, s = s ~ s forty times  every operation tells its length before it is done
    gigabytes of output                  counted piece by piece

The conventions are those of transformers, so that others' templates render the same: trim_blocks,
lstrip_blocks, break and continue, tojson without HTML escapes, raise_exception, strftime_now,
{% generation %} around what the assistant says.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

__all__ = ["MAX_MEMORY", "MAX_TEXT", "TemplateLimit", "answer", "make_environment"]

# A very long conversation is a few hundred kilobytes of text.
MAX_TEXT = 1 << 23
# All strings made by one rendering, added up: those alive can never be more.
MAX_TOTAL = 1 << 27
# Bits of an integer: 2 ** 10 ** 9 takes minutes.
MAX_BITS = 4096
# Address space of the process, where the system can limit it.
MAX_MEMORY = 1 << 30

# Functions whose argument is a width or a count: it decides how long the result is.
WIDTHS = frozenset(
    "center ljust rjust zfill expandtabs indent wordwrap truncate batch slice tojson round".split()
)
# The only types whose attributes a template may reach; what comes in is JSON.
DATA_TYPES = (str, int, float, list, tuple, dict, set, type(None), Undefined)
HELPERS = (Namespace, LoopContext, Cycler, Joiner, Macro)


class TemplateLimit(Exception):  # noqa: N818 - said of a template, not of us
    """The template wants too much."""


class Budget:
    """How many characters one rendering may still make.

    >>> budget = Budget()
    >>> budget.spend(MAX_TEXT + 1)
    Traceback (most recent call last):
    foundation.template_sandbox.TemplateLimit: a value of 8388609 items; at most ...
    """

    def __init__(self) -> None:
        self.left = MAX_TOTAL

    def spend(self, length: int) -> None:
        """Count a value of this length; neither one nor all together may be too long."""
        if length > MAX_TEXT:
            raise TemplateLimit(f"a value of {length} items; at most {MAX_TEXT} are allowed")
        self.left -= length
        if self.left < 0:
            raise TemplateLimit(f"it makes more than {MAX_TOTAL} characters on the way")


def length_of(value: Any) -> int:
    """The length of a text or a list; anything else counts as 1."""
    return len(value) if isinstance(value, (str, list, tuple, dict)) else 1


def length_of_product(operator: str, left: Any, right: Any) -> int:
    """How long the result of an operation will be, known before it is done.

    >>> length_of_product("*", "ab", 10**9), length_of_product("+", "ab", "c")
    (2000000000, 3)
    """
    both_numbers = all(isinstance(side, (int, float)) for side in (left, right))
    if both_numbers:
        # a product adds the bits of its factors, a power multiplies them
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            bits = bits * abs(right) if operator == "**" else bits + right.bit_length()
            if bits > MAX_BITS:
                raise TemplateLimit(f"a number of {bits} bits; at most {MAX_BITS} are allowed")
        return 1
    if operator == "*":
        count, items = (left, right) if isinstance(left, int) else (right, left)
        return max(0, count) * length_of(items) if isinstance(count, int) else 1
    if operator == "%" and isinstance(left, str):
        check_format("%", left)
    return length_of(left) + length_of(right)


# A width of five digits, or given by an argument: a few characters that write a billion blanks.
WIDE = {"%": re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)"), "{": re.compile(r"\{[^{}]*(\d{5}|\{)")}


def check_format(mark: str, text: str) -> None:
    """Refuse formats that are too wide; `mark` is "%" or "{", the two ways to write them.

    >>> check_format("{", "{:1000000000}")
    Traceback (most recent call last):
    foundation.template_sandbox.TemplateLimit: a format with a width of five digits or ...
    """
    if WIDE[mark].search(text):
        raise TemplateLimit("a format with a width of five digits or a width of its own")


def length_of_call(name: str, owner: Any, arguments: Iterable[Any]) -> int:
    """How long the result of a call will be: replace and join multiply, a width is a length.

    >>> length_of_call("replace", "aaa", ["a", "bb"]), length_of_call("join", "-", [["a", "b"]])
    (6, 4)
    """
    given = list(arguments)
    if name in WIDTHS:
        return max([length_of(owner), *(abs(n) for n in given if isinstance(n, int))])
    if name == "replace" and isinstance(owner, str) and len(given) >= 2:
        old, new = str(given[0]), str(given[1])
        return len(owner) + owner.count(old) * max(0, len(new) - len(old))
    if name == "join":
        # the method is sep.join(items), the filter items|join(sep)
        items = given[0] if isinstance(owner, str) and given else owner
        separator = owner if isinstance(owner, str) else (given[0] if given else "")
        if isinstance(items, (list, tuple)):
            return sum(length_of(item) + length_of(separator) for item in items)
    if name in ("format", "format_map") and isinstance(owner, str):
        # the method "…".format has braces, the filter "…"|format percent signs
        check_format("{", owner)
        check_format("%", owner)
    return 1


class BoundedGenerator(CodeGenerator):
    """Compiles `~` into a call that has a limit; the sandbox asks about other operators anyway."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802
        """Named by jinja2, which looks methods up by the name of the node."""
        self.write("environment.join_parts((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with a limit on every step."""

    code_generator_class = BoundedGenerator
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    budget = Budget()

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Add, multiply, power, remainder: the length first."""
        self.budget.spend(length_of_product(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call a function or a method: estimate, call, then look how long it really is."""
        # the sandbox has wrapped str.format; its text is that of the method inside
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        name = getattr(function, "__name__", "")
        if isinstance(owner, (str, list)):
            self.budget.spend(length_of_call(name, owner, [*arguments, *named.values()]))
        result = super().call(context, function, *arguments, **named)
        self.budget.spend(length_of(result))
        return result

    def join_parts(self, parts: Iterable[Any]) -> str:
        """What `~` means: each part as text, joined."""
        texts = [str(part) for part in parts]
        self.budget.spend(sum(map(len, texts)))
        return "".join(texts)

    def concat(self, parts: Iterable[str]) -> str:
        """Joins the output of set blocks and of macros."""
        texts = list(parts)
        self.budget.spend(sum(map(len, texts)))
        return "".join(texts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only the methods of data and of a few helpers; nothing of functions, classes, modules."""
        known = isinstance(obj, DATA_TYPES) or isinstance(obj, HELPERS)
        return known and super().is_safe_attribute(obj, attr, value)


class Generation(Extension):
    """{% generation %}…{% endgeneration %}: the author says that the assistant wrote this."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        """Turn the mark into a call that renders its content and notes it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = str(caller())
        self.environment.marked.append(text)  # type: ignore[attr-defined]
        return text


def bounded_filter(environment: BoundedEnvironment, name: str, function: Any) -> Any:
    """A filter with the same limits; wraps keeps the marks by which jinja2 passes environments."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        # some filters get the environment or the context before the value
        given = list(arguments[1:] if hasattr(function, "jinja_pass_arg") else arguments)
        values = [*given[1:], *named.values()]
        environment.budget.spend(length_of_call(name, given[0] if given else "", values))
        result = function(*arguments, **named)
        environment.budget.spend(length_of(result))
        return result

    return guarded


def make_environment() -> BoundedEnvironment:
    """An environment with the conventions of transformers, and the limits."""
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.extend(marked=[])

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        check_format("%", pattern)
        return datetime.datetime.now().strftime(pattern)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        # the built-in one writes < > & as \u003c, for web pages; models have never seen that
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def new_dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
        # a function, not the class dict, which has attributes to reach
        return dict(*arguments, **named)

    environment.filters["tojson"] = tojson
    for name, function in list(environment.filters.items()):
        environment.filters[name] = bounded_filter(environment, name, function)
    # of no use here
    environment.globals.pop("lipsum", None)
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": new_dict,
    }
    return environment


def render(
    environment: BoundedEnvironment, template: jinja2.Template, variables: dict[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Render once: the text, and the spans (in characters) that {% generation %} marks.

    >>> environment = make_environment()
    >>> template = environment.from_string("ask{% generation %}42{% endgeneration %}.")
    >>> render(environment, template, {})
    ('ask42.', [(3, 5)])
    """
    environment.budget = Budget()
    marked: list[str] = environment.marked  # type: ignore[attr-defined]
    marked.clear()
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    for piece in template.generate(variables):
        # what is marked comes out as a piece of its own
        for text in marked:
            if text != piece:
                raise TemplateLimit("{% generation %} must not stand inside a macro or a set block")
            spans.append((length, length + len(text)))
        marked.clear()
        pieces.append(piece)
        length += len(piece)
        if length > MAX_TEXT:
            raise TemplateLimit(f"it writes more than {MAX_TEXT} characters")
    return "".join(pieces), spans


def answer(environment: BoundedEnvironment, request: dict[str, Any]) -> dict[str, Any]:
    """One request, one answer; whatever is wrong with the template becomes a sentence."""
    try:
        template = compiled(environment, request["template"])
        variables = request["variables"]
        return {"runs": [render(environment, template, variables | run) for run in request["runs"]]}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"it is not valid Jinja: {error.message} at line {error.lineno}"}
    except SecurityError as error:
        return {"error": f"it reaches for what is forbidden: {error}"}
    except TemplateLimit as error:
        return {"error": f"it goes beyond a limit: {error}"}
    except jinja2.TemplateError as error:
        return {"error": f"it says: {error}"}
    except RecursionError:
        return {"error": "it goes beyond a limit: it is nested or calls itself too deeply"}
    except MemoryError:
        return {"error": f"it goes beyond a limit: more than {MAX_MEMORY >> 20} MiB of memory"}
    except Exception as error:  # a template can make anything raise
        return {"error": f"it fails: {type(error).__name__}: {error}"}


@functools.lru_cache(maxsize=8)
def compiled(environment: BoundedEnvironment, source: str) -> jinja2.Template:
    """The compiled template; the latest few are kept, for one is used thousands of times."""
    return environment.from_string(source)
