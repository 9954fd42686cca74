def trainable(names):
    return list(filter(lambda name: "lora_" in name, names))
