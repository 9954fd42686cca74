"""lm_eval's own `hf` model, on the same weights, is the oracle; everything is offline."""

import json
import math
import sys

import pytest
import torch

from evaluation import lm_eval_adapter
from evaluation.lm_eval_adapter import lm_eval_model, run_lm_eval, sampling_params
from fromzero.main import main
from gpt_model.config import preset
from gpt_model.huggingface import weights_to_huggingface
from gpt_model.model import GPT
from inference.generator import TextGenerator
from inference.sampling import SamplingParams
from tokenization.tokenizer import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog; 明月几时有？把酒问青天。\n" * 20
CONTEXT = 32
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def offline():
    patch = pytest.MonkeyPatch()
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        patch.setenv(name, "1")
    yield
    patch.undo()


def with_beginning(tokenizer):
    """The same, but every text begins with <s>, as Llama's do."""
    values = json.loads(tokenizer.to_json())
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<s>": {"id": "<s>", "ids": [tokenizer.special_tokens["<s>"]], "tokens": ["<s>"]}
        },
    }
    return Tokenizer.from_json(json.dumps(values))


@pytest.fixture(scope="module", params=["plain", "begins with <s>"])
def pair(request):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train_bpe([TEXT], 320, ("<|endoftext|>", "<s>"))
    if request.param != "plain":
        tokenizer = with_beginning(tokenizer)
        assert len(tokenizer.start_ids) == 1
    config = preset("gpt2", vocab_size=tokenizer.vocab_size, max_seq_len=CONTEXT, n_layers=2)
    model = GPT(config.replace(dim=32, n_heads=2, dropout=0.0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)  # far from uniform, so that a wrong token costs much
    return model, tokenizer


@pytest.fixture(scope="module")
def ours(pair):
    return lm_eval_model(*pair, batch_size=3)


@pytest.fixture(scope="module")
def theirs(pair, tmp_path_factory):
    """The same weights in transformers' GPT-2, behind the harness's own class."""
    from lm_eval.models.huggingface import HFLM
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    model, tokenizer = pair
    c = model.config
    hf = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.max_seq_len,
            n_embd=c.dim,
            n_layer=c.n_layers,
            n_head=c.n_heads,
            bos_token_id=tokenizer.end_id,
            eos_token_id=tokenizer.end_id,
        )
    ).eval()
    hf.load_state_dict(weights_to_huggingface(model, "gpt2"), strict=False)
    hf.tie_weights()
    file = tokenizer.save(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        eos_token="<|endoftext|>",
        bos_token="<s>" if tokenizer.start_ids else "<|endoftext|>",
    )
    return HFLM(pretrained=hf, tokenizer=fast, batch_size=2, max_length=CONTEXT, device="cpu")


def requests(*args):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, each, i) for i, each in enumerate(args)]


PAIRS = [
    ("the quick", " brown fox"),
    ("the quick ", "brown"),  # the harness moves the space over
    ("", "the fox"),
    ("明月几", "时有？"),
    (TEXT[:300], " dog"),  # longer than the context
    ("fox\n", "the"),
    ("a", TEXT[:60]),
    ("the lazy", " dog"),
]


def test_loglikelihoods_are_those_of_the_hf_model(ours, theirs):
    mine = ours.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    wanted = theirs.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    for (value, greedy), (reference, reference_greedy) in zip(mine, wanted, strict=True):
        assert math.isclose(value, reference, abs_tol=1e-4, rel_tol=1e-5)
        assert greedy == reference_greedy
    assert max(abs(value) for value, _ in mine) > 10
    alone = [ours.loglikelihood(requests(each), disable_tqdm=True)[0] for each in PAIRS]
    assert [v for v, _ in mine] == pytest.approx([v for v, _ in alone], abs=1e-4)


def test_greedy_is_noticed(pair, ours, theirs):
    prompt = pair[1].encode("the quick")
    params = SamplingParams(max_new_tokens=4, temperature=0)
    ids = list(TextGenerator(*pair).generate([prompt], params)[0].ids)
    asked = [(None, prompt, ids), (None, prompt, [*ids[:-1], (ids[-1] + 1) % 300])]
    for lm in (ours, theirs):
        found = lm._loglikelihood_tokens(asked, disable_tqdm=True)
        assert [greedy for _, greedy in found] == [True, False]


def test_rolling_is_that_of_the_hf_model(ours, theirs):
    texts = [(TEXT[:n],) for n in (1, 40, 111, 500)]
    mine = ours.loglikelihood_rolling(requests(*texts), disable_tqdm=True)
    wanted = theirs.loglikelihood_rolling(requests(*texts), disable_tqdm=True)
    assert mine == pytest.approx(wanted, abs=1e-4, rel=1e-5)


def test_what_is_written_is_what_the_hf_model_writes(ours, theirs):
    asked = [
        ("the quick brown", {"until": ["\n"], "max_gen_toks": 9}),
        ("明月", {"until": ["o", "e"], "max_gen_toks": 9, "do_sample": False}),
        (TEXT[:300], {"until": "。", "max_gen_toks": 12}),
        ("fox", {"until": [], "max_new_tokens": 20, "temperature": 0.0}),
        ("dog", {"until": ["\n"], "max_gen_toks": 9}),
    ]
    mine = ours.generate_until(requests(*asked), disable_tqdm=True)
    assert mine == theirs.generate_until(requests(*asked), disable_tqdm=True)
    assert any(len(text) > 5 for text in mine)


