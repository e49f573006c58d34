"""Embedding speed beside Hugging Face, MegatronBertModel or EsmModel: the same weights, proteins and precision, in one
process.

    python benchmarks/embed.py                      # toy weights, 200 random proteins, a minute
    python benchmarks/embed.py --model MODEL_DIR --fasta in.fasta --proteins 2000 --output benchmarks/results/embed.json
    python benchmarks/embed.py --esm2 8m --output benchmarks/results/embed_esm2_8m.json

A TAPE directory's weights go to Hugging Face through `python -m converter --target hf`; with --esm2 Hugging Face's
random weights are opened by proteinlm.load. Each arm turns residues into one `avg` vector a protein (mean over all
tokens) on the host, tokenisation included (the same tokeniser for all):
  ours            of a TAPE directory tape-embed's inner loop, with --esm2 Encoder.embed: proteins sorted by length,
                  packed by --tokens_per_batch, no padding
  hf              the usual way: --batch_size proteins in file order, padded to the longest, attention_mask
  hf_sorted       the same, but sorted by length over the whole file first
  hf_budget       (--arms) sorted, and packed into padded batches by the token budget of ours
MegatronBertModel runs with the attention that transformers chooses for it (`hf_attention` in the result; 5.x has eager
alone), EsmModel with SDPA; on a CPU both are fastest with small batches. Arms take turns after a warm-up; medians.
Seconds are wall time and this process's own CPU time, which other work on the machine changes less. Without --fasta
residues are random, and lengths are drawn from those of a protein corpus (comparison.py).

What must hold: before anything is timed, all arms agree to 1e-4 in fp32 on every protein (on the first 256 where the
precision is another); the script stops otherwise.
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
from converter.__main__ import main as convert
from proteinlm.devices import choose_device
from proteinlm.encoder import default_batch_tokens, make_stream, token_batches
from proteinlm.errors import run
from proteinlm.files import write_json
from proteinlm.progress import Progress
from proteinlm.tokenizer import Tokenizer, build_tokenizer
from tape import ProteinBertConfig, ProteinBertModel
from tape.inference.encoding import TOKENIZER, TrunkEncoder, pad
from tape.inference.fasta import Protein, Rules, read_proteins, scan_fasta
from tape.inference.parts import plan_parts

AGREE = 1e-4
TOY = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
ARMS = ("ours", "hf", "hf_sorted", "hf_budget")
Arm = Callable[[Sequence[Protein], torch.dtype], np.ndarray]


class Ours:
    """tape-embed's loop, its files left out."""

    def __init__(self, model_dir: Path, device: torch.device, args: argparse.Namespace):
        self.dir, self.device, self.args = model_dir, device, args
        self.encoders: dict[torch.dtype, TrunkEncoder] = {}

    def __call__(self, proteins: Sequence[Protein], precision: torch.dtype) -> np.ndarray:
        if precision not in self.encoders:
            model = ProteinBertModel.from_pretrained(self.dir)
            self.encoders[precision] = TrunkEncoder(model, -1, self.device, precision)
        bounds = plan_parts(np.array([len(p.residues) for p in proteins]), 8192, 0)
        progress = Progress("proteins", quiet=True)
        return np.concatenate(
            [
                self.encoders[precision].embed_part(proteins[a:b], ("avg",), self.args, progress)["avg"]
                for a, b in itertools.pairwise(bounds)
            ]
        )


class OursEsm:
    """Encoder.embed of a directory as transformers writes it."""

    def __init__(self, model_dir: Path, device: torch.device, args: argparse.Namespace):
        self.dir, self.device, self.args = model_dir, device, args
        self.encoders: dict[torch.dtype, proteinlm.Encoder] = {}

    def __call__(self, proteins: Sequence[Protein], precision: torch.dtype) -> np.ndarray:
        if precision not in self.encoders:
            self.encoders[precision] = proteinlm.load(self.dir, precision, self.device)
        sequences = [protein.residues for protein in proteins]
        return self.encoders[precision].embed(sequences, "avg", batch_tokens=self.args.tokens_per_batch, quiet=True)


