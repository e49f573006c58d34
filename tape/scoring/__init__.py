"""From a finetuned model and a split to numbers with intervals, and their files."""
