def trainable(names: list[str]) -> list[str]:
    """
    zh: 微调时谁在学：给出全部参数的名字，交回要训练的那些。适配器的两个矩阵叫 ….lora_a
    zh: 与 ….lora_b，其余一律冻结：底座的权重、偏置、归一化、词嵌入、lm_head
    en: Who learns in finetuning: of all parameters' names return those that are trained. The two
    en: matrices of an adapter are named ….lora_a and ….lora_b; everything else is frozen: the
    en: base's weights, biases, norms, embeddings, lm_head
    """
    # >>>
    chosen = []
    for name in names:
        if name.endswith((".lora_a", ".lora_b")):
            chosen.append(name)
    return chosen
    # <<< raise NotImplementedError
