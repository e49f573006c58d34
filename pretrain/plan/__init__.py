"""Layouts of a run on a cluster, counted from the code that trains, with time and cost: `python -m pretrain.plan`."""
