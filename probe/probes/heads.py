"""The small networks that are trained on frozen embeddings, as those who published them wrote them.

Per residue: `cnn` is ProtTrans' (bio_embeddings' SecStructCNN), `logistic`, `mlp` and `lstm` its smaller comparisons.
Per protein: `fnn` is ProtTrans' (SubCellFNN, without the BatchNorm that only SeqVec has), `light_attention` that of
HannesStark/protein-localization (models/light_attention.py), `logistic` PBC's. A head has an output for each target,
and all are trained together. What must hold: names of parameters are the publishers', so that ProtTrans' checkpoints
load; a protein's logits do not depend on its batch mates (in evaluation), so padding is masked where it could be seen.

Legend: B proteins, N residues of the longest, h width of an embedding, p of a pooled one, C classes of a target.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probe.probes.data import KNOWN
from proteinlm.errors import InputError
from proteinlm.untrusted.safe_load import safe_torch_load

HIDDEN, DROPOUT = 32, 0.25
Classes = Mapping[str, tuple[str, ...]]  # target -> its classes
OUTPUTS = {  # classes in ProtTrans' order -> its name of their output
    KNOWN["ss3"][0]: "dssp3_classifier",
    KNOWN["ss8"][0]: "dssp8_classifier",
    KNOWN["disorder"][0]: "diso_classifier",
    KNOWN["location"][0]: "loc_classifier",
    KNOWN["membrane"][0]: "mem_classifier",
}


class Head(nn.Module):
    """x [B, N, h] and mask bool [B, N], or x [B, p] and None -> logits [B, N, C] or [B, C] by target."""

    def __init__(self, classes: Classes, make_output: Callable[[int], nn.Module]):
        super().__init__()
        self.names: dict[str, str] = {}
        for target, own in classes.items():
            name = OUTPUTS.get(own)
            if name is None or name in self.names.values():
                name = re.sub(r"\W", "_", f"{target}_classifier")
            while name in self.names.values():  # targets a-b and a_b
                name += "_"
            self.names[target] = name
            self.add_module(name, make_output(len(own)))

    def features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What all outputs read."""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        read = self.features(x, mask)
        return {target: self.get_submodule(name)(read) for target, name in self.names.items()}


class CNN(Head):
    """Two convolutions over seven residues; the first is shared by the targets. Weights are [out, in, 7, 1]."""

    def __init__(self, width: int, classes: Classes):
        def convolution(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel_size=(7, 1), padding=(3, 0))

        super().__init__(classes, lambda number: nn.Sequential(convolution(HIDDEN, number)))
        self.elmo_feature_extractor = nn.Sequential(convolution(width, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT))

    def features(self, x: Tensor, mask: Tensor) -> Tensor:
        read = self.elmo_feature_extractor[1:](_along_residues(self.elmo_feature_extractor[0], x))
        return read * mask[..., None]  # what a protein alone has beyond its ends is zero

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        read = self.features(x, mask)
        return {target: _along_residues(self.get_submodule(name)[0], read) for target, name in self.names.items()}


def _along_residues(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """[B, N, in] -> [B, N, out] in one dimension, which takes half the time of the same in two."""
    x = x.transpose(1, 2).contiguous()
    return F.conv1d(x, convolution.weight[..., 0], convolution.bias, padding=3).transpose(1, 2)


class Logistic(Head):
    """Multinomial logistic regression, of residues or of proteins."""

    def __init__(self, width: int, classes: Classes):
        super().__init__(classes, partial(nn.Linear, width))

    def features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x


class MLP(Head):
    """Two layers, on each residue alone."""

    def __init__(self, width: int, classes: Classes):
        super().__init__(classes, partial(nn.Linear, HIDDEN))
        self.layer = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT))

    def features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.layer(x)


