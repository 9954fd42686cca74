"""公开的考卷怎样考我们的模型？——接到 EleutherAI 的 lm-evaluation-harness（lm_eval）上。

The harness asks a model three things; each is a few lines here:

    loglikelihood           ln p(continuation | context), and is it what greedy writes
    loglikelihood_rolling   ln p(text), in windows that do not overlap
    generate_until          a text that ends at one of the stop texts

lm_eval is an optional package and slow to import: it is imported when an adapter is made. Text is
never read as special tokens: a question that holds "<|endoftext|>" ends no document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.exact_match import prompt_ids
from evaluation.likelihood import score_tokens
from foundation.checks import check_int
from inference.generator import TextGenerator
from inference.sampling import SamplingParams

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

__all__ = ["lm_eval_model", "run_lm_eval"]

MISSING = (
    "lm_eval is not installed; pip install 'llm-from-zero[lm-eval]', or use tasks of your own: "
    "fromzero evaluate --task FILE.jsonl"
)
# The harness's names of a limit on new tokens, the first that is given wins.
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def lm_eval_model(
    model: GPT, tokenizer: Tokenizer, *, batch_size: int = 16, max_gen_toks: int | None = None
) -> Any:
    """Wrap a model as the harness's `LM`, for `lm_eval.simple_evaluate(model=…)`.

    `max_gen_toks` is how much is written where a task does not say: at most half the context.
    """
    check_int("batch_size", batch_size, 1)
    context = model.config.max_seq_len
    default = min(256, context // 2)
    length = default if max_gen_toks is None else check_int("max_gen_toks", max_gen_toks, 1)
    return adapter_class()(model, tokenizer, batch_size, length)


def run_lm_eval(
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness, or yaml files in `include_path`; task → figure → value."""
    adapter = lm_eval_model(model, tokenizer, batch_size=batch_size)
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model=adapter,
        tasks=list(tasks),
        task_manager=task_manager(tasks, include_path),
        limit=limit,
        num_fewshot=few_shot,
        bootstrap_iters=0,
        log_samples=False,
        verbosity=None,
    )
    results: dict[str, dict[str, float]] = {}
    for task, figures in found["results"].items():
        # the names are "acc,none": a measure and a filter; the rest is about the task
        named = {name.removesuffix(",none"): value for name, value in figures.items()}
        results[task] = {
            name: float(value)
            for name, value in named.items()
            if isinstance(value, (int, float)) and "," not in name and name != "sample_len"
        }
    return results


def task_manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """The harness's index of tasks; its own thousands are read only where one is asked for."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"the folder of lm-eval tasks {include_path} does not exist")
    path = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=path, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=path)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        from foundation.checks import nearest

        guess = nearest(unknown[0], manager.all_tasks)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise ValueError(
            f"lm-eval has no task {unknown[0]!r} among its {len(manager.all_tasks)}{hint}"
        )
    return manager


class HarnessModel:
    """What the harness asks, answered by a GPT; `adapter_class` adds lm_eval's own base class."""

    cache_hook: Any  # of the base class: answers of earlier runs, kept in a database

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, batch_size: int, max_gen_toks: int
    ) -> None:
        super().__init__()
        self.model = model
        self.encoder = tokenizer  # `tokenizer` would have to be one of transformers
        self.batch_size = batch_size
        self.max_gen_toks = max_gen_toks
        self.max_length = model.config.max_seq_len

    @property
    def eot_token_id(self) -> int:
        """Where texts begin and end."""
        end = self.encoder.end_id
        if end is None:
            raise ValueError(
                "lm-eval begins texts with the end token, and this tokenizer has none; "
                "make one with special_tokens=('<|endoftext|>',)"
            )
        return end

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: <s> where the tokenizer has one."""
        start = self.encoder.start_ids
        return start[0] if start else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Names the harness's cache of tokenized requests."""
        return f"fromzero-{self.encoder.fingerprint[:16]}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """With what this tokenizer puts around every text, often nothing, unless told not to."""
        return self.encoder.encode(string, add_special=add_special_tokens is not False)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """As the base class, which cannot take two empty texts: ln 1 = 0."""
        empty = {i for i, request in enumerate(requests) if request.args == ("", "")}
        others = [request for i, request in enumerate(requests) if i not in empty]
        base: Any = super()
        found = iter(base.loglikelihood(others, disable_tqdm=disable_tqdm))
        return [(0.0, True) if i in empty else next(found) for i in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [
            (context or [self.prefix_token_id], continuation)
            for _, context, continuation in requests
        ]
        answers = [
            (found.log_likelihood, found.is_greedy)
            for found in score_tokens(self.model, pairs, batch_size=self.batch_size)
        ]
        for (texts, *_ids), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Every token once; the first of a window sees the one token before it."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[Any] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(text) if text else [],
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """In batches of equal settings; the prompt's left goes where both do not fit."""
        groups: dict[SamplingParams, list[int]] = {}
        for index, request in enumerate(requests):
            params = sampling_params(request.args[1], self.max_gen_toks)
            groups.setdefault(params, []).append(index)
        texts: dict[int, str] = {}
        writer = TextGenerator(self.model, self.encoder)
        for params, indices in groups.items():
            for first in range(0, len(indices), self.batch_size):
                batch = indices[first : first + self.batch_size]
                prompts = [
                    prompt_ids(
                        self.model,
                        self.encoder,
                        requests[index].args[0],
                        params.max_new_tokens,
                    )
                    or [self.prefix_token_id]
                    for index in batch
                ]
                for index, found in zip(batch, writer.generate(prompts, params), strict=True):
                    texts[index] = found.text
                    args = requests[index].args
                    self.cache_hook.add_partial("generate_until", args, found.text)
        return [texts[index] for index in range(len(requests))]


@cache
def adapter_class() -> Any:
    """HarnessModel on top of the harness's TemplateLM; made when it is first needed."""
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise ValueError(MISSING) from error
    return type("FromZeroLM", (HarnessModel, TemplateLM), {})


def sampling_params(wanted: Mapping[str, Any], default_length: int) -> SamplingParams:
    """The harness's generation settings as ours; one that we do not know is refused."""
    given = dict(wanted)
    until = given.pop("until", None) or ()
    stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    lengths = [given.pop(name, None) for name in LENGTH_NAMES]
    length = next((int(value) for value in lengths if value is not None), default_length)
    temperature = float(given.pop("temperature", None) or 0.0)
    if given.pop("do_sample", temperature > 0.0) is False:
        temperature = 0.0
    elif temperature == 0.0:  # asked to sample, not told how: the model's own probabilities
        temperature = 1.0
    shared = {
        name: given.pop(name)
        for name in ("top_k", "top_p", "min_p", "repetition_penalty", "num_beams", "seed")
        if given.get(name) is not None
    }
    unknown = [name for name, value in given.items() if value is not None]
    if unknown:
        raise ValueError(
            f"the lm-eval task asks for {', '.join(unknown)} in generation_kwargs, which this "
            "project's sampling does not have; change it in the task's yaml"
        )
    return SamplingParams(max_new_tokens=length, temperature=temperature, stop=stop, **shared)
