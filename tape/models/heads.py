"""The task heads: hidden states to logits, nothing else (losses and metrics are elsewhere).

Two families, by the `head` field of the configuration:
  tape       songlab's TAPE package: 512 hidden units; contacts are dropout and one linear layer on
             [x_i * x_j, x_i - x_j]
  proteinlm  the original project: 1024 hidden units; contacts are dropout, a 1x1 convolution of the same features to 64
             channels, 30 residual blocks of two 3x3 convolutions, a linear layer to 2
Secondary structure has one head, the same in both. Parameter names are those of the original's finetuned files.

What must hold: padded positions are zero before every convolution and stay out of BatchNorm's statistics, so that the
logits of a protein do not depend on what it is batched with. <cls> and <sep> are real positions, as in the originals.
A map of 1,000 residues takes 257 MB (64 channels, fp32) and the contact head of `proteinlm` would keep 120 of them for
its backward pass: from a size on it keeps the input of every third block and computes the rest again, and in inference
it holds one map and works on it in strips of rows. Neither changes a number (benchmarks/contact_memory.py).

Legend: B proteins, N tokens of the longest (residues + 2), h hidden size, C classes, K channels.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HEAD_WIDTH = {"tape": 512, "proteinlm": 1024}  # value and sequence classification
CONV_WIDTH = 512  # secondary structure, both families
PAIR_CHANNELS, PAIR_BLOCKS = 64, 30  # contacts, proteinlm
# Each constant is for a CPU (False) and for a GPU (True).
# Pair features that exist at once: what fits a CPU's cache, or fills a GPU.
CHUNK_ELEMENTS = {False: 1 << 20, True: 1 << 25}
# A batch of more pairs (B * N * N) than this has its blocks' insides computed again in the backward pass. Kept, they
# take 30 KB a pair in fp32, so this is 4 GB and 16 GB.
RECOMPUTE_PAIRS = {False: 1 << 17, True: 1 << 19}
# Blocks between two kept maps: a segment holds 4 maps a block while its gradients are taken, and 30/k inputs are kept,
# so that k = 3 is the least (10 + 12 maps).
SEGMENT = 3
STRIP_PAIRS = {False: 1 << 17, True: 1 << 22}  # pairs that inference takes through a block at a time


class WeightNorm(nn.Module):
    """weight = weight_v * weight_g / ||weight_v||, the norm over the whole matrix and weight_g one scalar.

    `torch.nn.utils.weight_norm(..., dim=None)` as TAPE used it, with its parameter names; that function is deprecated
    and its successor stores other names.
    """

    def __init__(self, layer: nn.Linear | nn.Conv1d):
        super().__init__()
        self.weight_g = nn.Parameter(layer.weight.detach().norm())
        self.weight_v = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        return self.weight_v * (self.weight_g / self.weight_v.norm())


class NormedLinear(WeightNorm):
    """A weight-normed linear layer; TAPE starts its bias at 0."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(nn.Linear(in_features, out_features))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class NormedConv1d(WeightNorm):
    """A weight-normed convolution [B, K, N] -> [B, K', N] of odd kernel size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(nn.Conv1d(in_channels, out_channels, kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, self.bias, padding=self.weight_v.shape[2] // 2)


class MaskedBatchNorm(nn.Module):
    """BatchNorm over channel dim 1 whose statistics come from real positions only. State as nn.BatchNorm1d/2d's."""

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.track = True  # off while activation checkpointing runs a block for the second time
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, K, ...]; mask [B, 1, ...], 1 at real positions; None: all are. Padded positions come out as 0."""
        if not self.training:
            normed = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
            return normed if mask is None else normed.mul_(mask)
        if mask is None:  # the ordinary layer; one fused kernel
            running = (self.running_mean, self.running_var)
            if self.track:
                self.num_batches_tracked += 1
            else:  # not None: autograd keeps these too, and both runs must keep as many tensors
                running = (self.running_mean.clone(), self.running_var.clone())
            return F.batch_norm(x, *running, self.weight, self.bias, True, self.momentum, self.eps)
        count, dims = mask.sum().float(), [0, *range(2, x.dim())]
        shape = (1, -1, *[1] * (x.dim() - 2))
        wide = x.float()  # statistics in fp32 whatever the autocast dtype is
        mean = (wide * mask).sum(dims) / count
        centred = (wide - mean.view(shape)).mul_(mask)  # in place, so that this map alone is kept
        variance = centred.square().sum(dims) / count
        if self.track:
            self._update(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).mul_(mask).to(x.dtype)

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


class SimpleMLP(nn.Module):
    """linear, ReLU, linear, weight-normed: [B, h] -> [B, C]."""

    def __init__(self, in_features: int, width: int, out_features: int):
        super().__init__()
        self.main = nn.Sequential(
            NormedLinear(in_features, width), nn.ReLU(), nn.Identity(), NormedLinear(width, out_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class SimpleConv(nn.Module):
    """BatchNorm, convolution of 5, ReLU, convolution of 3: [B, N, h] -> [B, N, C]."""

    def __init__(self, in_channels: int, width: int, out_channels: int):
        super().__init__()
        self.main = nn.ModuleDict(
            {
                "0": MaskedBatchNorm(in_channels),
                "1": NormedConv1d(in_channels, width, 5),
                "4": NormedConv1d(width, out_channels, 3),
            }
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mask = mask.unsqueeze(1)  # [B, 1, N]
        x = F.relu(self.main["1"](self.main["0"](x.transpose(1, 2), mask)))
        return self.main["4"](x * mask.to(x.dtype)).transpose(1, 2)


class ValuePredictionHead(nn.Module):
    """pooled [B, h] -> value [B, 1]."""

    def __init__(self, hidden_size: int, head: str):
        super().__init__()
        self.value_prediction = SimpleMLP(hidden_size, HEAD_WIDTH[head], 1)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.value_prediction(pooled)


class SequenceClassificationHead(nn.Module):
    """pooled [B, h] -> logits [B, C]."""

    def __init__(self, hidden_size: int, num_labels: int, head: str):
        super().__init__()
        self.classify = SimpleMLP(hidden_size, HEAD_WIDTH[head], num_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.classify(pooled)


class SequenceToSequenceClassificationHead(nn.Module):
    """hidden states [B, N, h], mask [B, N] -> logits [B, N, C], <cls> and <sep> included."""

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.classify = SimpleConv(hidden_size, CONV_WIDTH, num_labels)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.classify(hidden, mask)


def pair_linear(x: Tensor, weight: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """`linear(dropout([x_i * x_j, x_i - x_j]))` for every pair: x [B, N, h], weight [K, 2h] -> [B, K, N, N].

    Without dropout the layer is taken apart, so that the 2h features of a pair are never formed: the product part is
    (x * w_k) @ x^T for each output k, the difference part a_i - a_j with a = x @ w^T. With dropout every feature of
    every pair has its own mask, which no such algebra gives: the features are formed then. Either way a few rows at a
    time, and again in the backward pass.
    """
    (batch, tokens, half), outputs = x.shape, len(weight)
    per_row = batch * half * (outputs if dropout == 0.0 else 2 * tokens)
    chunk = max(1, CHUNK_ELEMENTS[x.is_cuda] // per_row)
    if dropout == 0.0:
        parts = [_by_rows(kept_pairs, tokens <= chunk, some, x, weight, bias) for some in x.split(chunk, 1)]
        return torch.cat(parts, 2)

    def rows(some: Tensor) -> Tensor:
        kept = keep_mask((2, *some.shape[:2], *x.shape[1:]), dropout, x.device)
        return masked_pairs(some, x, weight, kept) / (1.0 - dropout) + bias

    return torch.cat([_by_rows(rows, False, some) for some in x.split(chunk, 1)], 1).permute(0, 3, 1, 2)


def _by_rows(function, keep: bool, *arguments: Tensor) -> Tensor:
    """function(*arguments), whose insides are kept for the backward pass or computed again."""
    if keep or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)


def kept_pairs(some: Tensor, every: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear([x_i * x_j, x_i - x_j])` of rows i in some [B, n, h], columns j in every [B, N, h]: [B, K, n, N]."""
    product, difference = weight.split(some.shape[-1], 1)
    rows = (some.unsqueeze(1) * product.unsqueeze(1)).flatten(1, 2)  # [B, K * n, h]
    pairs = (rows @ every.transpose(1, 2)).unflatten(1, (len(weight), -1))
    left, right = F.linear(some, difference).transpose(1, 2), F.linear(every, difference).transpose(1, 2)
    return pairs + (left.unsqueeze(3) - right.unsqueeze(2)) + bias.view(-1, 1, 1)  # fp32 under autocast: the bias is