def test_empty_texts_are_handled(ours):
    found = ours.loglikelihood(requests(("", ""), ("fox", ""), ("", "fox"), (" ", "x")), True)
    assert found[:2] == [(0.0, True), (0.0, True)]
    assert all(value < 0 for value, _ in found[2:])
    assert ours.loglikelihood_rolling(requests(("",)), True) == [0.0]
    assert ours.loglikelihood([], True) == []


@pytest.fixture
def tasks_folder(tmp_path):
    """A multiple-choice task, a rolling one and a generative one, of a dozen lines."""
    rows = [
        {"q": q, "right": r, "wrong": w, "label": n % 2}
        for n, (q, r, w) in enumerate(
            [("the quick", "brown", "dog"), ("over the", "lazy", "fox"), ("明月", "几时有", "青天")]
            * 4
        )
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    head = (
        "dataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {json.dumps(str(data))}\ntest_split: test\n"
    )
    bodies = {
        "local_choice": (
            'output_type: multiple_choice\ndoc_to_text: "{{q}}"\n'
            'doc_to_choice: "{{[right, wrong] if label == 0 else [wrong, right]}}"\n'
            "doc_to_target: label\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
        ),
        "local_rolling": (
            'output_type: loglikelihood_rolling\ndoc_to_text: ""\n'
            'doc_to_target: "{{q}} {{right}}"\n'
            "metric_list:\n  - metric: bits_per_byte\n"
        ),
        "local_writing": (
            'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{right}}"\n'
            'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 6\n'
            "metric_list:\n  - metric: exact_match\n"
        ),
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, body in bodies.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{body}", encoding="utf-8")
    return folder


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache_folder")
def test_whole_tasks_give_the_figures_of_the_hf_model(pair, theirs, tasks_folder):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = ["local_choice", "local_rolling", "local_writing"]
    mine = run_lm_eval(*pair, names, include_path=tasks_folder)
    manager = TaskManager(include_path=str(tasks_folder), include_defaults=False)
    wanted = simple_evaluate(model=theirs, tasks=names, task_manager=manager, bootstrap_iters=0)
    for name in names:
        for figure, value in mine[name].items():
            reference = wanted["results"][name][f"{figure},none"]
            assert math.isclose(value, reference, abs_tol=1e-4), (name, figure)
    assert set(mine["local_choice"]) >= {"acc", "acc_norm"}
    assert mine["local_rolling"]["bits_per_byte"] > 1


@pytest.mark.usefixtures("cache_folder")
def test_the_command_line_runs_a_task(pair, tasks_folder, tmp_path, capsys):
    model, tokenizer = pair
    model.save(tmp_path / "model", tokenizer)
    arguments = ["evaluate", "--model", str(tmp_path / "model"), "--lm-eval", "local_choice"]
    more = ["--lm-eval-tasks", str(tasks_folder), "--limit", "6"]
    assert main([*arguments, *more, "--json", str(tmp_path / "s.json")]) == 0
    assert "local_choice acc" in capsys.readouterr().out
    (report,) = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["models"]
    expected = run_lm_eval(model, tokenizer, ["local_choice"], include_path=tasks_folder, limit=6)
    assert report["lm_eval"] == expected
    assert report["tasks"] == []
    assert main([*arguments, "--lm-eval-tasks", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_without_lm_eval_the_error_says_how_to_install_it(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    lm_eval_adapter.adapter_class.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'llm-from-zero\[lm-eval\]'"):
        lm_eval_model(*pair)


def test_texts_need_a_token_to_begin_from(pair):
    model, _ = pair
    bare = Tokenizer.characters([TEXT], special_tokens=())
    lm = lm_eval_model(model, bare)
    with pytest.raises(ValueError, match="this tokenizer has none"):
        lm.loglikelihood(requests(("", "fox")), True)
    assert lm.loglikelihood(requests(("the", "fox")), True)[0][0] < 0


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {}),
        ({"until": "x", "max_tokens": 3}, {"stop": ("x",), "max_new_tokens": 3}),
        ({"max_gen_toks": 2, "max_new_tokens": 3}, {"max_new_tokens": 2}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.7}, {}),
        ({"do_sample": True, "top_p": 0.9, "until": [""]}, {"temperature": 1.0, "top_p": 0.9}),
        ({"top_k": None, "max_length": None}, {}),
    ],
)
def test_their_settings_become_ours(wanted, expected):
    plain = {"max_new_tokens": 7, "temperature": 0.0}
    assert sampling_params(wanted, 7) == SamplingParams(**{**plain, **expected})


def test_a_setting_that_we_do_not_have_is_refused():
    with pytest.raises(ValueError, match="asks for typical_p in generation_kwargs"):
        sampling_params({"typical_p": 0.5}, 7)
