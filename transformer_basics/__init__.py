"""第一层：Transformer 的数学积木，只依赖 torch。

读的次序：masks → heads → attention（公式到 CausalSelfAttention）→ head_patterns（练出来看）→
fast_attention → document_attention → activations → layers → embeddings → rotary →
rope_scaling → kv_cache。
"""
