"""Embedding speed beside Hugging Face's MegatronBertModel: the same weights, proteins and precision, in one process.

    python benchmarks/embed.py                      # toy weights, 200 toy proteins, a minute
    python benchmarks/embed.py --model MODEL_DIR --fasta in.fasta --proteins 2000 --output benchmarks/results/embed.json

The weights go to Hugging Face through `python -m converter --target hf`. Each arm turns residues into one `avg` vector
a protein (mean over all tokens) on the host, tokenisation included (the same tokeniser for all):
  ours            tape-embed's inner loop: windows of 8,192 proteins sorted by length, packed by --tokens_per_batch, no
                  padding
  hf              the usual way: --batch_size proteins in file order, padded to the longest, attention_mask
  hf_sorted       the same, but sorted by length over the whole file first
  hf_budget       (--arms) sorted, and packed into padded batches by the token budget of ours
MegatronBertModel runs with the attention that transformers chooses for it (`hf_attention` in the result; 5.x has eager
alone), and on a CPU is fastest with small batches. Repeats alternate between the arms, after a warm-up; medians.
Seconds are wall time and this process's own CPU time, which other work on the machine does not change.

What must hold: before anything is timed, all arms agree to 1e-4 in fp32 on every protein (on the first 256 where the
precision is another); the script stops otherwise.
"""

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from converter.convert import main as convert  # noqa: E402
from proteinlm.encoder import make_stream, token_batches  # noqa: E402
from proteinlm.files import write_json  # noqa: E402
from proteinlm.progress import Progress  # noqa: E402
from tape import ProteinBertConfig, ProteinBertModel  # noqa: E402
from tape.inference.encoding import TOKENIZER, TrunkEncoder, pad  # noqa: E402
from tape.inference.fasta import Protein, Rules, read_proteins, scan_fasta  # noqa: E402
from tape.inference.parts import plan_parts  # noqa: E402

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
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


class HuggingFace:
    """MegatronBertModel on padded batches. way: hf | hf_sorted | hf_budget."""

    def __init__(self, model: torch.nn.Module, way: str, device: torch.device, args: argparse.Namespace):
        self.model, self.way, self.device, self.args = model, way, device, args

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        if self.way == "hf_budget":
            return token_batches(lengths, self.args.tokens_per_batch, padded=True)
        order = np.argsort(-lengths, kind="stable") if self.way == "hf_sorted" else np.arange(len(lengths))
        return np.split(order, range(self.args.batch_size, len(order), self.args.batch_size))

    @torch.no_grad()
    def __call__(self, proteins: Sequence[Protein], precision: torch.dtype) -> np.ndarray:
        outputs = np.empty((len(proteins), self.model.config.hidden_size), np.float32)
        waiting = []
        for batch in self.batches(np.array([len(p.residues) for p in proteins])):
            ids, mask = pad(make_stream([proteins[i].residues for i in batch], TOKENIZER))
            ids += ids >= 5  # pretraining's vocabulary, which Hugging Face's directory has, has one token more
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
    parser.add_argument("--fasta", type=Path, help="(default: random proteins with the lengths of a protein database)")
    parser.add_argument("--proteins", type=int, default=200, help="the first N of the file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of autocast, for all arms")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens_per_batch", type=int, help="(8192; on a GPU 65536)")
    parser.add_argument("--batch_size", type=int, help="of hf and hf_sorted, proteins (8; on a GPU 64)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS[:3]))
    parser.add_argument("--output", type=Path, help="JSON")
    return parser


def toy_inputs(folder: Path, args: argparse.Namespace) -> None:
    """Fill in --model and --fasta."""
    if args.model is None:
        torch.manual_seed(0)
        args.model = folder / "tape"
        ProteinBertModel(ProteinBertConfig(**TOY, max_position_embeddings=1026)).save_pretrained(args.model)
    if args.fasta is None:
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(5.5, 0.7, args.proteins), 20, 1024).astype(int)
        records = (f">p{i}\n{''.join(rng.choice(list('ACDEFGHIKLMNPQRSTVWY'), n))}\n" for i, n in enumerate(lengths))
        args.fasta = folder / "toy.fasta"
        args.fasta.write_text("".join(records))


def read(args: argparse.Namespace, positions: int) -> list[Protein]:
    scan = scan_fasta(args.fasta, Rules(positions - 2, "crop", "first"))
    return [protein for protein, _ in zip(read_proteins(scan), range(args.proteins), strict=False)]


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


