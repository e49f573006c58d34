"""The comparisons with Hugging Face run on tiny shapes, and stop where the two disagree."""

import json
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
ARMS = {"embed": {"ours", "hf", "hf_sorted"}, "train_step": {"ours", "ours_sorted", "hf", "hf_sorted"}}


@pytest.mark.parametrize("name", ARMS)
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
