"""What is written of a tokenizer, and what is refused; llama.cpp's own reading is in parity/."""

import json
from itertools import accumulate, islice

import gguf
import pytest

from gpt_model.config import preset
from gpt_model.gguf_export import export_gguf
from gpt_model.gguf_tokenizer import KNOWN_SPLITS, tokenizer_metadata
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_settings import TokenizerSettings
from training.corpus import load_corpus

TEXT = ["举头望明月，低头思故乡。low low lower"] * 2
PREFIX = "tokenizer.ggml."


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train_bpe(TEXT, 280, ["<|endoftext|>", "<|im_end|>"])


def changed(tokenizer, **changes):
    """The same tokenizer.json with other entries; model__x changes x of the model."""
    values = json.loads(tokenizer.to_json())
    for name, value in changes.items():
        if name.startswith("model__"):
            values["model"][name.removeprefix("model__")] = value
        else:
            values[name] = value
    return Tokenizer.from_json(json.dumps(values))


def with_split(tokenizer, name):
    def step(kind, *settings):
        if kind == "Split":
            pattern, behavior, invert = settings
            return {
                "type": kind,
                "pattern": {"Regex": pattern},
                "behavior": behavior,
                "invert": invert,
            }
        if kind == "Digits":
            return {"type": kind, "individual_digits": settings[0]}
        names = ("add_prefix_space", "use_regex")
        return {"type": kind, **dict(zip(names, settings, strict=True)), "trim_offsets": True}

    steps = [step(*known) for known in KNOWN_SPLITS[name]]
    return changed(
        tokenizer,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        model__ignore_merges=name == "llama-bpe",
    )


@pytest.mark.parametrize("name", KNOWN_SPLITS)
def test_known_splits_are_found_by_their_rule(bpe, name):
    assert tokenizer_metadata(with_split(bpe, name), 280)[PREFIX + "pre"] == name


def test_the_rule_counts_to_the_letter(bpe):
    values = json.loads(with_split(bpe, "qwen2").to_json())
    pattern = values["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = pattern["Regex"].replace(r"\p{N}|", r"\p{N}{1,2}|")
    with pytest.raises(ValueError, match="does not know this tokenizer's way.*gpt-2.*qwen2"):
        tokenizer_metadata(Tokenizer.from_json(json.dumps(values)), 280)


def test_what_is_written_reads_back(bpe, tmp_path):
    tokenizer = with_split(bpe, "qwen2")
    values = json.loads(tokenizer.to_json())
    tool = {**values["added_tokens"][0], "id": 280, "content": "<tool>", "special": False}
    values["added_tokens"].append(tool)
    tokenizer = Tokenizer.from_json(json.dumps(values))
    model = GPT(preset("gpt-micro", vocab_size=300, n_layers=1))
    export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tokens, types = keys[PREFIX + "tokens"], keys[PREFIX + "token_type"]
    assert len(tokens) == len(types) == 300
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    assert {token: i for i, token in enumerate(tokens[:280])} == vocabulary
    assert tokens[280:282] == ["<tool>", "[PAD281]"]
    assert types == [3, 3, *[1] * 278, 4, *[5] * 19]
    merges = json.loads(tokenizer.to_json())["model"]["merges"]
    assert keys[PREFIX + "merges"] == [" ".join(pair) for pair in merges]
    wanted = {"model": "gpt2", "pre": "qwen2", "bos_token_id": 0, "eos_token_id": 0}
    wanted |= {"add_bos_token": False, "add_eos_token": False, "add_space_prefix": False}
    assert {name: keys[PREFIX + name] for name in wanted} == wanted


def test_our_own_split_needs_a_name(bpe):
    with pytest.raises(ValueError, match=r"pretokenizer.*some token ids will differ"):
        tokenizer_metadata(bpe, 280)
    assert tokenizer_metadata(bpe, 280, "qwen35")[PREFIX + "pre"] == "qwen35"
    with pytest.raises(ValueError, match=r"pretokenizer must be one of.*'qwen'"):
        tokenizer_metadata(bpe, 280, "qwen")


def test_how_near_the_nearest_split_comes():
    """The shares that the documents state: a token counts when its bytes are cut there alike."""
    texts = {}
    for name in ("python-docs", "python-code"):
        whole = "".join(document.text for document in islice(load_corpus(name), 60))
        texts[name] = whole[:200_000]
    ours = Tokenizer.train_bpe([text[:100_000] for text in texts.values()], 4096)
    theirs = with_split(ours, "llama-bpe")

    def cuts(tokenizer, text):
        ids = tokenizer.encode(text)
        ends = list(accumulate(len(tokenizer.token_bytes(i)) for i in ids))
        return set(zip(ids, ends, strict=True))

    shares = {}
    for name, text in texts.items():
        found = cuts(theirs, text[100_000:])
        shares[name] = len(found & cuts(ours, text[100_000:])) / len(found)
    assert shares == {
        "python-docs": pytest.approx(0.9, abs=0.05),
        "python-code": pytest.approx(0.8, abs=0.08),
    }


def test_characters_are_user_defined():
    tokenizer = Tokenizer.characters(TEXT)
    values = tokenizer_metadata(tokenizer, tokenizer.vocab_size + 2)
    tokens, types = values[PREFIX + "tokens"], values[PREFIX + "token_type"]
    assert tokens[1:-2] == sorted(set("".join(TEXT)))
    assert types == [3, *[4] * (tokenizer.vocab_size - 1), 5, 5]
    assert len(values[PREFIX + "merges"]) == 1


def template(*single):
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if name == "A"
        else {"SpecialToken": {"id": name, "type_id": 0}}
        for name in single
    ]
    ids = {"<|endoftext|>": 0, "<|im_end|>": 1}
    return {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}},
        ],
        "special_tokens": {
            name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()
        },
    }


