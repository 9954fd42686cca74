"""tokenizer.json."""
