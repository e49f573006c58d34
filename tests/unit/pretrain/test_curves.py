"""`python -m pretrain.curves`: what is read from logs, and that the page and the picture show it."""

import json
import re
from itertools import pairwise

import pytest
from tiny_runs import trainer

from pretrain.curves import main, read_run, ticks
from proteinlm.errors import InputError


@pytest.fixture(scope="module")
def runs(prefix, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, lr in (("low", "1e-4"), ("high", "5e-3")):
        flags = ("--train-iters", "6", "--eval-interval", "3", "--valid-data-path", f"far={prefix}")
        trainer(prefix, folder / name, "--lr", lr, *flags).run()
    return folder


@pytest.mark.slow
def test_what_is_read(runs):
    curves = read_run(str(runs / "high"))
    assert curves.name == "high" and list(curves.sets) == ["train", "valid", "far"]
    train, valid = curves.sets["train"], curves.sets["valid"]
    assert (len(train), len(valid)) == (6, 2)
    assert [p[axis] for axis in ("residues", "flops", "minutes") for p in valid] == [
        train[i][axis] for axis in ("residues", "flops", "minutes") for i in (2, 5)
    ]
    for points in (train, valid):
        for axis in ("residues", "flops", "minutes"):
            assert all(a[axis] < b[axis] for a, b in pairwise(points))
        assert {"loss", "accuracy", "unigram"} <= points[-1].keys()
    assert 2 < valid[-1]["unigram"] < 3 < valid[0]["loss"] and valid[-1]["unigram"] != train[-1]["unigram"]


@pytest.mark.slow
def test_page_and_picture(runs, tmp_path, capsys):
    page, picture = tmp_path / "c.html", tmp_path / "c.png"
    assert main([f"a<b={runs / 'low'}", str(runs / "high"), "--output", str(page), "--png", str(picture)]) == 0
    text = page.read_text()
    assert text.count("<svg") == text.count("</svg>") == 3 * 2 * 3  # sets, measures, axes
    assert text.count("<polyline") == 2 * text.count("<svg") and text.count('class="unigram"') == 2 * 9
    assert "a&lt;b" in text and "a<b" not in text and not re.search(r"(src|href)=|http", text)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "below frequencies alone" in capsys.readouterr().out


def test_refusals(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl: no such file"):
        main([str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "loss": 2}\n')
    with pytest.raises(InputError, match="line 1 is not a line of a pretraining run"):
        main([str(tmp_path)])
    line = {"consumed_tokens": 9, "consumed_proteins": 1, "valid_mask_loss": 2.9, "dataset": "A" * 100_000}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="line 1 is not a line of a pretraining run"):
        main([str(tmp_path)])


def test_ticks_are_round():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(2.71, 2.93) == pytest.approx([2.75, 2.8, 2.85, 2.9])
