"""One model over many processes: tensor, pipeline and data parallelism, applied to `pretrain.model` from outside."""
