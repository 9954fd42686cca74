"""`fromzero generate`: text on stdout and nothing else, streamed, repeatable."""

import io
import json
import os
import re
import shutil
import sys

import pytest
import torch

from fromzero.main import main
from fromzero.option_types import Sampling, newest_run, parse_bias
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer


@pytest.fixture
def generate(capsys, tiny_model):
    """Run the command and return (exit code, stdout, stderr)."""

    def run(*options):
        code = main(["generate", "--model", str(tiny_model), *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_prompt_is_continued_and_only_text_goes_to_stdout(generate, tiny_model):
    code, out, err = generate("--prompt", "the quick", "--max-new-tokens", 8, "--seed", 1)
    assert code == 0
    assert out.startswith("the quick")
    assert len(out) > len("the quick\n")
    assert str(tiny_model) in err
    assert err.count("\n") == 1


def test_a_seed_repeats_and_without_one_texts_differ(generate):
    def text(*options):
        return generate("--prompt", "fox", "--max-new-tokens", 12, "--temperature", 2, *options)[1]

    assert text("--seed", 7) == text("--seed", 7)
    assert text("--seed", 7) != text("--seed", 8)
    assert len({text() for _ in range(4)}) > 1


def test_streaming_shows_the_same_as_the_finished_text(generate):
    same = ("--prompt", "明月", "--max-new-tokens", 10, "--seed", 3)
    _, streamed, _ = generate(*same)
    _, finished, _ = generate(*same, "--logprobs")
    assert streamed.rstrip("\n") in finished


def test_several_continuations_are_numbered(generate):
    code, out, _ = generate("--prompt", "fox", "--num-return", 3, "--seed", 1)
    assert code == 0
    assert generate("--prompt", "fox", "--n", 3, "--seed", 1)[1] == out
    heads = [line for line in out.splitlines() if line.startswith("--- ")]
    assert [head.split(",")[0] for head in heads] == ["--- 1 of 3", "--- 2 of 3", "--- 3 of 3"]


def test_beam_search_gives_scores(generate):
    options = ("--num-beams", 3, "--num-return", 2, "--max-new-tokens", 4)
    code, out, _ = generate("--prompt", "fox", *options)
    assert code == 0
    assert out.count("score -") == 2


@pytest.fixture
def endless(tiny_model):
    """Options that keep a random model from ending its text by chance."""
    return ("--logit-bias", f"{Tokenizer.load(tiny_model).end_id}=-1000", "--seed", 1)


def test_logprobs_list_every_token(generate, endless):
    options = (*endless, "--max-new-tokens", 5, "--logprobs", "--top-logprobs", 2)
    _, out, _ = generate("--prompt", "fox", *options)
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert len(lines) == 5
    assert all(float(line.split()[0]) < 0 for line in lines)


def test_the_prompt_may_come_from_a_file_or_a_pipe(generate, tmp_path, monkeypatch):
    file = tmp_path / "start.txt"
    file.write_text("the lazy", encoding="utf-8", newline="\n")
    same = ("--max-new-tokens", 5, "--seed", 1)
    _, wanted, _ = generate("--prompt", "the lazy", *same)
    assert generate("--prompt-file", file, *same)[1] == wanted
    stdin = io.TextIOWrapper(io.BytesIO(b"the lazy\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert generate(*same)[1] == wanted


def test_bytes_on_stdin_that_are_not_utf8_are_named(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf-8"))
    code, _, err = generate()
    assert code == 2
    assert "0xff at offset 2" in err


def test_stop_texts_end_the_text(generate, endless):
    seed = ("--prompt", "fox", "--max-new-tokens", 30, *endless)
    _, whole, _ = generate(*seed)
    middle = whole[10:12]
    _, cut, _ = generate(*seed, "--stop", middle.replace("\n", "\\n"))
    assert cut.rstrip("\n") == "fox" + whole[3:].split(middle)[0].rstrip("\n")


def test_greedy_is_greedy_with_and_without_a_cache(generate):
    greedy = ("--prompt", "fox", "--temperature", 0, "--max-new-tokens", 12)
    assert generate(*greedy)[1] == generate(*greedy, "--cache", "none")[1]


@pytest.fixture(scope="session")
def rope_model(tmp_path_factory, tiny_model):
    """As tiny_model, with positions that a sliding cache can move."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(tiny_model)
    config = preset("modern-micro", vocab_size=tokenizer.vocab_size, max_seq_len=64, n_layers=1)
    directory = tmp_path_factory.mktemp("model") / "rope"
    GPT(config.replace(dim=32, n_heads=2)).save(directory, tokenizer)
    return directory


@pytest.mark.parametrize("cache", ["static", "growing", "int8", "sliding"])
def test_each_cache_writes_what_no_cache_writes(generate, rope_model, cache, capsys):
    options = ("--prompt", "fox", "--temperature", "0", "--max-new-tokens", "12")
    texts = []
    for name in (cache, "none"):
        assert main(["generate", "--model", str(rope_model), *options, "--cache", name]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_a_sliding_cache_writes_on_without_end(rope_model, endless, capsys):
    """A prompt longer than the context of 64, and ten times the context of new tokens."""
    options = ["--prompt", "the quick brown fox " * 40, "--max-new-tokens", "640", *endless]
    options += ["--cache", "sliding", "--sinks", "2", "--window", "20", "--num-return", "2"]
    assert main(["generate", "--model", str(rope_model), *map(str, options)]) == 0
    assert capsys.readouterr().out.count("640 tokens, ended by length") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cache", "slide"), "cache must be one of none, static, growing, int8, sliding"),
        (("--sinks", "4"), "sinks 4 needs the cache 'sliding'; the cache is 'static'"),
        (("--cache", "int8", "--window", "9"), "window 9 needs the cache 'sliding'"),
        (("--cache", "sliding", "--window", "61"), "do not fit into max_seq_len 64"),
        (("--cache", "sliding", "--sliding"), "give one of them"),
    ],
)
def test_caches_that_cannot_be_are_refused(rope_model, options, message, capsys):
    code = main(["generate", "--model", str(rope_model), "--prompt", "fox", *options])
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["none", "linear", "ntk", "dynamic", "yarn", "llama3"])
def test_a_longer_context_reads_a_longer_prompt(rope_model, endless, kind, capsys):
    prompt = ["--prompt", "the quick brown fox " * 20, "--max-new-tokens", "9", *endless]
    options = ["generate", "--model", str(rope_model), *map(str, prompt), "--num-return", "2"]
    assert main(options) == 2
    assert "max_seq_len) is 64" in capsys.readouterr().err
    assert main([*options, "--context", "256", "--rope-scaling", kind]) == 0
    fast = capsys.readouterr().out
    assert fast.count("9 tokens, ended by length") == 2
    # what is compiled for decoding turns by the stretched angles too
    assert main([*options, "--context", "256", "--rope-scaling", kind, "--no-fast"]) == 0
    assert capsys.readouterr().out == fast


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--context", "99"), "--context 99 needs --rope-scaling, one of none, linear"),
        (("--rope-scaling", "ntk"), "--rope-scaling ntk needs --context"),
        (("--context", "0", "--rope-scaling", "ntk"), "context must be an integer >= 1, got 0"),
        (("--context", "99", "--rope-scaling", "yarm"), "did you mean 'yarn'?"),
    ],
)
def test_contexts_that_cannot_be_are_refused(rope_model, options, message, capsys):
    code = main(["generate", "--model", str(rope_model), "--prompt", "fox", *options])
    assert code == 2
    assert message in capsys.readouterr().err


def test_positions_inside_the_keys_cannot_slide(generate):
    code, _, err = generate("--prompt", "fox", "--cache", "sliding")
    assert code == 2
    assert "needs position 'rope' or 'none', got 'learned'" in err
    code, _, err = generate("--prompt", "fox", "--context", 99, "--rope-scaling", "none")
    assert code == 2
    assert "table of 64 rows, so the context cannot be changed to 99" in err


def test_sliding_goes_past_the_context(generate, endless, tiny_model):
    prompt = "the quick brown fox " * 6
    n_prompt = len(Tokenizer.load(tiny_model).encode(prompt))
    options = ("--prompt", prompt, "--max-new-tokens", 80, *endless)
    _, within, cut = generate(*options)
    code, beyond, whole = generate(*options, "--sliding")
    # the text may end in the middle: a stream has no other place to say why
    assert f"context of 64 tokens leaves room for {64 - n_prompt} of the 80" in cut
    assert "leaves room" not in whole
    assert "leaves room" not in generate("--prompt", prompt, "--max-new-tokens", 64 - n_prompt)[2]
    assert code == 0
    assert n_prompt < 64 < n_prompt + 80
    assert len(beyond.encode()) > len(within.encode())


def test_logit_bias_is_read_as_pairs():
    assert parse_bias(["13=-100", "7=2.5"]) == {13: -100.0, 7: 2.5}
    assert parse_bias([]) is None
    for wrong in ("13", "a=1", "1=b", "="):
        with pytest.raises(ValueError, match="ID=BIAS"):
            parse_bias([wrong])


def test_every_field_of_sampling_params_has_its_option():
    import dataclasses

    from inference.sampling import SamplingParams

    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert {field.name for field in dataclasses.fields(Sampling)} == fields
    assert Sampling(seed=3, stop=(r"a\n",)).to_params() == SamplingParams(
        max_new_tokens=200, temperature=0.8, seed=3, stop=("a\n",)
    )


def test_without_a_model_the_newest_is_taken(capsys, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, age in (("old", 1_000), ("new", 2_000)):
        shutil.copytree(tiny_model, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "manifest.json", (age, age))
    shutil.copytree(tiny_model, tmp_path / "runs" / "run" / "step-000010")
    os.utime(tmp_path / "runs" / "run" / "step-000010" / "manifest.json", (1_500, 1_500))
    assert newest_run().name == "new"
    assert main(["generate", "--prompt", "fox", "--max-new-tokens", "2"]) == 0
    assert str(os.path.join("runs", "new")) in capsys.readouterr().err
    os.utime(tmp_path / "runs" / "run" / "step-000010" / "manifest.json", (3_000, 3_000))
    assert newest_run().name == "run"


def test_a_terminal_is_not_disturbed_and_a_file_gets_every_byte(generate, monkeypatch):
    from inference.generator import TextGenerator

    monkeypatch.setattr(TextGenerator, "stream", lambda *_, **__: iter(["a\x1b[2J\tb\n汉"]))
    assert generate("--prompt", "p")[1] == "pa\x1b[2J\tb\n汉\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert generate("--prompt", "p")[1] == "pa·[2J\tb\n汉\n"


def test_only_text_that_keeps_the_rule_is_written(generate, tmp_path):
    schema = {"type": "object", "properties": {"a": {"enum": ["明月", 7]}}, "required": ["a"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema), encoding="utf-8")
    hot = ("--temperature", 5, "--prompt", "fox: ")
    for options, pattern in (
        (("--regex", r"\d{2}-[a-c]+"), r"\d{2}-[a-c]+"),
        (("--choice", "yes", "--choice", "明月"), "yes|明月"),
        (("--json-schema", file), r'\{"a": ?("明月"|7)\}'),
        (("--json-schema", json.dumps(schema)), r'\{"a": ?("明月"|7)\}'),
    ):
        for seed in range(3):
            code, out, _ = generate(*hot, *options, "--seed", seed, "--max-new-tokens", 40)
            assert code == 0
            assert re.fullmatch(pattern, out.removeprefix("fox: ").removesuffix("\n"))
    code, out, _ = generate("--prompt", "fox: ", "--num-beams", 3, "--choice", "a", "--choice", "b")
    assert code == 0
    assert out.splitlines()[1] in ("fox: a", "fox: b")
    assert "ended by complete" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--regex", "a", "--choice", "b"), "give one of --regex, --json-schema and --choice"),
        (("--regex", "a(?=b)"), "position 1: lookahead (?= is not supported"),
        (("--json-schema", '{"type": '), "--json-schema is not valid JSON"),
        (("--json-schema", "absent.json"), "absent.json"),
        (("--json-schema", '{"type": "date"}'), "type must be among object"),
        (("--choice", ""), "choices[0] must be a text of at least 1 character"),
        (("--regex", "a{70}", "--max-new-tokens", "5"), "leaves room for 5 new tokens"),
        (("--choice", "a", "--stop", "a"), "would cut the text"),
    ],
)
def test_a_bad_rule_is_one_line_and_code_2(generate, options, message):
    code, out, err = generate("--prompt", "fox", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


# ── many prompts, JSON, guessing ahead ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(("cache", "known"), [("static", 16), ("int8", 16), ("none", 0)])
def test_the_next_batch_reads_a_common_beginning_no_more(
    generate, tmp_path, shapes_read, cache, known
):
    file = tmp_path / "prompts.txt"
    lines = [f"0123456789012345{word}" for word in ("a", "b", "c")]
    file.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    same = ("--prompts", file, "--max-new-tokens", 2, "--temperature", 0, "--no-fast", "--json")
    _, expected, _ = generate(*same, "--cache", cache)
    del shapes_read[:]
    _, out, _ = generate(*same, "--cache", cache, "--batch", 1)
    assert out == expected
    assert [n for _, n in shapes_read][::2] == [17, 17 - known, 17 - known]


def test_every_line_of_a_file_is_a_prompt(generate, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("fox\nthe lazy\n明月\n", encoding="utf-8", newline="\n")
    same = ("--max-new-tokens", 6, "--seed", 3)
    for batch in (1, 2, 16):
        code, out, err = generate("--prompts", file, *same, "--batch", batch, "--json")
        assert code == 0
        assert "model: " in err
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["prompt"] for line in lines] == ["fox", "the lazy", "明月"]
        assert [line["index"] for line in lines] == [0, 1, 2]
        for line in lines:
            alone = json.loads(generate("--prompt", line["prompt"], *same, "--json")[1])
            assert {**alone, "index": line["index"]} == line
            assert len(line["ids"]) <= 6
    _, out, _ = generate("--prompts", file, *same, "--num-return", 2)
    heads = [line.split(",")[:2] for line in out.splitlines() if line.startswith("--- ")]
    assert heads[2:4] == [["--- prompt 2", " 1 of 2"], ["--- prompt 2", " 2 of 2"]]


def test_lines_of_jsonl_have_parameters_of_their_own(generate, tmp_path):
    file = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "fox", "temperature": 0, "max_new_tokens": 3},
        {"prompt": "two\nlines", "seed": 7, "num_return": 2, "logit_bias": {"0": -1000}},
        {"prompt": "fox", "logprobs": True, "top_logprobs": 2, "stop": ["q"]},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    file.write_text(text, encoding="utf-8", newline="\n")
    code, out, _ = generate("--prompts", file, "--json", "--seed", 1, "--max-new-tokens", 9)
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["index"] for line in found] == [0, 1, 1, 2]
    assert len(found[0]["ids"]) <= 3
    greedy = ("--prompt", "fox", "--temperature", 0, "--max-new-tokens", 3, "--json")
    assert found[0] == json.loads(generate(*greedy)[1])
    assert "logprobs" not in found[1]
    assert len(found[3]["logprobs"]) == len(found[3]["top_logprobs"]) == len(found[3]["ids"])
    assert [len(step) for step in found[3]["top_logprobs"]] == [2] * len(found[3]["ids"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", "p.txt is empty: write one prompt a line"),
        ("p.txt", "a\n\nb\n", "p.txt, line 2 is empty: every line is a prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', "p.jsonl, line 2 is not valid JSON"),
        ("p.jsonl", '{"text": "a"}', 'line 1 must be an object like {"prompt": "…"}'),
        ("p.jsonl", '{"prompt": "a", "top_q": 1}', "line 1: each parameter must be one of"),
        ("p.jsonl", '{"prompt": "a", "top_p": 2}', "line 1: top_p must be a finite number > 0"),
        (
            "p.jsonl",
            '{"prompt": "a", "logit_bias": {"x": 1}}',
            "line 1: the keys of logit_bias must be token ids",
        ),
        ("p.txt", "a\n" + "b" * 200, "prompt 1 has"),
    ],
)
def test_a_bad_file_of_prompts_is_one_line_and_code_2(generate, tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="\n")
    code, out, err = generate("--prompts", tmp_path / name)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_prompts_beside_a_prompt_are_refused(generate, tmp_path):
    (tmp_path / "p.txt").write_text("a", encoding="utf-8", newline="\n")
    code, _, err = generate("--prompts", tmp_path / "p.txt", "--prompt", "b")
    assert code == 2
    assert "give --prompts, --prompt or --prompt-file, one of them" in err
    code, _, err = generate("--prompts", tmp_path / "p.txt", "--batch", 0)
    assert "batch must be an integer >= 1, got 0" in err


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_guessing_ahead_writes_the_same(generate, endless, tiny_model, temperature):
    same = ("--prompt", "fox fox", "--max-new-tokens", 40, *endless, "--temperature", temperature)
    _, plain, _ = generate(*same)
    for draft in ("lookup", tiny_model):
        code, out, err = generate(*same, "--draft", draft, "--draft-tokens", 3)
        assert code == 0
        assert out == plain
        assert "speculation: " in err
    _, out, _ = generate(*same, "--draft", "lookup", "--json")
    assert "fox fox" + json.loads(out)["text"] + "\n" == plain


def test_a_draft_that_does_not_fit_is_one_line(generate, tmp_path):
    from gpt_model.config import preset
    from gpt_model.model import GPT

    other = Tokenizer.characters(["abc fox"])
    sizes = {"max_seq_len": 16, "n_layers": 1, "dim": 16, "n_heads": 2}
    GPT(preset("gpt-micro", vocab_size=other.vocab_size, **sizes)).save(tmp_path / "other", other)
    for options, message in (
        (("--draft", tmp_path / "other"), "the draft model's tokenizer differs"),
        (("--draft", tmp_path / "absent"), "absent"),
        (("--draft", ""), "--draft must be a model's directory, or lookup, got ''"),
        (("--draft", "Lookup"), "or lookup, got 'Lookup'"),
        (("--draft", "lookup", "--draft-tokens", 0), "draft_tokens must be an integer >= 1"),
        (("--draft", "lookup", "--num-beams", 2), "num_beams must be 1"),
        (("--draft", "lookup", "--cache", "none"), "must be static, growing or int8, got 'none'"),
    ):
        code, out, err = generate("--prompt", "fox", *options)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
