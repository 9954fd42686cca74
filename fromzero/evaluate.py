"""`fromzero evaluate`：困惑度、选择题、填空题、编程题；几个模型并排。"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fromzero.option_types import MaybeInt, MaybePath, MaybeText, lengthen, open_model
from fromzero.train_data import is_data_directory, open_prepared
from fromzero.training_options import options_as_json

if TYPE_CHECKING:
    from evaluation.run_tasks import ModelReport, Settings
    from evaluation.task_files import Task


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure models: on a text (loss, perplexity, bits per byte) and on tasks.

    Bits per byte compare models with different tokenizers; perplexity does not. Without --data,
    --task and --lm-eval a model is given the small suite, made for a million parameters.

    Tasks are names (suite = cloze, brackets, copying, arithmetic; sums; programs) or jsonl files,
    one object a line: prompt + choices + answer, prompt + answer, or prompt + tests.

    Examples:
        fromzero evaluate
        fromzero evaluate --data my.txt
        fromzero evaluate --data python-docs --stride 128 --model runs/gpt-micro
        fromzero evaluate --data my.txt --context 512 --rope-scaling ntk
        fromzero evaluate --task suite --model runs/gpt-micro runs/gpt-micro-2 --json scores.json
        fromzero evaluate --task mine.jsonl
        fromzero evaluate --task programs --run-code --samples 10 --k 1 10
        fromzero evaluate --lm-eval hellaswag --limit 100
    """

    model: tuple[Path, ...] = ()
    """model or run directories; without any, the newest one in runs/"""
    adapter: MaybePath = None
    """a LoRA adapter to put on the model"""
    json: MaybePath = None
    """write all figures into this file too"""

    # on a text
    data: MaybeText = None
    """a file, folder, pattern or corpus name (python-docs, python-code); or a directory of
    `fromzero data prepare` made with the model's tokenizer: its validation split"""
    context: MaybeInt = None
    """how many tokens the model sees at once; without it, all it can"""
    rope_scaling: MaybeText = None
    """stretch the model's positions to --context: none, linear, ntk, dynamic, yarn or llama3"""
    stride: MaybeInt = None
    """how far the window moves each time; smaller is fairer and slower; without it, the context"""
    errors: str = "strict"
    """what to do with bytes that are not UTF-8: strict or replace"""

    # on tasks
    task: tuple[str, ...] = ()
    """names of tasks, or jsonl files"""
    limit: MaybeInt = None
    """only the first items of each task"""
    max_new_tokens: int = 64
    """how long an answer or a program may be"""
    run_code: bool = False
    """run the programs that the model writes: with limits, but in no sandbox"""
    samples: int = 1
    """programs written per problem"""
    k: tuple[int, ...] = (1,)
    """the k of pass@k; at most --samples"""
    temperature: float = 0.8
    """for programs; the others are answered greedily"""
    seed: int = 0
    """the same seed writes the same programs"""
    timeout: float = 10.0
    """seconds a program may take"""

    # with EleutherAI's lm-evaluation-harness
    lm_eval: tuple[str, ...] = ()
    """tasks of the harness, such as hellaswag; its data come from the network"""
    lm_eval_tasks: MaybePath = None
    """a folder of task files (yaml) of your own"""
    few_shot: MaybeInt = None
    """how many examples the harness shows first; without it, what the task says"""

    # how
    batch_size: int = 16
    """windows, choices or answers computed at once"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """the type of the weights: auto (as saved), fp32 or bf16"""


def run(options: Options) -> int:
    """Measure every model, print the table, write the file."""
    from evaluation.run_tasks import as_json, as_table
    from foundation.files import write_json

    tasks, settings = prepare(options)
    reports = []
    for path in options.model or (None,):
        reports.append(measure(options, path, tasks, settings))
        print(f"model: {reports[-1].model}", file=sys.stderr)
    print(as_table(reports))
    if options.json is not None:
        write_json(options.json, as_json(reports, options_as_json(options)))
    return 0


def prepare(options: Options) -> tuple[list[Task], Settings]:
    """Find every mistake before a model is loaded."""
    from evaluation.run_tasks import Settings
    from evaluation.task_files import load_tasks
    from foundation.checks import check_int

    names = options.task
    if not names and options.data is None and not options.lm_eval:
        names = ("suite",)
    if options.limit is not None:
        check_int("limit", options.limit, 1)
    if options.adapter is not None and len(options.model) > 1:
        raise ValueError(
            f"an adapter belongs to one model, got {len(options.model)}; give one --model"
        )
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ValueError(f"cannot write {options.json}: its folder does not exist")
    if options.json is not None and options.json.is_dir():
        raise ValueError(f"cannot write {options.json}: it is a folder")
    tasks = load_tasks(names, options.limit)
    shared = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(options, name) for name in shared})
    settings.check(tasks)
    return tasks, settings


def measure(
    options: Options, path: Path | None, tasks: list[Task], settings: Settings
) -> ModelReport:
    """One model on everything."""
    from evaluation.perplexity import evaluate_documents, evaluate_shard
    from evaluation.run_tasks import ModelReport, measure_task
    from training.corpus import load_corpus

    documents = shard = None
    if options.data is not None and is_data_directory(options.data):
        shard = open_prepared(options.data)[1]
    elif options.data is not None:
        documents = load_corpus(options.data, errors=options.errors)
    model, tokenizer, directory = open_model(path, options.device, options.dtype, options.adapter)
    if options.rope_scaling is not None:
        lengthen(model, options.context, options.rope_scaling)
    report = ModelReport(str(directory), model.num_parameters())
    how = {name: getattr(options, name) for name in ("context", "stride", "batch_size")}
    if shard is not None:
        if shard.tokenizer_fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"{options.data} was prepared with another tokenizer than that of {directory}; "
                "give the text itself"
            )
        report.text = evaluate_shard(model, shard, **how)
    elif documents is not None:
        texts = (document.text for document in documents)
        report.text = evaluate_documents(model, tokenizer, texts, **how)
    for task in tasks:
        report.tasks.append(measure_task(model, tokenizer, task, settings))
    if options.lm_eval:
        from evaluation.lm_eval_adapter import run_lm_eval

        report.harness = run_lm_eval(
            model,
            tokenizer,
            options.lm_eval,
            include_path=options.lm_eval_tasks,
            limit=options.limit,
            few_shot=options.few_shot,
            batch_size=options.batch_size,
        )
    return report
