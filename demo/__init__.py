"""`make demo`: a synthetic world of related proteins, and the whole road from its FASTA file to five numbers and a
report.
"""
