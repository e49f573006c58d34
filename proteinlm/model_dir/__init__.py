"""A model directory (config.json and weights): found by name, read, checked and written."""
