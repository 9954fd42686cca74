"""tokenizer_config.json and the template files beside it."""

import json

import pytest

from tokenization.chat_template import render_chat
from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_settings import MAX_TEMPLATE, TokenizerSettings, load_settings

BPE = Tokenizer.train_bpe(["low low"], 260, special_tokens=["<|endoftext|>", "</s>"])


def write(folder, values):
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")


def test_nothing_there_is_nothing_set(tmp_path):
    assert load_settings(tmp_path) == TokenizerSettings()
    BPE.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_files_override_and_named_templates_are_kept(tmp_path):
    named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "r"}]
    write(tmp_path, {"chat_template": named, "bos_token": None, "eos_token": {"content": "</s>"}})
    (tmp_path / "chat_template.jinja").write_text("b", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    extra = tmp_path / "additional_chat_templates" / "tool_use.jinja"
    extra.write_text("t {{ tools[0].name }}", encoding="utf-8")
    settings = load_settings(tmp_path)
    assert settings.tokens == {"eos_token": "</s>"}
    assert settings.templates == {"default": "b", "rag": "r", "tool_use": "t {{ tools[0].name }}"}
    BPE.save(tmp_path / "plain")
    tokenizer = Tokenizer(BPE.to_json(), "t", settings)
    talk = [{"role": "user", "content": "x"}]
    assert render_chat(tokenizer, talk).text == "b"
    assert render_chat(tokenizer, talk, tools=[{"name": "n"}]).text == "t n"


def test_an_end_that_is_no_special_token_ends_too():
    tokenizer = Tokenizer(BPE.to_json(), "t", TokenizerSettings({"eos_token": "w"}))
    assert tokenizer.stop_ids == {0, *tokenizer.encode("w")}


def test_saved_with_the_tokenizer_and_loaded_with_it(tmp_path):
    for templates in ({"default": "{{ 1 }}"}, {"default": "a", "tool_use": "b"}, {}):
        settings = TokenizerSettings({"eos_token": "</s>"}, templates)
        Tokenizer(BPE.to_json(), "t", settings).save(tmp_path)
        again = Tokenizer.load(tmp_path)
        assert again.settings == settings
        assert again.fingerprint == BPE.fingerprint
        assert again.stop_ids == {0, 1}
    # a file alone says nothing of its folder
    assert Tokenizer.load(tmp_path / "tokenizer.json").settings == TokenizerSettings()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "must hold a JSON object, got list"),
        ({"eos_token": 3}, "eos_token must be a non-empty string, got 3"),
        ({"eos_token": ""}, "eos_token must be a non-empty string, got ''"),
        ({"pad_token": {"content": None, "lstrip": True}}, None),
        ({"chat_template": {"default": "a"}}, "must be a string or a list of named templates"),
        ({"chat_template": [{"name": "a"}]}, 'got {"name": "a"}'),
        ({"chat_template": [{"name": "a", "template": "x"}] * 2}, "names 'a' twice"),
        ({"chat_template": "x" * (MAX_TEMPLATE + 1)}, "1048577 characters, at most 1048576"),
        ({"bos_token": "<nope>"}, "bos_token is '<nope>', which is not among the 260 tokens"),
        ({"eos_token": "l"}, None),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, values, words):
    BPE.save(tmp_path)
    write(tmp_path, values)
    if words is None:
        Tokenizer.load(tmp_path)
        return
    with pytest.raises(ValueError, match=str(words).replace("[", r"\[")) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
