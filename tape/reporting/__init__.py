"""What the table is made of."""

RECORD = "reproduce.json"  # in the directory of a run: its commands and minutes
