"""The contact head `attention`: log-odds of contact, linear in the attention maps (Rao et al. 2021, as ESM's).

What must hold: with an encoder left as it was, the same numbers as `Encoder.contacts` with this regression; no more
attention maps are in memory than proteinlm.network.attention.maps allows, in training too.

Legend: B proteins, N tokens of the longest (residues + 2), L residues of one, M = layers * heads maps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.network.contacts import ContactRegression, contact_logits
from tape.models import outputs

# Maps hold about 1 / L: at this scale the steps of Adam that suit the other parameters move these too.
SCALE = 100.0


def attention_head_tensors(regression: ContactRegression) -> dict[str, Tensor]:
    """A regression as a model's head has it."""
    parts = {"weight": regression.weight, "bias": regression.bias}
    return {f"predict.regression.{name}": value.float() / SCALE for name, value in parts.items()}


class AttentionContactHead(nn.Module):
    """regression: of ESM's shape, weight [1, M] and bias [1], both divided by SCALE."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        network = getattr(trunk, "encoder", None)
        if not hasattr(network, "attention_sums"):
            kind = getattr(trunk.config, "base_model", type(trunk).__name__)
            raise InputError(f"head attention: {kind} gives no attention maps; transformer and huggingface do")
        maps = network.config.num_layers * network.config.num_attention_heads
        if not maps:
            raise InputError("head attention: this encoder's attention has no heads, so no maps")
        self.regression = nn.Linear(maps, 1)
        nn.init.normal_(self.regression.weight, std=0.02)
        nn.init.zeros_(self.regression.bias)

    def forward(self, trunk: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
        """[B, N-2, N-2, 2]: 0 and the log-odds of contact, so that their softmax is the regression's probability."""
        outputs.check_positions(mask, trunk.encoder.config.max_tokens)
        *stream, _ = outputs.flatten_tokens(input_ids, mask)
        weight, bias = self.regression.weight * SCALE, self.regression.bias * SCALE
        longest = mask.shape[1] - 2
        maps = [own[0] for own in contact_logits(trunk.encoder, weight, bias, *stream)]
        logits = torch.stack([F.pad(own, (0, longest - len(own)) * 2) for own in maps])
        return torch.stack((torch.zeros_like(logits), logits), -1)
