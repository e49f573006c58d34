"""Training speed beside Hugging Face's EsmForMaskedLM with SDPA: the same weights, proteins and masks, in one process.

    python benchmarks/train_step.py                 # ESM-2's 8M shape, 128 random proteins, minutes on one core
    python benchmarks/train_step.py --esm2 35m --fasta in.fasta --output benchmarks/results/train_step_esm2_35m.json

Each arm goes once over all proteins, a step a batch: forward, mean loss over the masked residues, backward, fused
AdamW; 15% of the residues are shown as `<mask>`, and building the batch is counted. No dropout, as ESM-2.
  ours            as pretraining packs: whole proteins in file order up to --tokens_per_batch, no padding
  ours_sorted     the same number of tokens, longest proteins first
  hf              --batch_size proteins in file order, padded to the longest, attention_mask
  hf_sorted       the same, longest first: what a sampler that groups by length makes
Arms take turns after a warm-up; medians, of wall time and of this process's own CPU time, which other work on the
machine changes less.

What must hold: before anything is timed, on the first --batch_size proteins, loss and gradients of both agree in fp32
to AGREE (the gradients relative to the largest of their tensor's), and differ by more with another mask.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import proteinlm
from benchmarks.comparison import (
    PRECISIONS,
    SHAPES,
    file_batches,
    machine,
    padding,
    random_esm2,
    random_proteins,
    table,
    take_turns,
)
from proteinlm.encoder import Stream, make_stream, token_batches
from proteinlm.files import write_json
from proteinlm.loss import IGNORE, masked_lm_loss
from proteinlm.optim import build_optimizer
from proteinlm.sequences import read_fasta
from proteinlm.tokenizer import build_tokenizer

AGREE = 1e-4
ARMS = ("ours", "ours_sorted", "hf", "hf_sorted")
TOKENIZER = build_tokenizer("esm")
LEARNING_RATE = 1e-5


class Batch:
    """Proteins as one stream with 15% of the residues masked; which ones depends on `seed` and the proteins alone."""

    def __init__(self, proteins: Sequence[str], seed: int):
        self.stream: Stream = make_stream(proteins, TOKENIZER)
        rng = np.random.default_rng((seed, *self.stream.sizes))
        residues = self.stream.residues
        self.masked = residues[rng.random(len(residues)) < 0.15]
        self.labels = self.stream.tokens[self.masked]
        self.ids = self.stream.tokens.copy()
        self.ids[self.masked] = TOKENIZER.mask_id


class Ours:
    def __init__(self, model: torch.nn.Module, device: torch.device):
        self.model, self.device = model.to(device).train(), device
        self.optimizer = build_optimizer(self.model, LEARNING_RATE, 0.01)

    def loss(self, batch: Batch) -> Tensor:
        stream = batch.stream
        arrays = (batch.ids, stream.positions, stream.bounds, batch.masked, batch.labels)
        *inputs, labels = (torch.from_numpy(array).to(self.device) for array in arrays)
        return masked_lm_loss(self.model(*inputs), labels) / len(labels)

    def query_gradient(self) -> Tensor:
        """[h, h]: of the first layer's queries."""
        attention = self.model.layers["0"].attention
        gradient = attention.query_key_value.weight.grad
        return gradient.view(-1, 3, attention.head_size, gradient.shape[1])[:, 0].flatten(0, 1)

    def embedding_gradient(self) -> Tensor:
        return self.model.word_embeddings.weight.grad[: len(TOKENIZER.tokens)]


class HuggingFace:
    def __init__(self, model: torch.nn.Module, device: torch.device):
        self.model, self.device = model.to(device).train(), device
        self.optimizer = build_optimizer(self.model, LEARNING_RATE, 0.01)

    def loss(self, batch: Batch) -> Tensor:
        mask = np.arange(batch.stream.sizes.max()) < batch.stream.sizes[:, None]
        ids, labels = np.full(mask.shape, TOKENIZER.pad_id), np.full(mask.shape, IGNORE)
        flat = np.full(len(batch.ids), IGNORE)
        flat[batch.masked] = batch.labels
        ids[mask], labels[mask] = batch.ids, flat
        arrays = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "labels": labels}
        return self.model(**{name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}).loss

    def query_gradient(self) -> Tensor:
        return self.model.esm.encoder.layer[0].attention.self.query.weight.grad

    def embedding_gradient(self) -> Tensor:
        return self.model.esm.embeddings.word_embeddings.weight.grad


Arm = Ours | HuggingFace


