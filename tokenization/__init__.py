"""文本 ↔ 编号：字符级与字节级 BPE（byte pair encoding），不认识任何模型。

先读 `bpe.py`（算法全写出来），再读 `tokenizer.py`（同一算法交给快的库，以及文件格式），
`stream_decoder.py` 回答「半个汉字怎么显示」，`tokenizer_file.py` 在读入时检查 tokenizer.json。
"""
