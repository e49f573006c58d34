"""Evotuning: a Hugging Face ESM, continued on a family with `python -m pretrain`, and back to Hugging Face.

transformers is the judge at both ends: the first loss is its loss on the same masked proteins, and what comes out loads
with its Auto classes.
"""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from esm_writer import HEADS, HIDDEN, LAYERS, POSITIONS, peer, write_hf

from pretrain import __main__ as pretrain
from pretrain.data import preprocess
from pretrain.data.blending import build_datasets
from pretrain.data.loader import PackedLoader
from proteinlm.errors import run
from proteinlm.tokenizer import build_tokenizer

SEED, ROWS, LENGTH = 7, 4, POSITIONS
DATA = ("--seq-length", LENGTH, "--split", "80,20,0", "--seed", SEED, "--global-batch-size", ROWS)
SHAPE = (
    *("--num-layers", LAYERS, "--hidden-size", HIDDEN, "--num-attention-heads", HEADS, "--layernorm-epsilon", "1e-5"),
    *("--tokenizer-type", "esm", "--token-dropout", "--hidden-act", "gelu"),
    *("--hidden-dropout", 0, "--attention-dropout", 0),
)
KINDS = {
    "esm2": ("--position-embedding-type", "rope"),
    "esm1b": ("--max-position-embeddings", POSITIONS, "--position-offset", 2, "--embedding-layernorm"),
}


def command(main, *words: object) -> None:
    assert run(main, [str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> str:
    """The prefix of a shard: 80 relatives of one protein, some cropped."""
    folder, rng = tmp_path_factory.mktemp("family"), np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    ancestor = rng.choice(letters, 60)
    relatives = [np.where(rng.random(60) < 0.2, rng.choice(letters, 60), ancestor) for _ in range(80)]
    text = "".join(f">{i}\n{''.join(one[: rng.integers(12, 60)])}\n" for i, one in enumerate(relatives))
    (folder / "family.fasta").write_text(text)
    words = ("--input", folder / "family.fasta", "--output-prefix", folder / "family", "--tokenizer-type", "esm")
    command(preprocess.main, *words)
    return f"{folder}/family_text_document"


@torch.no_grad()
def loss_there(model, family: str) -> float:
    """Hugging Face's mean loss over the residues that the first step hides, protein by protein."""
    train, _, _ = build_datasets([family], "80,20,0", build_tokenizer("esm"), LENGTH, 0.15, SEED)
    losses = []
    for batch in next(iter(PackedLoader(train, 1, lambda consumed: ROWS))):
        tokens, used = batch.tokens.flatten(), batch.labels >= 0
        logits = torch.cat([model(tokens[None, a:b]).logits[0] for a, b in batch.cu_seqlens.unfold(0, 2, 1).tolist()])
        hidden = batch.masked_positions[used]
        losses.append(F.cross_entropy(logits[hidden], batch.labels[used], reduction="none"))
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_model_is_continued_on_a_family_and_goes_back(kind, family, convert_to, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    source = write_hf(tmp_path / "source", kind)
    before = AutoModelForMaskedLM.from_pretrained(source)
    start, printed = convert_to(source, "start", "--target", "dcp", "--verify", "--data-path", family, *DATA)
    steps = ("--micro-batch-size", 2, "--train-iters", 20, "--lr", "1e-2", "--log-interval", 1, "--device", "cpu")
    words = (
        "--data-path",
        family,
        "--tokenizer-type",
        "esm",
        "--load",
        start,
        "--finetune",
        "--save",
        tmp_path / "run",
    )
    command(pretrain.main, *words, *SHAPE, *KINDS[kind], *DATA, *steps, "--num-workers", 0)
    first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])["lm_loss"]
    there = loss_there(before, family)
    assert first == pytest.approx(there, abs=2e-6)
    assert float(re.search(r"loss of the first step: ([\d.]+)", printed)[1]) == pytest.approx(there, abs=2e-6)
    assert abs(loss_there(peer(kind, token_dropout=False), family) - there) > 1e-3  # the control: not ESM's maths

    written, _ = convert_to(tmp_path / "run", "tuned", "--target", "esm", "--verify")
    tuned = AutoModelForMaskedLM.from_pretrained(written)
    assert AutoTokenizer.from_pretrained(written)("MK")["input_ids"] == [0, 20, 15, 2]
    state, old = tuned.state_dict(), before.state_dict()
    for name in old:  # training has no gradient for two parts of the model, which it hands on
        handed_on = name.startswith("esm.contact_head") or name == "esm.rotary_embeddings.inv_freq"
        assert torch.equal(state[name], old[name]) == handed_on, name
    assert loss_there(tuned, family) < there - 0.1
