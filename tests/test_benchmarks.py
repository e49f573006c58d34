"""The comparisons run on tiny shapes and stop where two models disagree; gpu.sh runs on a CPU and refuses wrong use."""

import json
import mmap
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.plan.cluster import make_cluster
from probe.variants.floors import BLOSUM62

pytest.importorskip("transformers")
FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
ARMS = {"embed": {"ours", "hf", "hf_sorted"}, "train_step": {"ours", "ours_sorted", "hf", "hf_sorted"}}


@pytest.mark.parametrize("name", [pytest.param("embed", marks=pytest.mark.slow), "train_step"])
def test_a_comparison_on_a_tiny_shape(name, tmp_path, monkeypatch, capsys):
    words = ["--esm2", "tiny", "--proteins", "9", "--repeats", "1", "--batch_size", "4", "--device", "cpu", "--output"]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, str(tmp_path / "result.json")])
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script puts the project's root first
    main = runpy.run_path(str(FOLDER / f"{name}.py"))["main"]
    assert main() == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["arms"].keys() == ARMS[name] and result["hf_attention"] == "sdpa"
    assert 0 < result["largest_difference_fp32"] < 1e-4
    assert f"agree to {result['largest_difference_fp32']:.1e}" in capsys.readouterr().out
    monkeypatch.setitem(main.__globals__, "AGREE", 1e-9)
    with pytest.raises(AssertionError, match="differ by"):
        main()


def test_attention_alone_on_a_tiny_shape(tmp_path, monkeypatch):
    words = ["--shapes", "3,2,20,8", "--ragged", "--repeats", "1", "--device", "cpu", "--output"]
    monkeypatch.setattr(sys, "argv", ["attention.py", *words, str(tmp_path / "result.json")])
    monkeypatch.setattr(sys, "path", list(sys.path))
    main = runpy.run_path(str(FOLDER / "attention.py"))["main"]
    assert main() == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {(row["dtype"], row["work"]) for row in rows} == {
        (dtype, work) for dtype in ("float32", "bfloat16") for work in ("forward", "training")
    }
    assert all(row["backend"] == "buckets" and row["ms"] > 0 < row["difference"] for row in rows)
    monkeypatch.setitem(main.__globals__, "TOLERANCE", dict.fromkeys(main.__globals__["TOLERANCE"], 1e-9))
    with pytest.raises(AssertionError, match="buckets differs by"):
        main()


@pytest.mark.slow
def test_the_checks_of_a_few_proteins(tmp_path):
    """In a process of its own, whose functions get clocks."""
    sizes = ["--proteins", "10", "--shard_proteins", "30", "--steps", "1", "--chains", "5", "--repeats", "1"]
    line = [sys.executable, str(FOLDER / "checks.py"), *sizes, "--output", str(tmp_path / "result.json")]
    subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    result = json.loads((tmp_path / "result.json").read_text())
    shares = {check: share for row in result["runs"].values() for check, share in row["share"].items()}
    assert len(result["runs"]) == 10 and len(shares) == 12 and all(0 < share < 1 for share in shares.values())
    assert all(row["guarded_ms"] > 0 < row["plain_ms"] for row in result["readers"].values())


