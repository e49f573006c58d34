"""One model over many processes: tensor, pipeline and data parallelism, applied to `proteinlm.network` from outside."""
