"""JSON that a random model writes validates with `jsonschema`; what we cannot keep is refused."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference import json_schema
from inference.automaton import ByteAutomaton
from inference.constraints import Constraint
from inference.generator import SamplingParams, TextGenerator
from inference.json_schema import parse_schema
from tokenization.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train_bpe(['{"name": "李白", "n": 1, "ok": true}, [null, "a"]'] * 3, 300)
torch.manual_seed(0)
WRITER = TextGenerator(
    GPT(GPTConfig(vocab_size=300, max_seq_len=600, dim=8, n_layers=1, n_heads=2)), TOKENIZER
)
PROPERTY_NAMES = ["a", "名", 'quote"', "back\\slash", "a b"]


def bounds(least, most):
    """minX and maxX in the right order, either of them absent."""
    return st.tuples(st.integers(0, 2), st.integers(2, 4), st.integers(0, 3)).map(
        lambda t: {k: v for k, v, on in ((least, t[0], t[2] & 1), (most, t[1], t[2] & 2)) if on}
    )


values = st.one_of(
    st.text(alphabet='a"\\\n春', max_size=4), st.integers(-9, 9), st.booleans(), st.none()
)
strings = st.one_of(
    bounds("minLength", "maxLength"),
    st.sampled_from(["^[ab]+$", "春", "^a|b$", '["\\\\]{2}', r"^\s$", r"^\d{3}-\d{2}$"]).map(
        lambda pattern: {"pattern": pattern}
    ),
).map(lambda rules: {"type": "string", **rules})
leaves = st.one_of(
    strings,
    st.sampled_from(["integer", "number", "boolean", "null"]).map(lambda kind: {"type": kind}),
    st.lists(values, min_size=1, max_size=3).map(lambda listed: {"enum": listed}),
    values.map(lambda value: {"const": value}),
    st.tuples(
        st.sampled_from(["integer", "number"]), st.integers(-150, 150), st.integers(0, 300)
    ).map(lambda t: {"type": t[0], "minimum": t[1], "exclusiveMaximum": t[1] + t[2] + 0.5}),
    st.just({"type": ["string", "null"], "maxLength": 2}),
)


@st.composite
def objects(draw, inner):
    names = draw(st.lists(st.sampled_from(PROPERTY_NAMES), unique=True, max_size=4))
    required = [name for name in names if draw(st.booleans())]
    properties = {name: draw(inner) for name in names}
    return {"type": "object", "properties": properties, "required": required}


def grow(inner):
    arrays = st.tuples(inner, bounds("minItems", "maxItems"))
    return st.one_of(
        objects(inner),
        arrays.map(lambda pair: {"type": "array", "items": pair[0], **pair[1]}),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
    )


schemas = st.recursive(leaves, grow, max_leaves=6)


@settings(max_examples=60)
@given(schema=schemas, seed=st.integers(0, 9), temperature=st.sampled_from([0.0, 1.0, 5.0]))
def test_what_is_written_validates(schema, seed, temperature):
    Draft202012Validator.check_schema(schema)
    params = SamplingParams(max_new_tokens=60, temperature=temperature, seed=seed)
    try:
        found = WRITER.generate("a", params, constraint=Constraint.json_schema(schema))
    except ValueError as error:
        if "leaves room for 60 new tokens" not in str(error):
            raise
        return
    Draft202012Validator(schema).validate(json.loads(found.text))


@settings(max_examples=100)
@given(schema=schemas, data=st.data())
def test_valid_values_are_accepted_as_python_writes_them(schema, data):
    """Not only some valid JSON: every value of these kinds, in the default layout of `json`."""
    value = data.draw(valid(schema))
    text = json.dumps(value, ensure_ascii=False)
    machine = ByteAutomaton(parse_schema(schema), "schema")
    assert machine.matches(text.encode())
    assert machine.matches(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    assert not machine.matches(text.encode() + b" ")


def valid(schema):
    """Values that a schema of the strategy above allows."""
    if "anyOf" in schema:
        return st.sampled_from(schema["anyOf"]).flatmap(valid)
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema["type"]
    if "minimum" in schema:
        low, high = schema["minimum"], schema["exclusiveMaximum"]
        whole = st.integers(low, int(high - 0.5))
        return whole if kind == "integer" else st.one_of(whole, whole.map(lambda n: n + 0.25))
    if kind == "object":
        required, found = schema["required"], {}
        for name, inner in schema["properties"].items():
            pair = valid(inner).map(lambda value, name=name: {name: value})
            found[name] = pair if name in required else st.one_of(st.just({}), pair)
        parts = st.tuples(*found.values())
        return parts.map(lambda several: {k: v for part in several for k, v in part.items()})
    if kind == "array":
        most = schema.get("maxItems", 5)
        return st.lists(valid(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].replace("$", r"\Z"), alphabet='ab春"\\\n \t1-')
    text = st.text(
        alphabet='ab春🌕"\\/\n\t\x7f',
        min_size=schema.get("minLength", 0),
        max_size=schema.get("maxLength", 6),
    )
    plain = {
        "string": text,
        "integer": st.integers(-(10**15) + 1, 10**15 - 1),
        "number": st.integers(-(10**6), 10**6).map(lambda n: n / 1000),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return text | st.none() if isinstance(kind, list) else plain[kind]


def test_references_are_followed(monkeypatch):
    schema = {
        "$defs": {
            "a/b": {"type": "integer"},
            "pair": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}},
        },
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/pair"}, "y": {"$ref": "#/$defs/pair"}},
        "required": ["x"],
    }
    machine = ByteAutomaton(parse_schema(schema), "schema")
    assert machine.matches(b'{"x": [1, 2], "y": []}')
    assert not machine.matches(b'{"y": []}')
    # each definition names the next twice: read once each, not 2¹⁴ times
    calls = []
    value = json_schema.Reader.value
    monkeypatch.setattr(
        json_schema.Reader, "value", lambda *given: calls.append(1) or value(*given)
    )
    doubling = {
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(14)
    }
    doubling["d14"] = {"type": "null"}
    machine = ByteAutomaton(parse_schema({"$defs": doubling, "$ref": "#/$defs/d0"}), "schema")
    assert machine.matches(b"null")
    assert len(calls) < 100


def test_numbers_stay_finite_and_exact():
    machine = ByteAutomaton(parse_schema({"type": "number"}), "schema")
    assert not machine.matches(b"1e999")
    assert not machine.matches(b"01")
    assert not machine.matches(b"1.")
    assert machine.matches(b"-0.5E-12")
    machine = ByteAutomaton(parse_schema({"type": "integer"}), "schema")
    assert machine.matches(b"999999999999999")
    assert not machine.matches(b"9999999999999999")


DEEP = {"type": "null"}
for _ in range(40):
    DEEP = {"type": "array", "items": DEEP}
REFUSED = [
    ({"type": "string", "minimum": 0}, "'minimum' is not supported beside type string"),
    ({"enum": [1, 5], "minimum": 3}, "'minimum' is not supported beside enum or const"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "at most 15 digits has minimum 3 and max"),
    ({"type": "number", "minimum": "3"}, "minimum must be a finite number, got '3'"),
    (
        {"type": "object", "properties": {"n": {"type": "integer", "exclusiveMinimum": True}}},
        "json schema, #/n: exclusiveMinimum must be a finite number, got True",
    ),
    ({"type": "array"}, "needs items"),
    ({"type": "object"}, "needs properties"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}, "names 'b'"),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "required": "a"}, "list of names"),
    ({"type": "string", "pattern": "a", "maxLength": 3}, "pattern beside minLength or maxLength"),
    ({"type": "string", "pattern": "a(?=b)"}, "#: pattern 'a(?=b)', position 1: lookahead"),
    ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength 5 is larger than maxLength 2"),
    ({"type": "string", "minLength": -1}, "minLength must be an integer >= 0, got -1"),
    ({"type": "text"}, "type must be among object"),
    ({"type": [["string"]]}, "type must be among object"),
    ({"type": []}, "type must be among object"),
    ({"enum": []}, "at least 1 value"),
    ({"enum": ["a", 5], "type": "string"}, "the value 5 is not of type string"),
    ({"enum": [True], "type": "integer"}, "the value True is not of type integer"),
    ({"const": 1, "enum": [1]}, "not both"),
    ({"const": float("nan")}, "cannot be written as JSON"),
    ({"const": "\ud800"}, "cannot be written as JSON"),
    ({"anyOf": []}, "at least 1 schema"),
    ({"anyOf": [{"type": "null"}], "type": "null"}, "'type' is not supported beside anyOf"),
    ({"$ref": "other.json"}, "$ref must be like"),
    ({"$ref": "#/$defs/none"}, "points to nothing"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "recursion is not supported"),
    ({}, "needs type, enum, const, anyOf or $ref"),
    (True, "a schema must be an object"),
    (DEEP, "nested more than 30 deep"),
    ({"type": "object", "properties": {"a/b": {"type": "array"}}}, "#/a~1b: an array needs items"),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_is_not_supported_is_named_with_its_place(schema, message):
    with pytest.raises(ValueError, match="json schema, #") as caught:
        parse_schema(schema)
    assert message in str(caught.value)


# every assertion of the 2020-12 vocabularies that we do not keep, and older ones people still write
NOT_KEPT = {
    "integer": {"multipleOf": 5, "format": "int32", "not": {"const": 3}, "divisibleBy": 2},
    "number": {"multipleOf": 0.5, "format": "float", "allOf": [{"minimum": 1}]},
    "string": {
        **{"format": "date", "contentEncoding": "base64", "contentMediaType": "text/html"},
        **{"contentSchema": {"type": "null"}, "nullable": True},
    },
    "array": {
        **{"uniqueItems": True, "contains": {"type": "null"}, "minContains": 1, "maxContains": 2},
        **{"prefixItems": [{"type": "null"}], "unevaluatedItems": False, "additionalItems": False},
    },
    "object": {
        **{"patternProperties": {"^a": {}}, "propertyNames": {"maxLength": 3}, "minProperties": 1},
        **{"maxProperties": 2, "dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {}}},
        **{"dependencies": {"a": ["b"]}, "unevaluatedProperties": False, "if": {}, "then": {}},
        **{"else": {}, "oneOf": [{"required": ["a"]}], "$dynamicRef": "#a"},
    },
}
BASES = {
    **{kind: {"type": kind} for kind in ("integer", "number", "string")},
    "array": {"type": "array", "items": {"type": "null"}},
    "object": {"type": "object", "properties": {"a": {"type": "null"}}},
}


@pytest.mark.parametrize(
    ("kind", "keyword"), [(kind, name) for kind, rules in NOT_KEPT.items() for name in rules]
)
def test_a_keyword_we_do_not_keep_is_refused_where_it_stands(kind, keyword):
    inner = {**BASES[kind], keyword: NOT_KEPT[kind][keyword]}
    schema = {"type": "object", "properties": {"x": {"type": "array", "items": inner}}}
    message = f"json schema, #/x/items: {keyword!r} is not supported beside type {kind}"
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_schema(schema)
    parse_schema({**schema, "properties": {"x": {"type": "array", "items": BASES[kind]}}})
