"""文本 ↔ 编号：字符级、字节级 BPE（byte pair encoding）与读来的 SentencePiece，不认识任何模型。

按这个次序读：
  text_pieces.py      文本先切成小片，小片再写成字节
  split_rules.py      别家怎样切；想导出给 llama.cpp，就用它认得的规则学
  bpe.py              算法全写出来：怎样学合并，怎样重放合并
  tokenizer.py        日常用的 Tokenizer：编码、解码、存取、特殊词元
  library_backend.py  同一个算法交给快的库，怎样保证结果一样
  sentence_pieces.py  SentencePiece 一类：空格也是字，Unigram 怎样切；encoder.py 几种编法
  stream_decoder.py   边生成边显示，半个汉字怎么办
  tokenizer_file.py   tokenizer.json 里写着什么；file_checks.py 检查它；input_checks.py 检查输入
  chat_template.py    几句话怎样排成一段文本，哪些字是助手的；模板在 tokenizer_settings.py 里读，
                      chat_messages.py 防着用户冒充别人
"""