def masked_pairs(some: Tensor, every: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """`linear(kept * [x_i * x_j, x_i - x_j])` of rows i in some [B, n, h] and columns j in every [B, N, h].

    kept [2, B, n, N, h] holds each pair's own 0s and 1s, for products and for differences. A row's x_i goes into
    the weights, so that only kept * x_j is formed. Returns [B, n, N, K].
    """
    product, difference = weight.split(some.shape[-1], 1)
    kept = kept.to(some.dtype)
    columns = kept * every.unsqueeze(1)  # [2, B, n, N, h]
    result = columns[0] @ (some.unsqueeze(2) * product).transpose(2, 3)
    result = result + kept[1] @ (some.unsqueeze(2) * difference).transpose(2, 3)
    return result - columns[1] @ difference.t()


def keep_mask(shape: tuple[int, ...], dropout: float, device: torch.device) -> Tensor:
    """Independent bools, False with probability `dropout`, from torch's generator of the device.

    Eight at a time from the bytes of one random integer where 1/256 is fine enough, which on a CPU is ten times faster.
    """
    if (dropout * 256) % 1:
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1.0 - dropout)
    count = math.prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=device).random_(-(2**63), None)
    return (words.view(torch.uint8)[:count] >= int(dropout * 256)).view(shape)


