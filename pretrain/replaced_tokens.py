"""Replaced-token detection, `--objective rtd` (ELECTRA; Clark et al. 2020, arXiv 2003.10555).

A small generator is trained as a masked LM and fills the masked residues with what it draws from its predictions; the
encoder tells of every token whether it was replaced. Only the encoder is kept afterwards, without a masked-LM head.

Loss of a step: the generator's cross-entropy over the masked residues, plus --rtd-weight (50 there) times the binary
cross-entropy over all tokens. Other than there, the two share no embedding: a protein's has some thirty rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.options import Training
from pretrain.data.loader import Batch
from proteinlm.loss import IGNORE
from proteinlm.network.config import ModelConfig
from proteinlm.network.layers import ACTIVATIONS
from proteinlm.network.model import ProteinBert

# Names of what a checkpoint of this objective holds beside the encoder.
GENERATOR, HEAD = "generator", "replaced_head"


def generator_config(config: ModelConfig, share: float) -> ModelConfig:
    """As deep as the encoder, with about `share` of its heads, width and MLP, and heads of the same size."""
    heads = max(1, round(share * config.num_attention_heads))
    width = max(1, round(config.ffn_hidden_size * heads / config.num_attention_heads))
    return replace(
        config,
        num_attention_heads=heads,
        hidden_size=heads * config.head_size,
        ffn_hidden_size=width,
        embedding_size=None,
    )


class ReplacedHead(nn.Module):
    """[T, h] -> [T]: the log-odds that a token was replaced."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, 1)
        self.activation = ACTIVATIONS[config.lm_head_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.activation(self.dense(hidden))).squeeze(-1)


class ReplacedTokenModel(ProteinBert):
    """The encoder under its own names, with the generator and the head beside it."""

    def __init__(self, config: ModelConfig, generator_size: float):
        super().__init__(config, lm_head=False)
        self.generator = ProteinBert(generator_config(config, generator_size))
        self.replaced_head = ReplacedHead(config)

    def log_odds(self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """fp32 or wider [T]: that each token of the stream is not the protein's own."""
        hidden = self.state_after(len(self.layers), tokens, position_ids, cu_seqlens)
        scores = self.replaced_head(hidden)
        return scores if scores.dtype == torch.float64 else scores.float()


def network_for(training: Training, config: ModelConfig) -> ProteinBert:
    """What --objective trains."""
    return ReplacedTokenModel(config, training.generator_size) if training.objective == "rtd" else ProteinBert(config)


def fill(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens shaped as the batch's with a draw from softmax(logits) at each masked place, whether each was replaced).

    A draw that is the protein's own residue replaces nothing.
    """
    drawn = torch.multinomial(logits.detach().float().softmax(-1), 1).squeeze(-1)
    tokens, places, unused = batch.tokens.flatten(), batch.masked_positions, batch.labels == IGNORE
    # An unused place points at its row's first token, which stays.
    filled = tokens.index_copy(0, places, torch.where(unused, tokens[places], drawn))
    own = tokens.index_copy(0, places, torch.where(unused, tokens[places], batch.labels))
    return filled.view_as(batch.tokens), filled != own


def detection_loss(log_odds: Tensor, replaced: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """(the sum of the binary cross-entropies over `real` tokens, how many of them are told right)."""
    losses = F.binary_cross_entropy_with_logits(log_odds, replaced.to(log_odds.dtype), reduction="none")
    right = ((log_odds > 0) == replaced) & real
    return (losses * real).sum(), right.sum()


@contextmanager
def fixed_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Draws inside are the same every time, and those outside go on as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
