"""Finetuning: flags, optimizer steps, learning rates by layer, LoRA, BatchNorm over several processes."""