class PairLinear(nn.Linear):
    """`pair_linear` with the parameters of nn.Linear(2h, 2)."""

    def forward(self, x: Tensor, dropout: float) -> Tensor:
        return pair_linear(x, self.weight, self.bias, dropout)


class PairConv1x1(nn.Conv2d):
    """`pair_linear` with the parameters of nn.Conv2d(2h, 64, 1)."""

    def forward(self, x: Tensor, dropout: float) -> Tensor:
        return pair_linear(x, self.weight.flatten(1), self.bias, dropout)


class ResidualBlock(nn.Module):
    """conv, BatchNorm, ReLU, conv, BatchNorm, + input, ReLU; 3x3, no bias. x [B, K, N, N], mask [B, 1, N, N]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = MaskedBatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = MaskedBatchNorm(channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        out = F.relu_(self.bn1(self.conv1(x), mask))  # in place: no norm needs its output in the backward pass
        return F.relu_(self.bn2(self.conv2(out), mask) + x)  # 0 at padding: the norm's output and x both are

    def forward_in_place(self, x: Tensor, mask: Tensor | None, rows: int) -> None:
        """Overwrite x with the block's output, `rows` rows at a time; in eval mode and without gradients.

        A row of the output depends on two rows of the input on either side, so a strip is computed with these and cut.
        """
        total, above = x.shape[2], x[:, :, :0]
        for start in range(0, total, rows):
            end, halo = min(start + rows, total), above.shape[2]
            strip = torch.cat((above, x[:, :, start : end + 2]), 2)
            above = strip[:, :, : halo + end - start][:, :, -2:].clone()  # the strip's last two rows as they were
            part = None if mask is None else mask[:, :, start - halo : end + 2]
            x[:, :, start:end] = self(strip, part)[:, :, halo : halo + end - start]


class ContactHead(nn.Module):
    """hidden states [B, N, h], mask [B, N] -> logits [B, N-2, N-2, 2] of pairs of residues, symmetric in i and j.

    <cls> and <sep> are part of the map until the end, as in the originals, then the first and last row and column are
    cut. Rows and columns past a protein's own residues carry no meaning.

    recompute: whether the blocks' insides are computed again in the backward pass; None: from RECOMPUTE_PAIRS on.
    strip_pairs: how many pairs go through a block at a time in inference; None: STRIP_PAIRS.
    """

    def __init__(self, hidden_size: int, head: str, dropout: float = 0.5):
        super().__init__()
        self.dropout = dropout
        self.recompute: bool | None = None
        self.strip_pairs: int | None = None
        if head == "tape":
            self.predict = nn.ModuleDict({"1": PairLinear(2 * hidden_size, 2)})
            self.linear = None
            _small_normal(self.predict["1"])
            return
        blocks = {f"ResidualBlock{i}": ResidualBlock(PAIR_CHANNELS) for i in range(PAIR_BLOCKS)}
        self.predict = nn.ModuleDict({"1": PairConv1x1(2 * hidden_size, PAIR_CHANNELS, 1)} | blocks)
        self.linear = nn.Sequential(nn.Linear(PAIR_CHANNELS, 2))
        _small_normal(self.linear[0])

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        inference = not self.training and not torch.is_grad_enabled()
        if inference and len(hidden) > 1 and mask.shape[1] * mask.numel() > self._strip_pairs(hidden):
            # No number of a protein depends on the others: one map at a time.
            return torch.cat([self._logits(*one) for one in zip(hidden.split(1), mask.split(1), strict=True)])
        return self._logits(hidden, mask)

    def _strip_pairs(self, tensor: Tensor) -> int:
        return self.strip_pairs or STRIP_PAIRS[tensor.is_cuda]

    def _logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        pairs = self.predict["1"](hidden, self.dropout if self.training else 0.0)  # [B, K, N, N]
        if self.linear is not None:
            pairs = self._blocks(pairs, mask)
            pairs = F.linear(pairs.permute(0, 2, 3, 1), self.linear[0].weight, self.linear[0].bias).permute(0, 3, 1, 2)
        pairs = (pairs + pairs.transpose(2, 3)) / 2
        return pairs[:, :, 1:-1, 1:-1].permute(0, 2, 3, 1)

    def _blocks(self, pairs: Tensor, mask: Tensor) -> Tensor:
        """The residual blocks, by whichever of three ways is cheapest; all give the same numbers."""
        pair_mask = None
        if not mask.all():
            pair_mask = (mask.unsqueeze(2) & mask.unsqueeze(1)).unsqueeze(1)  # [B, 1, N, N]
            pairs = pairs.mul_(pair_mask)
        blocks = [block for name, block in self.predict.items() if name != "1"]
        count, tokens = mask.shape[1] * mask.numel(), mask.shape[1]
        if torch.is_grad_enabled():
            recompute = count > RECOMPUTE_PAIRS[pairs.is_cuda] if self.recompute is None else self.recompute
            step = SEGMENT if recompute else len(blocks)
            for start in range(0, len(blocks), step):
                segment = Segment(blocks[start : start + step])
                pairs = segment.recomputed(pairs, pair_mask) if recompute else segment(pairs, pair_mask)
            return pairs
        rows = max(2, self._strip_pairs(pairs) // (len(mask) * tokens))
        for block in blocks:
            if self.training or rows >= tokens:  # in training mode the statistics are of the whole map
                pairs = block(pairs, pair_mask)
            else:
                block.forward_in_place(pairs, pair_mask, rows)
        return pairs


class Segment:
    """Residual blocks one after the other, with one map kept for all of them."""

    def __init__(self, blocks: list[ResidualBlock]):
        self.blocks = blocks

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x

    def recomputed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The same; only x is kept, and the backward pass runs the blocks again. They draw no random numbers."""
        return checkpoint(
            self, x, mask, use_reentrant=False, preserve_rng_state=False, context_fn=self._first_and_second_run
        )

    def _first_and_second_run(self):
        return contextlib.nullcontext(), self._untracked()

    @contextlib.contextmanager
    def _untracked(self):
        """The second run leaves the running statistics alone."""
        norms = [norm for block in self.blocks for norm in (block.bn1, block.bn2)]
        for norm in norms:
            norm.track = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track = True


def _small_normal(layer: nn.Linear) -> None:
    """TAPE's initial weights of a plain linear layer."""
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
