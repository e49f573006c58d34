"""A user's FASTA to batches, and batches to vectors and predictions."""
