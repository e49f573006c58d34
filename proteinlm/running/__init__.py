"""What a run of a command stands on: its processes, and directories that are its own."""
