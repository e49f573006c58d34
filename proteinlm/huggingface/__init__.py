"""Encoders of other projects, run by Hugging Face's `transformers` (the extra [huggingface])."""
