"""transformers' generate with the same random weights writes the same tokens."""

import pytest
import torch
import transformers

from gpt_model.huggingface import model_from_huggingface
from inference.generator import SamplingParams, TextGenerator
from tokenization.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"
TOKENIZER = Tokenizer.characters([LETTERS])  # 37 tokens, the end is 0
END = TOKENIZER.end_id
PROMPTS = ["abc", "hello", "z", "GHIJabcdefgh"]
CONFIGS = {
    "gpt2": transformers.GPT2Config(
        vocab_size=37,
        n_positions=40,
        n_embd=20,
        n_layer=2,
        n_head=4,
        initializer_range=0.4,
        bos_token_id=END,
        eos_token_id=END,
    ),
    "llama": transformers.LlamaConfig(
        vocab_size=37,
        hidden_size=24,
        intermediate_size=31,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        initializer_range=0.4,
        bos_token_id=END,
        eos_token_id=END,
    ),
}
PAIRS = {}


def pair(name, seed):
    if (name, seed) not in PAIRS:
        torch.manual_seed(seed)
        theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
        ours = model_from_huggingface(theirs.config.to_dict(), theirs.state_dict())
        PAIRS[name, seed] = theirs, TextGenerator(ours, TOKENIZER)
    return PAIRS[name, seed]


def new_tokens(row, prompt):
    """The tokens after the prompt, up to and with the end; what follows is padding."""
    ids = row[len(prompt) :].tolist()
    return tuple(ids[: ids.index(END) + 1] if END in ids else ids)


def theirs_generate(model, prompt, **options):
    ids = torch.tensor([TOKENIZER.encode(prompt)])
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=END,
        return_dict_in_generate=True,
        output_scores=True,
        do_sample=False,
        **options,
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_equals_transformers(name, seed):
    theirs, ours = pair(name, seed)
    params = SamplingParams(temperature=0, max_new_tokens=20)
    for prompt, found in zip(PROMPTS, ours.generate(PROMPTS, params), strict=True):
        output = theirs_generate(theirs, prompt, max_new_tokens=20)
        assert found.ids == new_tokens(output.sequences[0], prompt)


@pytest.mark.parametrize("penalty", [1.2, 0.8])
def test_greedy_with_repetition_penalty_equals_transformers(penalty):
    theirs, ours = pair("gpt2", 0)
    params = SamplingParams(temperature=0, max_new_tokens=20, repetition_penalty=penalty)
    for prompt, found in zip(PROMPTS, ours.generate(PROMPTS, params), strict=True):
        output = theirs_generate(theirs, prompt, max_new_tokens=20, repetition_penalty=penalty)
        assert found.ids == new_tokens(output.sequences[0], prompt)


def test_a_left_padded_batch_equals_transformers():
    theirs, ours = pair("gpt2", 1)
    encoded = [TOKENIZER.encode(prompt) for prompt in PROMPTS]
    longest = max(map(len, encoded))
    ids = torch.tensor([[END] * (longest - len(one)) + one for one in encoded])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in encoded])
    output = theirs.generate(
        ids, attention_mask=mask, pad_token_id=END, do_sample=False, max_new_tokens=15
    )
    found = ours.generate(PROMPTS, SamplingParams(temperature=0, max_new_tokens=15))
    for one, row in zip(found, output, strict=True):
        assert one.ids == new_tokens(row, "x" * longest)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_beams_equal_transformers(name, num_beams, length_penalty):
    """`never` is their name for stopping only when no better text can come: ours always does."""
    ends = 0
    for seed in (0, 5, 6):  # models that like to end
        theirs, ours = pair(name, seed)
        params = SamplingParams(
            num_beams=num_beams,
            num_return=num_beams,
            length_penalty=length_penalty,
            max_new_tokens=8,
        )
        for prompt in PROMPTS:
            output = theirs_generate(
                theirs,
                prompt,
                num_beams=num_beams,
                num_return_sequences=num_beams,
                length_penalty=length_penalty,
                early_stopping="never",
                max_new_tokens=8,
            )
            found = ours.generate(prompt, params)
            wanted = [new_tokens(row, prompt) for row in output.sequences]
            assert [one.ids for one in found] == wanted
            scores = output.sequences_scores.tolist()
            assert [one.score for one in found] == pytest.approx(scores, abs=1e-4)
            ends += sum(one.finish_reason == "end" for one in found)
    assert ends > 0 or length_penalty == 2.0  # the end token must have played its part


def test_a_text_begins_as_the_tokenizer_of_a_llama_says(tmp_path):
    """`<s>` stands before every prompt, as in transformers; evaluation has it too."""
    import json

    from evaluation.perplexity import evaluate_text

    names = ("<|endoftext|>", "<s>")
    specification = json.loads(Tokenizer.characters([LETTERS[:-1]], names).to_json())
    text = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    specification["post_processor"] = {
        "type": "TemplateProcessing",
        "single": text,
        "pair": [*text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(specification), encoding="utf-8")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    model, generator = pair("llama", 0)
    generator = TextGenerator(generator.model, ours)
    params = SamplingParams(temperature=0, max_new_tokens=15)
    for prompt in ("abc", "hello"):
        ids = torch.tensor([theirs(prompt).input_ids])
        assert ids[0, 0] == 1
        written = model.generate(ids, do_sample=False, max_new_tokens=15, pad_token_id=END)
        (found,) = generator.generate([prompt], params)
        assert found.ids == new_tokens(written[0], [0] * ids.shape[1])
    ids = torch.tensor([theirs("hello").input_ids])
    expected = model(input_ids=ids, labels=ids).loss.item()
    assert evaluate_text(generator.model, ours, "hello").loss == pytest.approx(expected, abs=1e-5)