class LSTM(Head):
    """16 units a direction."""

    def __init__(self, width: int, classes: Classes):
        super().__init__(classes, partial(nn.Linear, HIDDEN))
        self.lstm = nn.LSTM(width, HIDDEN // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(DROPOUT)

    def features(self, x: Tensor, mask: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.dropout(states)


class FNN(Head):
    """One layer on a pooled embedding; the outputs share it."""

    def __init__(self, width: int, classes: Classes):
        super().__init__(classes, partial(nn.Linear, HIDDEN))
        self.layer = nn.Sequential(nn.Linear(width, HIDDEN), nn.Dropout(DROPOUT), nn.ReLU())

    def features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.layer(x)


class LightAttention(Head):
    """A convolution's values averaged by another's attention over the residues, beside their maximum."""

    def __init__(self, width: int, classes: Classes):
        super().__init__(classes, partial(nn.Linear, HIDDEN))
        self.feature_convolution = nn.Conv1d(width, width, 9, padding=4)
        self.attention_convolution = nn.Conv1d(width, width, 9, padding=4)
        self.dropout = nn.Dropout(DROPOUT)
        layers = nn.Linear(2 * width, HIDDEN), nn.Dropout(DROPOUT), nn.ReLU(), nn.BatchNorm1d(HIDDEN)
        self.linear = nn.Sequential(*layers)

    def features(self, x: Tensor, mask: Tensor) -> Tensor:
        x, padding = x.transpose(1, 2), ~mask[:, None]
        values = self.dropout(self.feature_convolution(x))  # [B, h, N]
        attention = self.attention_convolution(x).masked_fill(padding, -torch.inf).softmax(-1)
        largest = values.masked_fill(padding, -torch.inf).amax(-1)  # the published code's sees padding too
        return self.linear(torch.cat([(values * attention).sum(-1), largest], 1))


@dataclass(frozen=True)
class Recipe:
    """How a head is trained, and what it reads."""

    make: Callable[[int, Classes], Head]
    reads_residues: bool
    learning_rate: float
    batch_size: int  # proteins
    epochs: int  # at most
    patience: int  # epochs without a better loss on the held-out part of train


# ProtTrans published no training settings; those of cnn, mlp, lstm and fnn are this project's.
RESIDUE_HEADS = {
    "cnn": Recipe(CNN, True, 1e-3, 32, 50, 5),
    "logistic": Recipe(Logistic, True, 1e-3, 64, 10, 5),
    "mlp": Recipe(MLP, True, 1e-3, 32, 50, 5),
    "lstm": Recipe(LSTM, True, 1e-3, 32, 50, 5),
}
PROTEIN_HEADS = {
    "fnn": Recipe(FNN, False, 1e-3, 64, 200, 20),
    "light_attention": Recipe(LightAttention, True, 5e-5, 150, 5000, 80),  # Staerk et al. 2021, and its code
    "logistic": Recipe(Logistic, False, 1e-3, 64, 10, 5),  # PBC, Rostlab/pbc at 5015be7
}


def load_head(head: Head, path: str | Path) -> Mapping[str, Tensor] | None:
    """Fill a head with a checkpoint's `state_dict`; targets that the head lacks may be in it. Returns its `scale`, as
    checkpoints of this project have it: {"mean": [h], "deviation": [h]} of what the head reads. InputError for another
    width, another architecture, or an output that is missing."""
    loaded = safe_torch_load(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: no state_dict of tensors; should be a head's checkpoint")
    others = tuple(f"{name}." for name in OUTPUTS.values())
    own = head.state_dict()
    for name, value in own.items():
        if name not in state:
            raise InputError(f"{path}: {name} is missing; should be a checkpoint of {type(head).__name__}")
        if state[name].shape != value.shape:
            shapes = f"{name} has shape {list(state[name].shape)}, these embeddings need {list(value.shape)}"
            raise InputError(f"{path}: {shapes}; should be a head for this encoder and these classes")
        if not state[name].isfinite().all():
            raise InputError(f"{path}: {name} has a number that is not finite")
    odd = [name for name in state if name not in own and not name.startswith(others)]
    if odd:
        raise InputError(f"{path}: {odd[0]} is no part of {type(head).__name__}")
    head.load_state_dict({name: state[name] for name in own})
    scale = loaded.get("scale")
    if scale is not None and not (isinstance(scale, Mapping) and {"mean", "deviation"} <= set(scale)):
        raise InputError(f"{path}: scale has no mean and deviation")
    return scale


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """([B, N, h], 0 beyond a protein's end; mask bool [B, N]) of B tensors [L, h]."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), mask


def loss_sums(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The summed cross-entropy of each target over its known labels (not -1)."""
    return {
        target: F.cross_entropy(logits[target].flatten(0, -2), own.flatten(), ignore_index=-1, reduction="sum")
        for target, own in labels.items()
    }