def test_what_the_file_adds_around_a_text_is_written(bpe):
    def ends(processor):
        tokenizer = changed(with_split(bpe, "qwen2"), post_processor=processor)
        values = tokenizer_metadata(tokenizer, 280)
        names = ("bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token")
        return [values[PREFIX + name] for name in names]

    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    assert ends(None) == ends(byte_level) == [0, 0, False, False]
    first = template("<|im_end|>", "A")
    assert ends(first) == [1, 0, True, False]
    assert ends({"type": "Sequence", "processors": [byte_level, first]}) == [1, 0, True, False]
    assert ends(template("A", "<|endoftext|>")) == [0, 0, False, True]
    for bad in (template("<|im_end|>", "<|endoftext|>", "A"), template("A", "<|im_end|>")):
        with pytest.raises(ValueError, match="add one token before a text and the end-of-text"):
            ends(bad)
    bert = {"type": "BertProcessing", "sep": ["<|im_end|>", 1], "cls": ["<|endoftext|>", 0]}
    with pytest.raises(ValueError, match="post_processor.*BertProcessing"):
        ends(bert)


def test_the_settings_name_the_ends_and_the_chat_template(bpe):
    def written(**tokens):
        settings = TokenizerSettings(tokens=tokens, templates={"default": "{{ messages }}"})
        tokenizer = Tokenizer(with_split(bpe, "qwen2").to_json(), settings=settings)
        values = tokenizer_metadata(tokenizer, 280)
        assert values["tokenizer.chat_template"] == "{{ messages }}"
        assert "tokenizer.chat_templates" not in values
        names = ("bos_token_id", "eos_token_id", "eot_token_id", "add_bos_token")
        return [values.get(PREFIX + name) for name in names]

    assert written() == [0, 0, None, False]
    assert written(eos_token="<|im_end|>") == [0, 1, 0, False]  # both end the writing
    assert written(bos_token="<|im_end|>") == [1, 0, None, False]
    endless = Tokenizer.train_bpe(TEXT, 280, ["<|im_end|>"])
    settings = TokenizerSettings(
        {"eos_token": "<|im_end|>"}, {"default": "a", "tool_use": "b", "rag": "c"}
    )
    values = tokenizer_metadata(Tokenizer(endless.to_json(), settings=settings), 280, "gpt-2")
    assert values[PREFIX + "eos_token_id"] == 0
    assert values["tokenizer.chat_template"] == "a"
    assert values["tokenizer.chat_template.tool_use"] == "b"
    assert values["tokenizer.chat_templates"] == ["tool_use", "rag"]
    assert not [k for k in tokenizer_metadata(bpe, 280, "gpt-2") if "chat" in k]


def test_what_gguf_cannot_express_is_refused(bpe):
    known = with_split(bpe, "qwen2")
    assert tokenizer_metadata(changed(known, normalizer={"type": "NFC"}), 280)
    with pytest.raises(ValueError, match="normalizer 'Lowercase'"):
        tokenizer_metadata(changed(known, normalizer={"type": "Lowercase"}), 280)
    with pytest.raises(ValueError, match="'qwen2' has ignore_merges=False, the tokenizer True"):
        tokenizer_metadata(changed(known, model__ignore_merges=True), 280)
    added = json.loads(known.to_json())["added_tokens"]
    stripping = [{**entry, "lstrip": entry["id"] == 1} for entry in added]
    with pytest.raises(ValueError, match=r"lstrip=true of the token '<\|im_end\|>'"):
        tokenizer_metadata(changed(known, added_tokens=stripping), 280)
    endless = Tokenizer.train_bpe(TEXT, 280, ["<|im_end|>"])
    with pytest.raises(ValueError, match="no end-of-text token.*token 11"):
        tokenizer_metadata(endless, 280, "gpt-2")
    other = with_split(bpe, "qwen2")
    other.kind = "fallback"
    with pytest.raises(ValueError, match="kind 'fallback'.*without the tokenizer"):
        tokenizer_metadata(other, 280, "gpt-2")
    filler = Tokenizer.train_bpe(TEXT, 280, ["<|endoftext|>", "[PAD281]"])
    with pytest.raises(ValueError, match="named like a filler"):
        tokenizer_metadata(filler, 282, "gpt-2")
    with pytest.raises(ValueError, match="the tokenizer has 280 tokens.*vocab_size is 279"):
        tokenizer_metadata(known, 279)
