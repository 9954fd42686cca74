def trainable(names):
    return {n for n in names if n.split(".")[-1] in {"lora_a", "lora_b"}}
