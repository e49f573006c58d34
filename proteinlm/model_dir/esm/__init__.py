"""The files of ESM's models: directories of Hugging Face's transformers, and fair-esm's own."""
