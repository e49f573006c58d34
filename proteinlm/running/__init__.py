"""What a run of a command stands on: its processes, and directories that are its own."""

MOST_WORKERS = 256  # that prepare batches: more than machines have cores to spare for; a larger number is a slip
