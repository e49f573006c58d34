"""One model over many processes: tensor, pipeline and data parallelism, applied to `proteinlm.model` from outside."""
