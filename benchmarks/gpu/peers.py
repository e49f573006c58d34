"""Stage `peers`: training steps beside the peers, this GPU's rates for the planner, and attention alone.

    python benchmarks/gpu/peers.py OUT     # OUT/peers.json, and each comparison's own JSON beside it

Comparisons of benchmarks/train_step.py, the most telling first; what does not fit into the minutes is named, and called
again the stage goes on with it.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from benchmarks.comparison import ROOT
from benchmarks.gpu.stage import Stage, parser
from benchmarks.training.calibration import LEAST_ERROR
from benchmarks.training.models import PROTEINLM_SHAPES
from pretrain.gpus import find_gpu
from proteinlm.files import write_json

ALL = "ours dense_mask megatron_bert megatron_bert_sorted esm2 esm2_sorted"
RUNS = {  # name -> flags of train_step.py
    "200m": f"--proteinlm 200m --rows 4 --seq_length 2176 --proteins 480 --arms {ALL}",
    "200m-as-the-original": "--proteinlm 200m --rows 4 --seq_length 2176 --proteins 300 --recompute "
    "--arms ours dense_mask_eager",
    "3b-width": "--proteinlm 3b --layers 4 --rows 2 --seq_length 2176 --proteins 300 "
    "--arms ours dense_mask megatron_bert_sorted esm2_sorted",
    "35m": f"--proteinlm 35m --rows 16 --proteins 800 --arms {ALL}",
    "esm2-650m": "--esm2 650m --layers 12 --rows 8 --proteins 400 --arms ours hf hf_sorted",
    "8m": f"--proteinlm 8m --rows 16 --proteins 800 --arms {ALL}",
    "200m-fp16": "--proteinlm 200m --rows 4 --seq_length 2176 --proteins 300 --precision fp16 --arms ours",
    "35m-fp32": "--proteinlm 35m --rows 8 --proteins 400 --precision fp32 --arms ours esm2_sorted",
}
ATTENTION = ("40,16,217,64", "8,16,1024,64", "4,16,2176,64", "16,40,512,64", "64,20,256,24")  # n,H,S,D
TINY = {"tiny": f"--proteinlm tiny --rows 2 --seq_length 256 --proteins 60 --arms {ALL} dense_mask_eager"}


def made_by(result: Path, commit: str) -> bool:
    return result.exists() and json.loads(result.read_text())["commit"] == commit


def check_planner(stage: Stage, out: Path, runs: dict[str, str]) -> None:
    """What the planner predicts from these rates for the first run, and the file's `error` from how far that is off."""
    path, plan = out / "calibration.json", out / "plan.json"
    run, rates = stage.result["runs"].get(next(iter(runs))), json.loads(path.read_text())
    if run is None:
        return
    layers, width, heads, inner = PROTEINLM_SHAPES[run["proteinlm"]]
    gpu = rates["gpu"] if find_gpu(rates["gpu"]) else "H100"  # a rehearsal pretends
    write_json(path, rates | {"gpu": gpu})
    words = ["--num-layers", layers, "--hidden-size", width, "--num-attention-heads", heads, "--ffn-hidden-size", inner]
    words += ["--seq-length", run["seq_length"], "--max-position-embeddings", run["seq_length"], "--train-iters", 100]
    words += ["--micro-batch-size", run["rows"], "--global-batch-size", run["rows"], "--bf16"]
    words += ["--hidden-dropout", 0, "--attention-dropout", 0, "--gpu", gpu, "--gpus-per-node", 1, "--nodes", 1]
    plan.unlink(missing_ok=True)
    stage.run("-m", "pretrain.plan", *words, "--calibration", path, "--json", plan, least=20)
    if plan.exists():
        layouts = json.loads(plan.read_text())["layouts"]
        one = next(x for x in layouts if x["micro_batch_size"] == run["rows"] and not x["recompute"])
        predicted, measured = 1e3 * one["step_seconds"], run["arms"]["ours"]["ms_per_step"]
        rates["error"] = max(LEAST_ERROR, round(abs(predicted / measured - 1), 3))
        stage.add(planner={"predicted_ms": predicted, "measured_ms": measured}, calibration=rates)
    write_json(path, rates)


def main() -> int:
    args = parser(__doc__).parse_args()
    stage = Stage("peers", args)
    out, on_gpu = args.out.resolve(), torch.device(args.device).type == "cuda"
    runs = TINY if args.rehearse else RUNS
    for number, (name, flags) in enumerate(runs.items()):
        result, words = out / f"train_step-{name}.json", flags.split()
        words += [] if "--precision" in words else ["--precision", "bf16"]
        words += ["--compile"] if on_gpu and "fp32" not in words else []
        words += ["--device", args.device, "--phases", "--repeats", "1" if args.rehearse else "3"]
        words += ["--output", result] + (["--calibration", out / "calibration.json"] if number == 0 else [])
        if not made_by(result, stage.result["commit"]):
            result.unlink(missing_ok=True)
            stage.run("benchmarks/train_step.py", *words, least=30)
        if result.exists():
            stage.add(runs=stage.result.get("runs", {}) | {name: json.loads(result.read_text())})
    if (calibration := out / "calibration.json").exists():
        stage.add(calibration=json.loads(calibration.read_text()))
        check_planner(stage, out, runs)
    attention = ROOT / "benchmarks/attention.py"
    if attention.exists():
        words = ["--device", args.device, "--output", out / "attention.json"]
        words += ["--shapes", *(("2,2,32,16",) if args.rehearse else ATTENTION)]
        done = stage.run(attention.relative_to(ROOT), *words, least=20)
        if done and (out / "attention.json").exists():
            stage.add(attention=json.loads((out / "attention.json").read_text()))
    return 0 if stage.result.get("runs") else 1


if __name__ == "__main__":
    sys.exit(main())
