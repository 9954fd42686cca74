"""训练：语料 → 词元分片 → 批次 → 唯一的训练循环。先读 dataset.py，再读 trainer.py。"""
