"""从零训练一个小 GPT：从纯文本，到会照着样子写的模型。

    python examples/train_small_gpt.py                    两个 CPU 核上约五分钟
    python examples/train_small_gpt.py --quick            不到一分钟，走一遍流程
    python examples/train_small_gpt.py --data 我的书.txt  用自己的文本，也可以是一个文件夹

默认的语料是 Python 自带的文档与标准库源代码，每台机器都有，不必下载。
这个文件可以整个照抄：六步，每步一两个调用，想换哪一步就换哪一步。
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from foundation.demonstration import use_utf8
from foundation.devices import seed_everything
from gpt_model.config import preset
from gpt_model.model import GPT
from inference.generator import TextGenerator
from inference.sampling import SamplingParams
from tokenization.tokenizer import Tokenizer
from training.dataset import TokenBatches, sequential_batches
from training.loss_plot import PlotHook
from training.prepare import prepare_data
from training.progress import ProgressHook
from training.train_config import TrainConfig
from training.trainer import Trainer


def read_options() -> argparse.Namespace:
    """Read the command line; what is not given depends on --quick."""
    parser = argparse.ArgumentParser(description="Train a small GPT from scratch.")
    parser.add_argument("--quick", action="store_true", help="a tiny model, under a minute")
    parser.add_argument("--data", help="corpus: names joined by +, or a file, folder or pattern")
    parser.add_argument(
        "--preset", default="modern-micro", help="model size, see `fromzero models`"
    )
    parser.add_argument("--steps", type=int, help="number of updates")
    parser.add_argument("--run-dir", type=Path, help="where checkpoints and loss.png go")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run there")
    parser.add_argument("--prompt", default="def ", help="how the samples begin")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    quick = options.quick
    options.data = options.data or ("python-docs" if quick else "python-docs+python-code")
    options.steps = (150 if quick else 650) if options.steps is None else options.steps
    options.run_dir = options.run_dir or Path("runs", "quick-gpt" if quick else "small-gpt")
    return options


def show_samples(generator: TextGenerator, prompt: str) -> None:
    """Print two continuations of the prompt."""
    params = SamplingParams(max_new_tokens=60, temperature=0.8, top_k=40, seed=1, num_return=2)
    for number, sample in enumerate(generator.generate([prompt], params), start=1):
        # 没训练好的模型什么都写得出来，控制字符会弄乱终端，换成 ·
        text = "".join(c if c.isprintable() or c == "\n" else "·" for c in prompt + sample.text)
        print(f"--- 样例 {number} ---\n{text}")
    print("---")


def main() -> None:
    """Six steps from text to a saved model."""
    options = read_options()
    quick, started = options.quick, time.perf_counter()
    config = TrainConfig(
        steps=options.steps,
        learning_rate=3e-3,  # 小模型吃得下大步子；大模型要小得多
        min_lr_ratio=0.02,
        seed=options.seed,
        eval_every=max(1, options.steps // 4),
        eval_batches=20,
    )

    # ① 语料 → 词元。分词器也从语料里学；第二次运行直接用上次存下的
    print(f"① 准备语料 {options.data} ……", flush=True)
    data_dir = options.run_dir.with_name(f"{options.run_dir.name}-data")
    train, val = prepare_data(options.data, "bpe", data_dir, vocab_size=512 if quick else 2048)
    tokenizer = Tokenizer.load(data_dir)
    print(f"   训练 {len(train):,} 个词元，验证 {len(val):,} 个，词表 {tokenizer.vocab_size}")

    # ② 模型：权重全是随机数
    seed_everything(options.seed)
    size = {"n_layers": 2, "dim": 64, "max_seq_len": 128} if quick else {}
    model = GPT(preset(options.preset, vocab_size=tokenizer.vocab_size, **size))
    print(f"② 模型 {options.preset}：{model.num_parameters():,} 个参数")

    # ③ 训练之前：它只会乱写
    print("③ 训练之前")
    generator = TextGenerator(model, tokenizer)
    show_samples(generator, options.prompt)

    # ④ 训练：批次是 (种子, 步数) 的纯函数；验证集在训练中从未出现
    batch_size, block = 8, model.config.max_seq_len
    trainer = Trainer(
        model,
        TokenBatches(train, batch_size, block, seed=options.seed),
        config=config,
        hooks=[ProgressHook(), PlotHook()],
        val_batches=lambda: sequential_batches(val, batch_size, block),
        run_dir=options.run_dir,
        tokenizer=tokenizer,
        bytes_per_token=val.bytes_per_token,
    )
    before = trainer.evaluate()
    print(f"④ 训练 {options.steps} 步；验证损失从 {before.loss:.3f} 开始", flush=True)
    result = trainer.fit(overwrite=options.overwrite)

    # ⑤ 训练之后：还是同样的提示、同样的种子
    print("⑤ 训练之后")
    show_samples(generator, options.prompt)
    after = trainer.evaluate()
    print(f"   验证损失 {before.loss:.3f} → {after.loss:.3f}", end="")
    print(f"，每字节 {before.bits_per_byte:.3f} → {after.bits_per_byte:.3f} 比特")

    # ⑥ 都存好了：模型目录可以直接拿来生成、微调
    print(f"⑥ 存在 {result.directory}：检查点 step-{result.step:06d}/、曲线 loss.png")
    seconds = time.perf_counter() - started
    print(f"   共 {seconds:.0f} 秒，训练每秒 {result.tokens_per_second:,.0f} 个词元")
    print(f"   接着试：fromzero generate --model {result.directory} --prompt '{options.prompt}'")


if __name__ == "__main__":
    use_utf8()
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
