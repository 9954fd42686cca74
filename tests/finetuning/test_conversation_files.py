"""Files of conversations: four shapes, two kinds of file, and what is wrong on which line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning.conversation_files import read_conversations, read_pairs
from finetuning.conversations import Conversation, Message, Pair

TWO = (Message("user", "2+2="), Message("assistant", "4"))


def write(tmp_path, text):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(text.encode("utf-8"))
    return path


def test_pairs_are_read_as_they_stand(tmp_path):
    path = write(
        tmp_path,
        '\ufeff{"prompt": "问：\\n", "answer": "答 "}\r\n\r\n{"prompt":"a","answer":"b","x":1}',
    )
    assert read_pairs(path) == [Pair("问：\n", "答 "), Pair("a", "b")]
    path = write(tmp_path, '{"question": "a", "reply": "b"}')
    assert read_pairs(path, prompt_key="question", answer_key="reply") == [Pair("a", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pairs; write one JSON object per line"),
        ("\n \n", "holds no pairs"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": ', r"line 2 of .* is not valid JSON.*column"),
        ('["a", "b"]', "line 1 of .* must hold a JSON object, got list"),
        ('{"prompt": "a", "anwser": "b"}', "no key 'answer', only .*; did you mean 'anwser'"),
        ("{}", "no key 'prompt', only nothing"),
        ('{"prompt": "a", "answer": null}', "line 1 .*answer must be a non-empty string, got None"),
        ('{"prompt": "a", "answer": 4}', "answer must be a non-empty string, got 4"),
        ('{"prompt": "", "answer": "b"}', "prompt must be a non-empty string, got ''"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_line_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(write(tmp_path, text))


def test_bad_utf8_and_missing_files_are_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "b"}')
    with pytest.raises(
        ValueError, match=r"latin\.jsonl is not valid UTF-8: byte 0xe9 at offset 15"
    ):
        read_pairs(tmp_path / "latin.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        read_pairs(tmp_path / "nothing.jsonl")


def talk(*turns):
    return Conversation(tuple(Message(role, text) for role, text in turns))


SHAPES = {
    "messages": (
        {"messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": " 2+2=\n"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": [{"type": "text", "text": "3"}, {"text": "+3"}]},
            {"role": "assistant", "content": "6 "},
        ], "id": 3},
        talk(("system", "be brief"), ("user", " 2+2=\n"), ("assistant", "4"),
             ("user", "3+3"), ("assistant", "6 ")),
    ),
    "sharegpt": (
        {"system": "be brief", "conversations": [
            {"from": "human", "value": "2+2="}, {"from": "gpt", "value": "4"},
        ]},
        talk(("system", "be brief"), ("user", "2+2="), ("assistant", "4")),
    ),
    "alpaca": (
        {"instruction": "add", "input": "2 and 2", "output": "4"},
        talk(("user", "add\n\n2 and 2"), ("assistant", "4")),
    ),
    "alpaca without input": (
        {"instruction": "2+2=", "input": "", "output": "4"}, Conversation(TWO)
    ),
    "instruction and response": ({"instruction": "2+2=", "response": "4"}, Conversation(TWO)),
    "prompt and response": ({"prompt": "2+2=", "response": "4", "system": None}, Conversation(TWO)),
    "prompt and completion": ({"prompt": "2+2=", "completion": "4"}, Conversation(TWO)),
    "prompt and answer": ({"prompt": "2+2=", "answer": "4"}, Conversation(TWO)),
    "the whole before its first question": (
        {"prompt": "x", "messages": [
            {"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]},
        Conversation(TWO),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), SHAPES.values(), ids=SHAPES.keys())
def test_each_shape_in_each_kind_of_file(tmp_path, value, expected):
    line = json.dumps(value)
    texts = {
        "a.jsonl": f"{line}\n\n{line}\n",
        "a.json": json.dumps([value, value], indent=2),
        "lines.json": f"{line}\n{line}",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_conversations(tmp_path / name) == [expected, expected]


def test_shapes_may_be_mixed(tmp_path):
    text = "\n".join(json.dumps(value) for value, _ in SHAPES.values())
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    assert read_conversations(tmp_path / "a.jsonl") == [found for _, found in SHAPES.values()]


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"mesages": [USER, ANSWER]}, "line 2 of .* the keys mesages, .*did you mean 'messages'"),
        ({}, r"has the keys \(none\), but none of messages, conversations, instruction, prompt"),
        ([USER, ANSWER], "line 2 of .* must hold a JSON object, got list"),
        ({"messages": []}, r"messages must be a non-empty list, got \[\]"),
        ({"messages": "hello"}, "messages must be a non-empty list, got 'hello'"),
        ({"messages": [USER, "a"]}, "messages 2 in line 2 of .* must hold a JSON object, got str"),
        ({"messages": [USER, {"role": "asistant", "content": "a"}]},
         "messages 2 in line 2 .*role must be one of .*got 'asistant'"),
        ({"messages": [USER, {"role": "tool", "content": "a"}]}, "got 'tool'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]},
         "content must be a non-empty string, got None"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
         "a part of messages 1 in line 2 of .* has no key 'text'"),
        ({"messages": [{"content": "q"}, ANSWER]}, "messages 1 in .* has no key 'role'"),
        ({"messages": [USER]}, "the last message must be the assistant's"),
        ({"messages": [USER, ANSWER, USER]}, "the last message must be the assistant's"),
        ({"messages": [ANSWER, USER, ANSWER]}, "the first to speak must be the user"),
        ({"messages": [{"role": "system", "content": "s"}, ANSWER]}, "first to speak must be"),
        ({"messages": [{"role": "system", "content": "s"}]}, "first to speak must be the user"),
        ({"messages": [USER, {"role": "system", "content": "s"}, ANSWER]}, "must come first"),
        ({"conversations": [{"from": "human", "content": "q"}]}, "no key 'value', only from, con"),
        ({"instruction": "q", "input": 3, "output": "a"}, "input must be a non-empty .*, got 3"),
        ({"instruction": "q"}, "has no key 'output', only instruction"),
        ({"prompt": "q", "respnse": "a"}, "no key 'response', .*did you mean 'respnse'"),
        ({"prompt": "q", "response": "\ud800"}, "response in line 2 of .*"),
    ],
)  # fmt: skip
def test_what_is_not_a_conversation_is_refused_with_its_line(tmp_path, value, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "q", "answer": "a"}}\n{json.dumps(value)}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_conversations(path)


GOOD = '{"prompt": "q", "answer": "a"}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "holds no conversations; write one per line"),
        ("a.json", " [ ]", "holds no conversations"),
        ("a.json", f"[\n{GOOD},\n{GOOD},\n\n {{]", r"item 3 \(line 5\) of .* is not valid JSON"),
        # inside an item that goes over several lines: the line and the column of the mistake
        ("a.json", f'[\n{GOOD},\n{{\n  "prompt": "q",\n  "answer": oops\n}}]',
         r"item 2 \(line 3\) of .* is not valid JSON: Expecting value, line 5, column 13$"),
        ("a.jsonl", f'{GOOD}\n  {{"prompt": oops}}', r"line 2 .*Expecting value, column 14$"),
        # one object, or several, printed prettily
        ("a.json", '{\n  "prompt": "q",\n  "answer": "a"\n}', "line 1 of .*; one JSON object per "),
        ("a.jsonl", '[\n{"prompt": "q"}]', r"line 1 of .*a list \[ … \] of them in a .json file"),
        ("a.json", f"[{GOOD}\n{GOOD}]", r"item 1 \(line 1\) .*neither a comma nor the end"),
        ("a.json", f"[{GOOD},", "the list is cut off"),
        ("a.json", f"[{GOOD}] {GOOD}", "something follows it"),
        ("a.json", f"[{GOOD}, 7]", r"item 2 \(line 1\) of .* must hold a JSON object, got int"),
        ("a.jsonl", f"{GOOD}\n" + "[" * 200_000, "line 2 of .* is not valid JSON"),
        ("a.jsonl", "9" * 5000, "line 1 of .* (is not valid JSON|must hold)"),
    ],
)  # fmt: skip
def test_broken_files_are_refused_with_the_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_conversations(tmp_path / name)


@given(st.lists(st.sampled_from(["\n", " ", "\t", "\r\n"]), max_size=6), st.integers(0, 3))
def test_items_of_a_list_know_their_line(tmp_path_factory, spaces, n_good):
    path = tmp_path_factory.mktemp("list") / "a.json"
    text = "[" + f"{GOOD},\n" * n_good + "".join(spaces)
    path.write_bytes((text + '{"x": 1}]').encode())
    line = 1 + path.read_bytes()[: len(text)].count(b"\n")
    with pytest.raises(ValueError, match=rf"item {n_good + 1} \(line {line}\) of"):
        read_conversations(path)