def measure(arms: dict[str, Arm], proteins: Sequence[Protein], args: argparse.Namespace) -> dict[str, list]:
    """Arm -> [(wall seconds, CPU seconds)] of each repeat; the arms take turns."""
    precision, seconds = PRECISIONS[args.precision], {name: [] for name in arms}
    for arm in arms.values():
        arm(proteins[: 4 * args.batch_size], precision)
    for repeat in range(args.repeats):
        names = list(arms)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            began, began_cpu = time.perf_counter(), time.process_time()
            arms[name](proteins, precision)
            seconds[name].append((time.perf_counter() - began, time.process_time() - began_cpu))
            print(f"repeat {repeat + 1} {name}: {seconds[name][-1][0]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def summarise(seconds: dict[str, list], proteins: Sequence[Protein], arms: dict[str, Arm], args) -> dict:
    lengths = np.array([len(p.residues) for p in proteins])
    tokens = int(lengths.sum()) + 2 * len(lengths)
    table = {}
    for name, runs in seconds.items():
        wall, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
        batches = [] if name == "ours" else arms[name].batches(lengths)
        fed = sum(len(batch) * int(lengths[batch].max() + 2) for batch in batches) or tokens
        table[name] = {
            "proteins_per_second": round(len(proteins) / wall, 2),
            "residues_per_second": round(int(lengths.sum()) / wall, 1),
            "wall_seconds": round(wall, 3),
            "wall_range": [round(min(run[0] for run in runs), 3), round(max(run[0] for run in runs), 3)],
            "cpu_seconds": round(cpu, 3),
            "padding": round(1 - tokens / fed, 4),
        }
    this_project = table["ours"]
    for name, row in table.items():
        row["ours_faster_wall"] = round(row["wall_seconds"] / this_project["wall_seconds"], 3)
        row["ours_faster_cpu"] = round(row["cpu_seconds"] / this_project["cpu_seconds"], 3)
        print(
            f"{name:10} {row['proteins_per_second']:10.1f} proteins/s  {row['wall_seconds']:8.2f} s  padding "
            f"{row['padding']:6.1%}  ours is {row['ours_faster_wall']:.2f} times as fast ({row['ours_faster_cpu']:.2f} "
            "by CPU seconds)"
        )
    return table


def describe(args: argparse.Namespace, device: torch.device, attention: str) -> dict:
    """What it takes to get the numbers again."""
    import transformers

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    cuda = device.type == "cuda"
    return {
        "commit": commit,
        "command": " ".join(["python", "benchmarks/embed.py", *sys.argv[1:]]),
        "machine": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()}, {os.cpu_count()} CPUs",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_attention": attention,
        "precision": args.precision,
        "tokens_per_batch": args.tokens_per_batch,
        "batch_size": args.batch_size,
        "repeats": args.repeats,
    }


def main() -> int:
    args = build_parser().parse_args()
    import transformers

    device = torch.device(args.device)
    args.tokens_per_batch = args.tokens_per_batch or (65536 if device.type == "cuda" else 8192)
    args.batch_size = args.batch_size or (64 if device.type == "cuda" else 8)
    args.save_fp16 = False
    settings = argparse.Namespace(tokens_per_batch=args.tokens_per_batch, batch_size=None, save_fp16=False)
    with tempfile.TemporaryDirectory() as folder:
        toy_inputs(Path(folder), args)
        convert(["--load", str(args.model), "--save", f"{folder}/hf", "--target", "hf"])
        reference = transformers.MegatronBertModel.from_pretrained(f"{folder}/hf", add_pooling_layer=False)
        reference = reference.to(device).eval()
        arms: dict[str, Arm] = {"ours": Ours(args.model, device, settings)}
        arms |= {way: HuggingFace(reference, way, device, args) for way in args.arms if way != "ours"}
        config = ProteinBertConfig.from_pretrained(args.model)
        proteins = read(args, config.max_position_embeddings)
        difference = check(arms, proteins if args.precision == "fp32" else proteins[:256])
        print(f"{len(proteins)} proteins; fp32 embeddings agree to {difference:.1e}", flush=True)
        table = summarise(measure(arms, proteins, args), proteins, arms, args)
    result = describe(args, device, reference.config._attn_implementation) | {
        "proteins": len(proteins),
        "residues": sum(len(p.residues) for p in proteins),
        "parameters": sum(p.numel() for p in reference.parameters()),
        "largest_difference_fp32": difference,
        "arms": table,
    }
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