class HuggingFace:
    """MegatronBertModel or EsmModel on padded batches. way: hf | hf_sorted | hf_budget."""

    def __init__(
        self, model: torch.nn.Module, tokenizer: Tokenizer, way: str, device: torch.device, args: argparse.Namespace
    ):
        self.model, self.tokenizer, self.way, self.device, self.args = model, tokenizer, way, device, args

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        if self.way == "hf_budget":
            return token_batches(lengths, self.args.tokens_per_batch, padded=True)
        return file_batches(lengths, self.args.batch_size, self.way == "hf_sorted")

    @torch.no_grad()
    def __call__(self, proteins: Sequence[Protein], precision: torch.dtype) -> np.ndarray:
        outputs = np.empty((len(proteins), self.model.config.hidden_size), np.float32)
        waiting = []
        for batch in self.batches(np.array([len(p.residues) for p in proteins])):
            ids, mask = pad(make_stream([proteins[i].residues for i in batch], self.tokenizer))
            ids[~mask] = self.tokenizer.pad_id
            if self.tokenizer is TOKENIZER:
                ids += ids >= 5  # pretraining's vocabulary, which the converted directory has, has one token more
            ids, mask = torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
            with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
                states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
            waiting.append((batch, (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)))
        for batch, vectors in waiting:
            outputs[batch] = vectors.cpu().numpy()
        return outputs


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="TAPE directory (default: random weights, 4 layers of 128)")
    parser.add_argument("--esm2", choices=SHAPES, help="instead: random weights in this shape of ESM-2")
    parser.add_argument("--fasta", type=Path, help="(default: random proteins with the lengths of a protein corpus)")
    parser.add_argument("--proteins", type=int, default=200, help="the first N of the file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of autocast, for all arms")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens_per_batch", type=int, help="(2048 a thread, up to 8192; on a GPU 65536)")
    parser.add_argument("--batch_size", type=int, help="of hf and hf_sorted, proteins (8; on a GPU 64)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS[:3]))
    parser.add_argument("--output", type=Path, help="JSON")
    return parser


def toy_model(folder: Path) -> Path:
    torch.manual_seed(0)
    ProteinBertModel(ProteinBertConfig(**TOY, max_position_embeddings=1026)).save_pretrained(folder / "tape")
    return folder / "tape"


def toy_fasta(folder: Path, number: int) -> Path:
    records = (f">p{i}\n{residues}\n" for i, residues in enumerate(random_proteins(number)))
    (folder / "toy.fasta").write_text("".join(records))
    return folder / "toy.fasta"


def build_arms(folder: Path, device: torch.device, args: argparse.Namespace) -> tuple[dict[str, Arm], int]:
    """(the arms, residues that the models take)."""
    import transformers

    settings = argparse.Namespace(tokens_per_batch=args.tokens_per_batch, batch_size=None, save_fp16=False)
    if args.esm2:
        reference, tokenizer, limit = random_esm2(args.esm2), build_tokenizer("esm"), 1022
        reference.save_pretrained(folder / "esm")
        ours: Arm = OursEsm(folder / "esm", device, settings)
        reference = reference.esm
    else:
        model_dir, tokenizer = args.model or toy_model(folder), TOKENIZER
        convert(["--load", str(model_dir), "--save", f"{folder}/hf", "--target", "hf"])
        reference = transformers.MegatronBertModel.from_pretrained(f"{folder}/hf", add_pooling_layer=False)
        ours, limit = Ours(model_dir, device, settings), reference.config.max_position_embeddings - 2
    reference = reference.to(device).eval()
    peers = {way: HuggingFace(reference, tokenizer, way, device, args) for way in args.arms if way != "ours"}
    return {"ours": ours} | peers, limit


def read(fasta: Path, limit: int, number: int) -> list[Protein]:
    scan = scan_fasta(fasta, Rules(limit, "crop", "first"))
    return [protein for protein, _ in zip(read_proteins(scan), range(number), strict=False)]


def check(arms: dict[str, Arm], proteins: Sequence[Protein]) -> float:
    """The largest difference between the arms' fp32 embeddings; stops beyond AGREE."""
    first = arms["ours"](proteins, torch.float32)
    worst = max(
        float(np.abs(arm(proteins, torch.float32) - first).max()) for name, arm in arms.items() if name != "ours"
    )
    apart = float(np.abs(first[1:] - first[:-1]).max())
    assert worst <= AGREE, f"embeddings differ by {worst:.2e}, more than {AGREE:.0e}"
    assert apart > 100 * AGREE, f"neighbours differ by {apart:.2e} only: agreement would mean nothing"
    return worst


def measure(arms: dict[str, Arm], proteins: Sequence[Protein], args: argparse.Namespace) -> dict[str, dict]:
    """The table of the arms."""
    precision = PRECISIONS[args.precision]
    for arm in arms.values():
        arm(proteins[: 4 * args.batch_size], precision)
    lengths = np.array([len(p.residues) for p in proteins])
    seconds = take_turns({name: partial(arm, proteins, precision) for name, arm in arms.items()}, args.repeats)
    rows = table(seconds, len(proteins), int(lengths.sum()))
    for name, arm in arms.items():
        rows[name]["padding"] = padding(lengths, arm.batches(lengths)) if isinstance(arm, HuggingFace) else 0.0
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    device = choose_device(args.device)
    args.tokens_per_batch = args.tokens_per_batch or default_batch_tokens(device)
    args.batch_size = args.batch_size or (64 if device.type == "cuda" else 8)
    with tempfile.TemporaryDirectory() as folder:
        arms, limit = build_arms(Path(folder), device, args)
        proteins = read(args.fasta or toy_fasta(Path(folder), args.proteins), limit, args.proteins)
        difference = check(arms, proteins if args.precision == "fp32" else proteins[:256])
        print(f"{len(proteins)} proteins; fp32 embeddings agree to {difference:.1e} (at most {AGREE:.0e})", flush=True)
        rows = measure(arms, proteins, args)
    reference = next(arm.model for arm in arms.values() if isinstance(arm, HuggingFace))
    result = machine("benchmarks/embed.py", device) | {
        "hf_attention": reference.config._attn_implementation,
        "precision": args.precision,
        "tokens_per_batch": args.tokens_per_batch,
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "proteins": len(proteins),
        "residues": sum(len(p.residues) for p in proteins),
        "parameters": sum(p.numel() for p in reference.parameters()),
        "largest_difference_fp32": difference,
        "arms": rows,
    }
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
