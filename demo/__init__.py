"""`make demo`: a synthetic world of related proteins, from its FASTA file to five numbers and a report."""
