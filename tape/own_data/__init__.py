"""One's own data: a table of proteins with labels as a task, and the copy of it that a run keeps."""
