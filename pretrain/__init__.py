"""Stage one: protein sequences -> gradients -> a sharded checkpoint. Nothing is imported here, so that
`python -m pretrain.preprocess` starts without torch."""
