"""The loss that pretraining starts from: the masked-LM loss of the first global batch that `pretrain` would draw.

The same rows, masks and sums as `python -m pretrain --load X --finetune` with the same data, split, sequence length,
seed and global batch size, without dropout. With --hidden-dropout 0 --attention-dropout 0 the first lm_loss of that run
is this number.
"""

from collections.abc import Sequence

import torch

from converter.model import PortableModel
from pretrain.data.blending import build_datasets
from pretrain.data.loader import PackedLoader
from proteinlm.errors import InputError
from proteinlm.loss import masked_lm_loss


@torch.no_grad()
def first_step_loss(
    model: PortableModel,
    data_path: Sequence[str],
    seq_length: int,
    global_batch_size: int,
    split: str,
    mask_prob: float,
    seed: int,
) -> tuple[float, int]:
    """(mean cross-entropy in nats, masked residues it is over)."""
    if seq_length > model.config.max_position_embeddings:
        longest = model.config.max_position_embeddings
        raise InputError(f"--seq-length {seq_length}: the model has max-position-embeddings {longest}")
    train, _, _ = build_datasets(data_path, split, model.tokenizer, seq_length, mask_prob, seed)
    bert = model.build()
    loader = PackedLoader(train, 1, lambda consumed: global_batch_size, num_samples=global_batch_size)
    total, masked = 0.0, 0
    for batch in next(iter(loader)):
        logits = bert(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.masked_positions)
        total += float(masked_lm_loss(logits, batch.labels))
        masked += batch.num_masked
    return total / max(1, masked), masked