PACKED = ("--proteinlm", "tiny", "--rows", "2", "--seq_length", "256", "--proteins", "24", "--repeats", "1")
PACKED += ("--device", "cpu", "--batch_size", "4", "--phases")


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch):
    """`cuda`, the default there; PyTorch sets no device without a number."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = runpy.run_path(str(FOLDER / "train_step.py"))
    args = names["read_args"]([*PACKED, "--device", "cuda", "--arms", "ours"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert names["Comparison"](args, names["read"](args)).device == torch.device("cuda")


@pytest.mark.slow
def test_packed_rows_beside_a_dense_mask_and_megatron_bert(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    main = runpy.run_path(str(FOLDER / "train_step.py"))["main"]
    arms, files = ("ours", "dense_mask", "dense_mask_eager", "hf_sorted"), ("result.json", "rates.json")
    words = [*PACKED, "--precision", "bf16", "--arms", *arms]
    result, rates = (tmp_path / name for name in files)
    assert main([*words, "--output", str(result), "--calibration", str(rates)]) == 0
    result, rates = (json.loads(path.read_text()) for path in (result, rates))
    assert result["arms"].keys() == {*arms[:3], "megatron_bert_sorted"}
    for row in result["arms"].values():
        assert row["share_of_gemm_rate"] > 0 and row["forward_seconds"] > 0
        assert row["ms_per_step"] * row["steps"] == pytest.approx(1e3 * row["wall_seconds"], abs=1)
    ours, dense = result["arms"]["ours"], result["arms"]["dense_mask"]
    assert ours["padding"] == dense["padding"] < 0.3 and result["loss_difference"]["ours"] < 1e-3
    (tmp_path / "rates.json").write_text(json.dumps(rates | {"gpu": "NVIDIA H100 80GB HBM3"}))
    cluster = make_cluster("H100", 8, 1, calibration=str(tmp_path / "rates.json"))
    assert cluster.rates.error == rates["error"] and len(cluster.rates.gemm) == 4

    from benchmarks.training.arms import DenseMask

    def look_everywhere(arm, batch):
        arm.mask = torch.ones(len(batch.tokens), 1, *[batch.tokens.shape[1]] * 2, dtype=torch.bool)

    monkeypatch.setattr(DenseMask, "_make_mask", look_everywhere)
    with pytest.raises(AssertionError, match="differ by"):
        main([*words[:-5], "--arms", "ours", "dense_mask"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--esm2", "tiny", "--arms", "megatron_bert"), "--arms megatron_bert: choose from ours"),
        (("--proteinlm", "tiny", "--arms", "ours", "esm2", "--dropout", "0.1"), "--dropout: ESM-2 has none"),
        (("--proteinlm", "tiny", "--compile", "--device", "cpu"), "--compile and --flash3 need a GPU"),
        (("--arms", "hf"), "`ours` must be among them"),
    ],
)
def test_wrong_use_of_train_step(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    main = runpy.run_path(str(FOLDER / "train_step.py"))["main"]
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "OUT, the folder of the results, comes first"),
        (("OUT", "pretraining"), "pretraining is no stage"),
        (("OUT", "pretrain"), "stage pretrain needs --fasta"),
        (("OUT", "tasks", "--tape-data", "nowhere"), "--tape-data nowhere is not there"),
        (("OUT", "--minutes", "few"), "--minutes few is no number"),
        (("OUT", "--speed", "3"), "--speed is no flag"),
    ],
)
def test_wrong_use_of_gpu_sh(words, message, tmp_path, run_command):
    words = [str(tmp_path) if word == "OUT" else word for word in words]
    done = run_command("bash", FOLDER / "gpu.sh", *words, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"gpu.sh: {message}; usage:")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_gpu_sh_rehearses_the_ladder(tmp_path, run_command):
    """The cheapest stage; `bash benchmarks/gpu.sh OUT --rehearse` goes through all of them in five minutes."""
    run_command("bash", FOLDER / "gpu.sh", tmp_path, "ladder-200m", "--rehearse", warm=True)
    result = json.loads((tmp_path / "gpu.json").read_text())["ladder-200m"]
    assert [row["row"] for row in result["rows_2"]][1:] == ["no recomputation", "dropout 0", "bf16 residual stream"]
    losses = [row["first_loss"] for row in result["rows_2"]]
    assert max(losses) - min(losses) < 0.1
    assert {item["why"] for item in result["not_run"]} == {"needs a GPU"} and len(result["profile_2"]["kernels"]) == 25
    assert "| no recomputation |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_leak_is_seen_and_flat_memory_is_flat(monkeypatch):
    """Samples of this process before and after it takes memory, files and a thread; slopes of made-up series."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    soak = runpy.run_path(str(FOLDER / "soak/measure.py"))
    before = soak["take_sample"](os.getpid(), 0.0)
    held = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # no memory that an allocator kept
    held.write(b"x" * (64 << 20))
    files, stop = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)], threading.Event()
    waiting = threading.Thread(target=stop.wait)
    waiting.start()
    after = soak["take_sample"](os.getpid(), 1.0)
    stop.set()
    waiting.join()
    for file in files:
        os.close(file)
    assert held[-1] and after.heap - before.heap == pytest.approx(64, abs=8) and after.memory >= after.heap
    assert (after.files - before.files, after.threads - before.threads) == (5, 1)

    noise, times = np.random.default_rng(0).normal(size=720), np.linspace(0, 120, 720)
    series = {"flat": noise, "leak": noise + times / 60}  # MiB an hour
    taken = {
        name: [soak["Sample"](*pair, 0.0, 7, 1) for pair in zip(times, s, strict=True)] for name, s in series.items()
    }
    rows = {name: soak["summary"](samples)["memory"] for name, samples in taken.items()}
    assert rows["flat"]["interval"][0] < 0 < rows["flat"]["interval"][1]
    low, high = rows["leak"]["interval"]
    assert 0.5 < low < 1 < high < 1.5
    assert soak["summary"](taken["leak"])["files"]["interval"] == [0, 0]


