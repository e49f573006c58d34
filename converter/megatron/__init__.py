"""Megatron checkpoints, the published ProteinLM weights among them."""
