"""用 LoRA 教一个训练好的模型做新任务：读一个 Python 函数，用一句话说它做什么。

    python examples/finetune_with_lora.py               用 train_small_gpt.py 训练好的模型
    python examples/finetune_with_lora.py --quick       不到一分钟，走一遍流程
    python examples/finetune_with_lora.py --pairs 我的问答.jsonl   教自己的任务

题目来自标准库自己：把函数的说明挖掉，让模型补上。留出的模块，模型在预训练时也没见过。
换成自己的任务，只需一个 jsonl，每行 {"prompt": "……", "answer": "……"}。
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from finetuning.adapter_files import OWN_FILES, save_adapter
from finetuning.conversation_files import read_pairs
from finetuning.conversations import Pair
from finetuning.docstring_pairs import docstring_pairs
from finetuning.lora import LoRAConfig, apply_lora, count_trainable, merge_lora
from finetuning.packing import ConversationBatches
from foundation.demonstration import use_utf8
from foundation.devices import seed_everything
from foundation.files import refuse_foreign_directory
from gpt_model.model import GPT
from gpt_model.model_directory import find_model_directory
from inference.generator import TextGenerator
from inference.sampling import SamplingParams
from tokenization.tokenizer import Tokenizer
from training.progress import ProgressHook
from training.train_config import TrainConfig
from training.trainer import Trainer


def read_options() -> argparse.Namespace:
    """Read the command line; what is not given depends on --quick."""
    parser = argparse.ArgumentParser(description="Teach a model a new task with LoRA.")
    parser.add_argument("--quick", action="store_true", help="few steps, under a minute")
    parser.add_argument("--model", type=Path, help="model or run directory to start from")
    parser.add_argument("--pairs", type=Path, help="jsonl with prompt and answer on each line")
    parser.add_argument("--steps", type=int, help="number of updates")
    parser.add_argument("--rank", type=int, default=8, help="the r of LoRA")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--adapter", type=Path, help="where the adapter is saved")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.steps = (60 if options.quick else 400) if options.steps is None else options.steps
    options.adapter = options.adapter or Path("runs", "docstring-adapter")
    return options


def find_base(options: argparse.Namespace) -> Path:
    """Return a trained model's directory; train a quick one if there is none."""
    if options.model is not None:
        return find_model_directory(options.model)
    quick_run, long_run = Path("runs", "quick-gpt"), Path("runs", "small-gpt")
    for run in [quick_run] if options.quick else [long_run, quick_run]:
        if any(run.glob("step-*/manifest.json")):
            return find_model_directory(run)
    print("没有训练好的模型，先训练一个快的（结果粗糙；想要好的，先运行 train_small_gpt.py）\n")
    script = Path(__file__).with_name("train_small_gpt.py")
    subprocess.run([sys.executable, str(script), "--quick"], check=True)
    print()
    return find_model_directory(quick_run)


def load_pairs(options: argparse.Namespace) -> tuple[list[Pair], list[Pair]]:
    """Return (training pairs, held-out pairs)."""
    if options.pairs is None:
        return docstring_pairs(max_lines=8 if options.quick else 20)
    pairs = read_pairs(options.pairs)
    if len(pairs) < 2:
        raise ValueError(f"{options.pairs} has 1 pair, at least 2 are needed (one is held out)")
    held_out = max(1, len(pairs) // 10)
    return pairs[:-held_out], pairs[-held_out:]


def main() -> None:
    """Six steps from a base model to a saved adapter."""
    options = read_options()
    # 写错的数、存不下去的地方，现在就说，不等到练完
    refuse_foreign_directory(options.adapter, OWN_FILES, "an adapter")
    targets = ("q_proj", "v_proj", "up_proj", "down_proj")
    lora = LoRAConfig(r=options.rank, alpha=2.0 * options.rank, target=targets)
    config = TrainConfig(
        steps=options.steps,
        learning_rate=options.learning_rate,  # 比全量微调大：B 要从零走出来
        weight_decay=0.0,
        eval_every=options.steps,
        seed=options.seed,
    )

    # ① 底座，和要学的题目
    directory = find_base(options)
    model, tokenizer = GPT.load(directory), Tokenizer.load(directory)
    (training, held_out), length = load_pairs(options), model.config.max_seq_len
    batches = ConversationBatches(
        training, tokenizer, 16, length, seed=options.seed, too_long="skip"
    )
    exam = ConversationBatches(held_out[:200], tokenizer, 16, length, too_long="skip")
    print(f"① 底座 {directory}；训练 {len(batches):,} 题，留出 {len(exam)} 题", end="")
    print(f"（太长放不下的：{batches.n_skipped} 与 {exam.n_skipped} 题）")

    # ② 装上 LoRA：底座冻结，只训练细细的两条
    seed_everything(options.seed)
    apply_lora(model, lora)
    trainable, total = count_trainable(model)
    print(f"② 可训练 {trainable:,} / {total:,} 个参数 = {trainable / total:.1%}")

    # ③ 训练：还是那个 Trainer，只换了批次；损失只算在答案上
    trainer = Trainer(model, batches, config=config, hooks=[ProgressHook()], val_batches=exam.once)
    before = trainer.evaluate().loss
    print(f"③ 训练 {options.steps} 步；留出损失从 {before:.3f} 开始", flush=True)
    trainer.fit()
    after = trainer.evaluate().loss
    print(f"   留出损失 {before:.3f} → {after:.3f}（每个词元，只算答案）")

    # ④ 它在读题吗？把答案配上别人的函数，损失应当变高
    shuffled = [Pair(held_out[i - 1].prompt, pair.answer) for i, pair in enumerate(held_out[:200])]
    trainer.val_batches = ConversationBatches(shuffled, tokenizer, 16, length, too_long="skip").once
    other = trainer.evaluate().loss
    print(f"④ 题目张冠李戴时 {other:.3f}，差 {other - after:+.3f}：差得越多，说明它越是在读题")

    # ⑤ 存适配器；并进底座，成为一个普通模型
    save_adapter(model, options.adapter, base_name=str(directory))
    size = sum(path.stat().st_size for path in options.adapter.iterdir())
    plain = merge_lora(model).eval()
    ids = next(exam.once()).inputs.to(plain.device)
    with torch.no_grad():
        gap = float((plain(ids).logits - model.eval()(ids).logits).abs().max())
    assert gap < 1e-3, gap
    print(f"⑤ 适配器 {options.adapter}：{size / 1024:.0f} KiB；合并与不合并的最大差 {gap:.0e}")

    # ⑥ 看它答题；生成不知道有过 LoRA
    print("⑥ 留出的题目")
    generator = TextGenerator(plain, tokenizer)
    short = [pair for pair in held_out if len(pair.prompt) < 250] or held_out
    for pair in short[:: max(1, len(short) // 3)][:3]:
        answer = generator.generate(pair.prompt, SamplingParams(max_new_tokens=40, temperature=0.0))
        print(f"{pair.prompt.rstrip()}\n   模型：{answer.text.strip()}\n   原文：{pair.answer}\n")


if __name__ == "__main__":
    use_utf8()
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