def test_the_nearest_training_protein_by_hand(tmp_path, monkeypatch, capsys):
    """Among some that are further or near for too short a stretch; one of the two judged proteins has none."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    nearest = runpy.run_path(str(FOLDER / "learning/nearest.py"))
    rng = np.random.default_rng(0)
    protein, other, *rest = ("".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 100)) for _ in range(20))

    def changed(every: int) -> str:
        """`protein` with each residue in front of a multiple of `every` replaced, but for the last one."""
        letters = [("W" if a != "W" else "A") if n % every == 0 else a for n, a in enumerate(protein[:-1], 1)]
        return "".join(letters) + protein[-1]

    def measure(*training: str) -> dict:
        for name, proteins in (("train", (*rest, *training)), ("judged", (protein, other))):
            (tmp_path / f"{name}.fasta").write_text("".join(f">{n}\n{a}\n" for n, a in enumerate(proteins)))
        words = [str(tmp_path / "train.fasta"), str(tmp_path / "judged.fasta"), "--json", str(tmp_path / "a.json")]
        monkeypatch.setattr(sys, "argv", ["nearest.py", *words])
        nearest["main"]()
        result = json.loads((tmp_path / "a.json").read_text())
        assert result["training"]["proteins"] == len(rest) + len(training)
        return result["judged"][0]

    # Nine of 100 residues replaced: nine stretches of nine residues with two 8-mers each, one of ten with three.
    row = measure(changed(6), changed(10))
    near = {"aligned": 0.5, "median": 0.91, "largest": 0.91, "above": {"30%": 0.5, "50%": 0.5, "90%": 0.5}}
    assert row["related"] == near and row["shared_8mers"] == 9 * 2 + 3
    line = "| judged.fasta, 2 | related | 50.0% | 91.0% | 91.0% | 50.0% | 50.0% | 50.0% | 21 |"
    assert line in capsys.readouterr().out
    assert measure(changed(6))["related"]["largest"] == 0.84  # 16 of 100
    none = {"aligned": 0.0, "median": None, "largest": None, "above": {"30%": 0.0, "50%": 0.0, "90%": 0.0}}
    assert row["reversed"]["related"] == none
    row = measure(rest[0] + protein[:49] + rest[1])
    assert row["related"] == none and row["shared_8mers"] == 42
    assert measure(rest[0] + protein[:50] + rest[1])["related"]["largest"] == 1


def test_candidates_are_those_of_a_plain_search(monkeypatch):
    """Whatever the blocks; with another least number of letters, or more allowed, they are others."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    find_candidates = runpy.run_path(str(FOLDER / "learning/nearest.py"))["find_candidates"]
    monkeypatch.setitem(find_candidates.__globals__, "CANDIDATES", 3)
    rng = np.random.default_rng(1)
    # Few letters, so that words are shared; X is none, a word of two letters does not count.
    letters, lengths = list("ACD" * 5 + "X"), rng.integers(20, 32, 90)
    judged, training = (["".join(rng.choice(letters, n)) for n in some] for some in (lengths[:2], lengths[2:]))

    def score(a: str, b: str, seed: int) -> int:
        """The best stretch of a diagonal on which counted words cover `seed` letters."""
        best = 0
        for shift in range(-len(b), len(a)):
            row = [(a[i], b[i - shift]) for i in range(max(0, shift), min(len(a), len(b) + shift))]
            same = "".join(x if x == y else "X" for x, y in row)
            words = [n for n in range(len(row) - 3) if "X" not in same[n : n + 4] and len(set(same[n : n + 4])) > 2]
            if len({n + k for n in words for k in range(4)}) >= seed:
                sums = np.cumsum([0, *(BLOSUM62.get(pair, -1) for pair in row)])
                best = max(best, *(sums[i:].max() - sums[i] for i in range(len(sums))))
        return best

    def nearest(a: str, seed: int = 6, most: int = 3) -> list[str]:
        order = sorted((-score(a, b, seed), n) for n, b in enumerate(training))
        return [training[n] for negative, n in order[:most] if negative]

    candidates, residues = find_candidates(judged, training)
    assert candidates == list(map(nearest, judged)) and residues == sum(map(len, training))
    assert candidates != [nearest(a, seed=5) for a in judged] and candidates != [nearest(a, most=4) for a in judged]
    assert find_candidates(judged, training, residues=1)[0] == candidates
    assert find_candidates(judged, ["W" * 9])[0] == [[]] * 2
