"""The ways to take a training step that are compared. Each gives `loss`, `step` and the gradients that are checked.

Ours        the network of this project in `pretrain.train_step.TrainStep`, as pretraining runs it
DenseMask   the same weights on the same packed rows, with a mask [b, 1, s, s] that keeps proteins apart: through SDPA,
            or with scores and softmax written out, as the original ProteinLM ran it on Megatron-LM
Peer        a masked language model of transformers: autocast, clipping, fused AdamW, in fp16 torch's GradScaler
"""

import copy
import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.comparison import PRECISIONS
from benchmarks.training.batches import Fed
from benchmarks.training.models import Weights
from pretrain.config.options import Config, Data, Optim, Training
from pretrain.data.loader import Batch
from pretrain.parallel.apply import build_model
from pretrain.parallel.mesh import Layout, World
from pretrain.train_step import TrainStep
from proteinlm.network.attention import AttentionPlan
from proteinlm.network.layers import Attention
from proteinlm.optim import LossScaler, build_optimizer

LEARNING_RATE = 1e-5
LOSS_SCALE = 1024.0  # fp16: low enough that no step is skipped


@dataclass(frozen=True)
class Setting:
    """How arms compute. Dropout is part of the weights' configuration."""

    precision: str = "fp32"
    compile: bool = False
    compile_peers: bool = False
    recompute: bool = False
    fp32_residual: bool = True
    flash3: bool = False
    rows: int = 1
    seq_length: int = 1024

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    def config(self) -> Config:
        """What pretraining would be given."""
        training = {"bf16": self.precision == "bf16", "fp16": self.precision == "fp16", "compile": self.compile}
        if hasattr(Training, "fp32_residual_connection"):
            training["fp32_residual_connection"] = self.fp32_residual
        training["recompute_granularity"] = "full" if self.recompute else None
        training |= {"micro_batch_size": self.rows, "global_batch_size": self.rows}
        return Config(
            training=Training(**training), data=Data(seq_length=self.seq_length), optim=Optim(lr=LEARNING_RATE)
        )


class Ours:
    """`step` is pretraining's own."""

    def __init__(self, weights: Weights, setting: Setting, device: torch.device):
        self.device, self.config, self.setting = device, weights.config, setting
        self.prepare_kernels(setting)
        config = setting.config()
        world = World(Layout(), device)
        self.model, loss, _ = build_model(config, weights.config, world)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights.state[name])
        self.optimizer = build_optimizer(self.model, LEARNING_RATE, 0.01)
        scaler = LossScaler(LOSS_SCALE, device=device) if setting.precision == "fp16" else None
        mask_id = weights.tokenizer.mask_id
        self.train_step = TrainStep(config, world, self.model, loss, None, self.optimizer, scaler, mask_id)
        self.num_tokens = len(weights.tokenizer.tokens)

    def prepare_kernels(self, setting: Setting) -> None:
        if not setting.flash3:
            return
        from proteinlm.network.attention import activate_flash3

        if not activate_flash3(self.device):
            raise ValueError("FlashAttention 3 needs a Hopper GPU and the package flash_attn_interface")

    @property
    def network(self) -> nn.Module:
        return self.model[0]

    @property
    def has_dropout(self) -> bool:
        return max(self.config.hidden_dropout, self.config.attention_dropout) > 0

    def loss(self, fed: Fed) -> Tensor:
        """The mean over the masked residues, in the setting's precision."""
        batch = fed.to(self.device)
        return self.train_step.loss(self.train_step.logits(batch), batch.labels) / fed.masked

    def step(self, fed: Fed) -> None:
        self.train_step([fed.inputs], LEARNING_RATE)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """([h, h] of the first layer's queries, [V, h] of the word embedding)."""
        attention = self.network.layers["0"].attention
        gradient = attention.query_key_value.weight.grad
        queries = gradient.view(-1, 3, attention.head_size, gradient.shape[1])[:, 0].flatten(0, 1)
        return queries, self.network.word_embeddings.weight.grad[: self.num_tokens]


class DenseMask(Ours):
    """Attention over whole rows behind a mask. eager: scores [b, H, s, s] exist, softmax in fp32."""

    def __init__(self, weights: Weights, setting: Setting, device: torch.device, eager: bool):
        super().__init__(weights, setting, device)
        self.mask: Tensor | None = None
        for layer in self.network.layers.values():
            layer.attention.forward = partial(self._attend, layer.attention, eager)

    def prepare_kernels(self, setting: Setting) -> None:
        """The mask rules out any flash kernel."""

    def loss(self, fed: Fed) -> Tensor:
        self._make_mask(fed.inputs)
        return super().loss(fed)

    def step(self, fed: Fed) -> None:
        self._make_mask(fed.inputs)
        super().step(fed)

    def _make_mask(self, batch: Batch) -> None:
        """True where a token may look, bool [b, 1, s, s]; made for each batch, as the original did."""
        rows, length = batch.tokens.shape
        starts = (batch.position_ids.to(self.device) == 0).cumsum(1)  # the number of the protein
        self.mask = (starts[:, :, None] == starts[:, None, :])[:, None]
        assert self.mask.shape == (rows, 1, length, length)

    def _attend(self, attention: Attention, eager: bool, x: Tensor, plan: AttentionPlan) -> Tensor:
        rows, length = self.mask.shape[0], self.mask.shape[-1]
        qkv = attention.queries_keys_values(x, plan).unflatten(0, (rows, length))  # [b, s, H, 3, D]
        query, key, value = qkv.permute(3, 0, 2, 1, 4)
        dropout = attention.dropout if attention.training else 0.0
        if eager:
            scores = (query @ key.transpose(-1, -2) / math.sqrt(attention.head_size)).float()
            probabilities = scores.masked_fill(~self.mask, -10000.0).softmax(-1).to(value.dtype)
            mixed = F.dropout(probabilities, dropout) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, self.mask, dropout)
        return attention.dense(mixed.transpose(1, 2).reshape(x.shape[0], -1))


class Peer:
    """A model of transformers and the usual loop round it."""

    def __init__(self, model: nn.Module, setting: Setting, device: torch.device):
        self.model, self.device, self.dtype = model.to(device).train(), device, setting.dtype
        self.optimizer = build_optimizer(self.model, LEARNING_RATE, 0.01)
        fp16 = setting.precision == "fp16"
        self.run = torch.compile(self.model, dynamic=True) if setting.compile_peers else self.model
        self.scaler = torch.amp.GradScaler(device.type, LOSS_SCALE, growth_interval=10**9, enabled=fp16)

    @property
    def has_dropout(self) -> bool:
        return self.model.config.hidden_dropout_prob > 0

    def in_fp32(self) -> "Peer":
        """The same model, not compiled, for a check before its first step."""
        other = copy.copy(self)
        other.run, other.dtype = self.model, torch.float32
        return other

    def loss(self, fed: Fed) -> Tensor:
        inputs = fed.to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.run(**inputs).loss

    def step(self, fed: Fed) -> None:
        self.scaler.scale(self.loss(fed)).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """As `Ours.gradients`."""
        trunk = self.model.base_model
        queries = trunk.encoder.layer[0].attention.self.query.weight.grad
        return queries, trunk.embeddings.word_embeddings.weight.grad


Arm = Ours | Peer


def static_bytes(arm: Arm) -> int:
    """Of weights and optimizer state: what an arm holds between steps."""
    states = [value for state in arm.optimizer.state.values() for value in state.values()]
    tensors = [*arm.model.parameters(), *arm.model.buffers(), *(v for v in states if isinstance(v, Tensor))]
    return sum(tensor.nbytes for tensor in tensors)