def check(ours: Ours, peer: HuggingFace, proteins: Sequence[str]) -> float:
    """The largest difference of loss and gradients; stops beyond AGREE."""

    def values(arm: Arm, seed: int) -> list[Tensor]:
        arm.optimizer.zero_grad()
        loss = arm.loss(Batch(proteins, seed))
        loss.backward()
        gradients = [arm.query_gradient().clone(), arm.embedding_gradient().clone()]
        arm.optimizer.zero_grad()
        return [loss.detach(), *gradients]

    def difference(first: list[Tensor], second: list[Tensor]) -> float:
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True))

    expected = values(peer, 0)
    found, other = difference(values(ours, 0), expected), difference(values(ours, 1), expected)
    assert found <= AGREE, f"loss and gradients differ by {found:.2e}, more than {AGREE:.0e}"
    assert other > 100 * AGREE, f"another mask changes them by {other:.2e} only: agreement would mean nothing"
    return found


def stream_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Whole proteins in file order, at most `tokens` a batch unless one is longer."""
    batches, begin, used = [], 0, 0
    for i, size in enumerate((lengths + 2).tolist()):
        if i > begin and used + size > tokens:
            batches.append(np.arange(begin, i))
            begin, used = i, 0
        used += size
    return [*batches, np.arange(begin, len(lengths))]


def epoch(arm: Arm, proteins: Sequence[str], batches: Sequence[np.ndarray], precision: torch.dtype) -> None:
    for indices in batches:
        batch = Batch([proteins[i] for i in indices], 0)
        with torch.autocast(arm.device.type, precision, enabled=precision != torch.float32):
            loss = arm.loss(batch)
        loss.backward()
        arm.optimizer.step()
        arm.optimizer.zero_grad()
    if arm.device.type == "cuda":
        torch.cuda.synchronize()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esm2", choices=SHAPES, default="8m", help="the shape (8m)")
    parser.add_argument("--fasta", type=Path, help="(default: random proteins with the lengths of a protein corpus)")
    parser.add_argument("--proteins", type=int, default=128, help="the first N of the file, cropped to 1,022 residues")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of autocast, for all arms")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens_per_batch", type=int, default=4096, help="of ours and ours_sorted (4096)")
    parser.add_argument("--batch_size", type=int, default=8, help="of hf and hf_sorted, proteins (8)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="`ours` among them")
    parser.add_argument("--output", type=Path, help="JSON")
    return parser


def read(args: argparse.Namespace) -> list[str]:
    if args.fasta is None:
        return random_proteins(args.proteins)
    records = itertools.islice(read_fasta(str(args.fasta)), args.proteins)
    return [sequence[:1022] for _, sequence in records]


def main() -> int:
    args = build_parser().parse_args()
    device, precision, proteins = torch.device(args.device), PRECISIONS[args.precision], read(args)
    lengths = np.array([len(protein) for protein in proteins])
    peer_model = random_esm2(args.esm2)
    with tempfile.TemporaryDirectory() as folder:
        peer_model.save_pretrained(folder)
        ours = Ours(proteinlm.load(folder, device=device).model, device)
    peer = HuggingFace(peer_model, device)
    difference = check(ours, peer, proteins[: args.batch_size])
    print(
        f"{len(proteins)} proteins; fp32 loss and gradients agree to {difference:.1e} (at most {AGREE:.0e})", flush=True
    )
    arms: dict[str, tuple[Arm, list[np.ndarray]]] = {
        "ours": (ours, stream_batches(lengths, args.tokens_per_batch)),
        "ours_sorted": (ours, token_batches(lengths, args.tokens_per_batch)),
        "hf": (peer, file_batches(lengths, args.batch_size, by_length=False)),
        "hf_sorted": (peer, file_batches(lengths, args.batch_size, by_length=True)),
    }
    batches = {name: arms[name] for name in ARMS if name in args.arms}
    for arm, own in batches.values():
        epoch(arm, proteins, own[:1], precision)
    epochs: dict[str, Callable[[], None]] = {
        name: partial(epoch, arm, proteins, own, precision) for name, (arm, own) in batches.items()
    }
    rows = table(take_turns(epochs, args.repeats), len(proteins), int(lengths.sum()))
    for name, (arm, own) in batches.items():
        rows[name] |= {"steps": len(own), "padding": padding(lengths, own) if arm is peer else 0.0}
    settings = {
        name: getattr(args, name) for name in ("esm2", "precision", "tokens_per_batch", "batch_size", "repeats")
    }
    result = machine("benchmarks/train_step.py", device) | settings
    result |= {"proteins": len(proteins), "residues": int(lengths.sum()), "largest_difference_fp32": difference}
    if args.output:
        write_json(args.output, result | {"hf_attention": peer_model.config._attn_implementation, "arms": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
