"""Training steps beside Hugging Face's models and a densely masked one: the same proteins, in one process.

    python benchmarks/train_step.py                 # ESM-2's 8M shape, 128 random proteins, minutes on one core
    python benchmarks/train_step.py --esm2 35m --fasta in.fasta --output benchmarks/results/train_step_esm2_35m.json
    python benchmarks/train_step.py --proteinlm 200m --rows 4 --seq_length 2176 --precision bf16 --compile --phases

Each arm goes once over all proteins, a step a batch: forward, mean loss over the masked residues, backward, clipping,
fused AdamW (in fp16 with a loss scale); 15% of the residues are shown as `<mask>`. Batches are built beforehand.
  ours              pretraining's own step (`pretrain.train_step`); --esm2: whole proteins in file order up to
                    --tokens_per_batch; --proteinlm or --rows: rows packed as pretraining packs them
  ours_sorted       --esm2: the same number of tokens, longest proteins first
  dense_mask        ours' weights and rows, with a dense mask [b, 1, s, s] through SDPA
  dense_mask_eager  the same with scores and softmax written out, as the original ran it
  hf                EsmForMaskedLM (SDPA) or, with --proteinlm, MegatronBertForMaskedLM (eager, all it has), the same
                    weights as ours: --batch_size proteins in file order, padded to the longest, attention_mask
  hf_sorted         the same, longest first: what a sampler that groups by length makes; with rows, batches of as many
                    padded tokens as ours
  megatron_bert, megatron_bert_sorted      --proteinlm: other names of hf and hf_sorted
  esm2, esm2_sorted                        --proteinlm: EsmForMaskedLM (SDPA) in this shape, weights of its own
Arms take turns after a warm-up; medians, of wall time and of this process's own CPU time, which other work on the
machine changes less. `gemm_rate`: FLOP/s of the layer's own matrix products, timed in the same turns. FLOPs of a step
are over real tokens, attention per protein (`pretrain.interval.training_flops`); `_6n`: 6 x parameters x tokens as fed.

What must hold: before anything is timed, on the first --batch_size proteins (8 at most), loss and gradients of each arm
and ours agree in fp32 to AGREE (the gradients relative to the largest of their tensor's; on a GPU GPU_AGREE), and
differ by more with another mask; as it is timed the loss of each is within HALF_AGREE of ours in fp32. An arm that runs
out of a GPU's memory is left out of the table, and named.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.comparison import PRECISIONS, SHAPES, file_batches, machine, random_proteins, table, take_turns
from benchmarks.training import measure
from benchmarks.training.arms import Arm, DenseMask, Ours, Peer, Setting
from benchmarks.training.batches import Fed, micro_batches, packed, rectangle, stream_batches
from benchmarks.training.models import PROTEINLM_SHAPES, Weights, esm2_weights, proteinlm_weights
from pretrain.interval import peak_flops
from proteinlm.devices import choose_device
from proteinlm.encoder import token_batches
from proteinlm.errors import ArgumentParser, run
from proteinlm.files import write_json
from proteinlm.sequences import read_fasta

AGREE, GPU_AGREE, HALF_AGREE = 1e-4, 2e-3, 1e-2
CONTROL = 0.02  # what another mask changes at least
OURS = ("ours", "ours_sorted", "dense_mask", "dense_mask_eager")
ESM2_ARMS = (*OURS, "hf", "hf_sorted")
PROTEINLM_ARMS = (*OURS, "megatron_bert", "megatron_bert_sorted", "esm2", "esm2_sorted")
ALIASES = {"hf": "megatron_bert", "hf_sorted": "megatron_bert_sorted"}


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--esm2", choices=SHAPES, default="8m", help="the shape (8m)")
    shapes.add_argument("--proteinlm", choices=PROTEINLM_SHAPES, help="a shape of ProteinLM's instead")
    parser.add_argument("--layers", type=int, help="so many, where the shape has more than fit")
    parser.add_argument("--fasta", type=Path, help="(default: random proteins with the lengths of a protein corpus)")
    parser.add_argument("--proteins", type=int, default=128, help="the first N of the file, cropped to 1,022 residues")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of autocast, for all arms")
    parser.add_argument("--compile", action="store_true", help="the layers of ours and dense_mask, on a GPU")
    parser.add_argument("--compile_peers", action="store_true", help="Hugging Face's models, with dynamic shapes")
    parser.add_argument("--recompute", action="store_true", help="layers again in the backward pass, as the original")
    parser.add_argument("--dropout", type=float, default=0.0, help="--proteinlm: of hidden states and attention (0)")
    parser.add_argument("--flash3", action="store_true", help="FlashAttention 3, where it is installed")
    parser.add_argument("--no_fp32_residual", action="store_true", help="the residual stream in half precision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens_per_batch", type=int, default=4096, help="of ours and ours_sorted (4096)")
    parser.add_argument("--rows", type=int, help="packed rows of a micro-batch instead (--proteinlm: 4)")
    parser.add_argument("--seq_length", type=int, default=1024, help="tokens of a row (1024)")
    parser.add_argument(
        "--batch_size", type=int, help="of hf and hf_sorted, proteins (8, with rows 8 for 4,096 tokens)"
    )
    parser.add_argument(
        "--arms", nargs="+", metavar="ARM", help="`ours` among them (--esm2: ours, ours_sorted, hf ...)"
    )
    parser.add_argument("--phases", action="store_true", help="also time forward, backward and optimizer apart")
    parser.add_argument("--memory", action="store_true", help="also the peak of each arm (on a GPU always)")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--calibration", type=Path, help="also this GPU's rates for python -m pretrain.plan, as JSON")
    parser.add_argument("--rss_of_one_arm", action="store_true", help=argparse.SUPPRESS)
    return parser


def read_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    least = dict.fromkeys(("layers", "proteins", "repeats", "tokens_per_batch", "rows", "batch_size"), 1)
    for name, low in (least | {"seq_length": 16}).items():
        if (value := getattr(args, name)) is not None and value < low:
            parser.error(f"--{name} {value} must be at least {low}")
    if args.proteinlm:
        args.esm2 = None
        args.rows = args.rows or 4
    known = PROTEINLM_ARMS if args.proteinlm else ESM2_ARMS
    default = [arm for arm in known if arm not in ("dense_mask_eager", "ours_sorted" if args.rows else "dense_mask")]
    args.arms = [ALIASES.get(arm, arm) if args.proteinlm else arm for arm in args.arms or default]
    if unknown := [arm for arm in args.arms if arm not in known]:
        parser.error(f"--arms {unknown[0]}: choose from {', '.join(known)}")
    if args.rows and "ours_sorted" in args.arms:
        parser.error("--arms ours_sorted: packed rows have no order by length")
    if "ours" not in args.arms and not args.rss_of_one_arm:
        parser.error("--arms: `ours` must be among them")
    if args.dropout and (not args.proteinlm or {"esm2", "esm2_sorted"} & set(args.arms)):
        parser.error("--dropout: ESM-2 has none; choose --proteinlm and --arms without esm2")
    if (args.compile or args.flash3) and not args.device.startswith("cuda"):
        parser.error("--compile and --flash3 need a GPU")
    per_step = args.rows * args.seq_length if args.rows else 4096
    args.batch_size = args.batch_size or (max(1, 8 * per_step // 4096) if args.rows else 8)
    return args


def read(args: argparse.Namespace) -> list[str]:
    if args.fasta is None:
        proteins = random_proteins(args.proteins)
    else:
        proteins = [sequence for _, sequence in itertools.islice(read_fasta(str(args.fasta)), args.proteins)]
    return [sequence[: min(1022, args.seq_length - 2)] for sequence in proteins]


def make_weights(args: argparse.Namespace) -> Weights:
    sizes = list(PROTEINLM_SHAPES[args.proteinlm] if args.proteinlm else SHAPES[args.esm2])
    sizes[0] = args.layers or sizes[0]
    if args.proteinlm:
        wanted_peer = any(arm.startswith("megatron_bert") for arm in args.arms)
        return proteinlm_weights(sizes, args.seq_length, args.dropout, wanted_peer)
    return esm2_weights(sizes)


class Comparison:
    """The arms of a command line, with what each is fed."""

    def __init__(self, args: argparse.Namespace, proteins: list[str]):
        self.args, self.device = args, choose_device(args.device)
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)
        self.setting = Setting(
            args.precision, args.compile, args.compile_peers, args.recompute, not args.no_fp32_residual, args.flash3,
            args.rows or 1, args.seq_length,
        )  # fmt: skip
        self.weights = make_weights(args)
        self.rows: list[list[np.ndarray]] = []
        if args.rows:
            self.rows = micro_batches(np.array([len(p) for p in proteins]), args.seq_length, args.rows)
            chosen = sorted(int(i) for batch in self.rows for row in batch for i in row)
            place = {number: i for i, number in enumerate(chosen)}
            self.rows = [[np.array([place[int(i)] for i in row]) for row in batch] for batch in self.rows]
            proteins = [proteins[i] for i in chosen]
        self.proteins, self.lengths = proteins, np.array([len(protein) for protein in proteins])
        self.models: dict[str, Arm] = {}

    def arm(self, name: str) -> Arm:
        """One model for an arm and its sorted form."""
        kind = name.removesuffix("_sorted")
        if kind not in self.models:
            self.models[kind] = self._build(kind)
        return self.models[kind]

    def _build(self, kind: str) -> Arm:
        if kind == "ours":
            return Ours(self.weights, self.setting, self.device)
        if kind.startswith("dense_mask"):
            return DenseMask(self.weights, self.setting, self.device, kind == "dense_mask_eager")
        if kind == "esm2":
            self.esm2_weights = esm2_weights(self._sizes())
            return Peer(self.esm2_weights.peer, self.setting, self.device)
        return Peer(self.weights.peer, self.setting, self.device)

    def _sizes(self) -> tuple[int, ...]:
        c = self.weights.config
        return c.num_layers, c.hidden_size, c.num_attention_heads, c.ffn_hidden_size

    def feds(self, name: str) -> list[Fed]:
        args, lengths = self.args, self.lengths
        if name.removesuffix("_sorted") in ("ours", "dense_mask", "dense_mask_eager"):
            feds = self._packed(name)
        else:
            ids = self.esm2_weights.tokenizer if name.startswith("esm2") else self.weights.tokenizer
            by_length = name.endswith("_sorted")
            if by_length and args.rows:
                batches = token_batches(lengths, args.rows * args.seq_length, padded=True)
            else:
                batches = file_batches(lengths, args.batch_size, by_length)
            feds = [rectangle([self.proteins[i] for i in batch], ids) for batch in batches]
        return [fed.pinned() for fed in feds] if self.device.type == "cuda" else feds

    def _packed(self, name: str) -> list[Fed]:
        ids = self.weights.tokenizer
        if self.rows:
            chosen = [[[self.proteins[i] for i in row] for row in batch] for batch in self.rows]
            return [packed(batch, self.args.seq_length, ids) for batch in chosen]
        order = token_batches if name == "ours_sorted" else stream_batches
        batches = order(self.lengths, self.args.tokens_per_batch)
        return [packed([[self.proteins[i] for i in batch]], None, ids) for batch in batches]

    def agree(self) -> tuple[float, dict[str, float]]:
        """(the largest difference in fp32 of any arm from ours, by arm that of the loss as it will be timed)."""
        plain = replace(self.setting, precision="fp32", compile=False, compile_peers=False, flash3=False)
        proteins, largest, losses = self.proteins[: min(8, self.args.batch_size)], 0.0, {}
        for kind in dict.fromkeys(name.removesuffix("_sorted") for name in self.args.arms):
            timed = self.arm(kind)
            weights = self.esm2_weights if kind == "esm2" else self.weights
            reference = Ours(weights, plain, self.device)
            stream = packed([proteins], None, weights.tokenizer)
            if isinstance(timed, Peer):
                largest = max(largest, check(reference, timed.in_fp32(), proteins, weights))
                losses[kind] = abs(
                    loss_of(timed, rectangle(proteins, weights.tokenizer)) / loss_of(reference, stream) - 1
                )
                continue
            if isinstance(timed, DenseMask):
                dense = DenseMask(weights, plain, self.device, kind == "dense_mask_eager")
                largest = max(largest, check(reference, dense, proteins, weights))
            fed = self.feds(kind)[0]
            losses[kind] = abs(loss_of(timed, fed) / loss_of(reference, fed) - 1)
        if worst := [name for name, difference in losses.items() if not difference <= HALF_AGREE]:
            raise AssertionError(f"{worst[0]}: the loss in {self.args.precision} differs by {losses[worst[0]]:.2e}")
        return largest, {name: float(f"{difference:.2e}") for name, difference in losses.items()}


@torch.no_grad()
def loss_of(arm: Arm, fed: Fed) -> float:
    """Without dropout."""
    if arm.has_dropout:
        arm.model.eval()
    value = float(arm.loss(fed))
    arm.model.train()
    return value


def check(ours: Arm, peer: Arm, proteins: Sequence[str], weights: Weights) -> float:
    """The largest difference of loss and gradients, without dropout; stops beyond AGREE (on a GPU, GPU_AGREE)."""

    def values(arm: Arm, seed: int) -> list[Tensor]:
        arm.model.eval()
        arm.optimizer.zero_grad()
        ids = weights.tokenizer
        loss = arm.loss(
            rectangle(proteins, ids, seed) if isinstance(arm, Peer) else packed([proteins], None, ids, seed)
        )
        loss.backward()
        gradients = [gradient.clone() for gradient in arm.gradients()]
        arm.optimizer.zero_grad()
        arm.model.train()
        return [loss.detach(), *gradients]

    def difference(first: list[Tensor], second: list[Tensor]) -> float:
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True))

    limit = GPU_AGREE if ours.device.type == "cuda" else AGREE
    expected = values(peer, 0)
    found, other = difference(values(ours, 0), expected), difference(values(ours, 1), expected)
    assert found <= limit, f"loss and gradients differ by {found:.2e}, more than {limit:.0e}"
    assert other > CONTROL, f"another mask changes them by {other:.2e} only: agreement would mean nothing"
    return found


def compare(comparison: Comparison) -> tuple[dict[str, dict], float | None]:
    """(a row an arm, FLOP/s of the layer's products)."""
    args, device, config = comparison.args, comparison.device, comparison.weights.config
    arms = {name: (comparison.arm(name), comparison.feds(name)) for name in args.arms}
    tokens = args.rows * args.seq_length if args.rows else args.tokens_per_batch
    products = measure.Products(config, tokens, comparison.setting.dtype, device)
    calls: dict[str, Callable[[], None]] = {"gemm": products}
    products()
    for name, (arm, feds) in list(arms.items()):
        try:
            measure.steps(arm, [max(feds, key=lambda fed: fed.tokens), *feds[: 2 if args.compile else 0]])
        except torch.OutOfMemoryError:
            print(f"{name}: out of memory", flush=True)
            del arms[name]
            torch.cuda.empty_cache()
            continue
        calls[name] = partial(measure.steps, arm, feds)
    seconds = take_turns(calls, args.repeats)
    limits = {
        "gemm_rate": products.flops / statistics.median(wall for wall, _ in seconds.pop("gemm")),
        "peak": peak_flops(device, comparison.setting.dtype),
    }
    del products, calls["gemm"]
    rows = table(seconds, len(comparison.proteins), int(comparison.lengths.sum()))
    parameters = config.num_parameters()
    for name, (arm, feds) in arms.items():
        rows[name] |= measure.rates(config, feds, parameters, seconds[name], limits)
        if device.type == "cuda":
            rows[name]["peak_bytes"] = measure.peak_bytes_cuda(arm, max(feds, key=lambda fed: fed.tokens))
        elif args.memory:
            rows[name]["peak_bytes"] = measure.peak_bytes_cpu(name)
    if args.phases:
        whole = {name: row["wall_seconds"] for name, row in rows.items()}
        for name, parts in measure.phases(arms, whole, args.repeats).items():
            rows[name] |= parts
    return rows, limits["gemm_rate"]


def main(argv: Sequence[str] | None = None) -> int:
    args = read_args(argv)
    proteins = read(args)
    comparison = Comparison(args, proteins)
    if args.rss_of_one_arm:
        (name,) = args.arms
        arm, feds = comparison.arm(name), comparison.feds(name)
        measure.steps(arm, [max(feds, key=lambda fed: fed.tokens)] * 2)
        print(json.dumps({"peak_bytes": measure.resident_peak()}))
        return 0
    difference, losses = comparison.agree()
    count, residues = len(comparison.proteins), int(comparison.lengths.sum())
    print(f"{count} proteins; fp32 loss and gradients agree to {difference:.1e} (at most {AGREE:.0e})", flush=True)
    rows, gemm_rate = compare(comparison)
    for name, row in rows.items():
        print(
            f"{name:22} {row['ms_per_step']:9.2f} ms a step  {row.get('share_of_gemm_rate', 0):6.1%} of the GEMM rate"
        )
    names = ("esm2", "proteinlm", "layers", "precision", "compile", "compile_peers", "recompute", "dropout", "flash3")
    settings = {name: getattr(args, name) for name in (*names, "tokens_per_batch", "rows", "seq_length", "batch_size")}
    result = machine("benchmarks/train_step.py", comparison.device) | settings
    result |= {"repeats": args.repeats, "fp32_residual": not args.no_fp32_residual}
    result |= {"parameters": comparison.weights.config.num_parameters(), "gemm_tflops": round(gemm_rate / 1e12, 4)}
    result |= {"proteins": count, "residues": residues}
    result |= {"largest_difference_fp32": difference, "loss_difference": losses}
    peer = comparison.models.get("hf") or comparison.models.get("esm2")
    result["hf_attention"] = peer.model.config._attn_implementation if peer else None
    if args.output:
        write_json(args.output, result | {"arms": rows})
    if args.calibration:
        from benchmarks.training.calibration import calibrate

        write_json(args.calibration, calibrate(comparison.weights.config, comparison.setting, comparison.device))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
