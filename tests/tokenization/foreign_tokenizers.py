"""Tokenizers of every kind that is met in the wild, trained here by the library itself."""

import functools
import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    *("the cat sat on the mat. It's 12345 o'clock, isn't it? the cats the table",),
    *("明月几时有？把酒问青天。不知天上宫阙，今夕是何年。明月明月",),
    *("def f(x):\n    return x ** 2  # 平方\n\n\tclass A(B): pass\n", "e\u0301 ﬁ ＡＢＣ ½ naïve"),
] * 6

# the splits of GPT-2, Llama 3 and Qwen 2, as their tokenizer.json files write them
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

KINDS = ("gpt2", "llama3", "qwen2", "llama2", "mistral", "gemma", "t5", "unigram")


def build(kind):
    """The library's own object, finished: normalizer, split, model, post-processor, decoder."""
    return byte_level(kind) if kind in ("gpt2", "llama3", "qwen2") else sentence_pieces(kind)


def byte_level(kind):
    library = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind != "gpt2":
        pattern = tokenizers.Regex(LLAMA3 if kind == "llama3" else QWEN2)
        parts = [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        library.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if kind == "qwen2":
        library.normalizer = normalizers.NFC()
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    library.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    library.add_tokens(["<think>"])
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    if kind == "llama3":
        begin = library.token_to_id("<|im_start|>")
        library.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
        )
    return library


def sentence_pieces(kind):
    is_bpe = kind in ("llama2", "mistral", "gemma")
    library = tokenizers.Tokenizer(models.BPE() if is_bpe else models.Unigram())
    replace = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "llama2":
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        library.normalizer = normalizers.Sequence(parts)
        library.decoder = decoders.Sequence([*replace, decoders.Strip(" ", 1, 0)])
    elif kind == "mistral":
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        library.decoder = decoders.Sequence([*replace, decoders.Strip(" ", 1, 0)])
    elif kind == "gemma":
        library.normalizer = normalizers.Replace(" ", "▁")
        library.decoder = decoders.Sequence(replace)
    else:
        parts = [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
        if kind == "t5":
            parts.insert(0, normalizers.Strip(left=True, right=True))
        library.normalizer = normalizers.Sequence(parts)
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        library.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    options = {"special_tokens": special, "show_progress": False}
    if is_bpe:
        trainer = trainers.BpeTrainer(vocab_size=300, **options)
    else:
        trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", **options)
    library.train_from_iterator(CORPUS, trainer)
    values = json.loads(library.to_str())
    if is_bpe:
        add_bytes(values["model"])
    else:
        values["model"]["unk_id"] = 0
    library = tokenizers.Tokenizer.from_str(json.dumps(values))
    single = "$A </s>" if kind == "t5" else "<s> $A"
    library.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    if kind == "gemma":
        library.add_tokens(["\n\n", "▁▁▁"])
    return library


def add_bytes(model):
    """The 256 bytes to which such a model falls back, after the special tokens."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [name for name in model["vocab"] if name not in names]
    model["vocab"] = {name: index for index, name in enumerate(names)}
    model.update(unk_token="<unk>", fuse_unk=True, byte_fallback=True)


@functools.cache
def tokenizer_json(kind):
    """The finished file's content."""
    return build(kind).to_str()
