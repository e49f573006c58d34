"""Evotuning: a Hugging Face ESM, continued on a family with `python -m pretrain`, and back to Hugging Face.

transformers is the judge at both ends: the first loss is its loss on the same masked proteins, and what comes out loads
with its Auto classes.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from esm_writer import HEADS, HIDDEN, LAYERS, POSITIONS, peer, write_hf
from toy_esm import esmc_model, transformers

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
    *("--hidden-dropout", 0, "--attention-dropout", 0),
)
ESM = ("--tokenizer-type", "esm", "--token-dropout", "--hidden-act", "gelu")
KINDS = {
    "esm2": (*ESM, "--position-embedding-type", "rope"),
    "esm1b": (*ESM, "--max-position-embeddings", POSITIONS, "--position-offset", 2, "--embedding-layernorm"),
    "esmc": (
        *("--tokenizer-type", "esmc", "--position-embedding-type", "rope", "--swiglu", "--ffn-hidden-size", 24),
        *("--disable-bias-linear", "--qk-layernorm", "--residual-scale", (36 / LAYERS) ** 0.5),
        "--untie-embeddings-and-output-weights",
    ),
}


def command(main, *words: object) -> None:
    assert run(main, [str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Callable[[str], str]:
    """The prefix of a shard in a vocabulary: 80 relatives of one protein, some cropped."""
    folder, rng = tmp_path_factory.mktemp("family"), np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    ancestor = rng.choice(letters, 60)
    relatives = [np.where(rng.random(60) < 0.2, rng.choice(letters, 60), ancestor) for _ in range(80)]
    text = "".join(f">{i}\n{''.join(one[: rng.integers(12, 60)])}\n" for i, one in enumerate(relatives))
    (folder / "family.fasta").write_text(text)

    def shard(vocabulary: str) -> str:
        prefix = folder / vocabulary
        words = ("--input", folder / "family.fasta", "--output-prefix", prefix, "--tokenizer-type", vocabulary)
        command(preprocess.main, *words)
        return f"{prefix}_text_document"

    return shard


@torch.no_grad()
def loss_there(model, shard: str, vocabulary: str) -> float:
    """Hugging Face's mean loss over the residues that the first step hides, protein by protein."""
    train, _, _ = build_datasets([shard], "80,20,0", build_tokenizer(vocabulary), LENGTH, 0.15, SEED)
    losses = []
    for batch in next(iter(PackedLoader(train, 1, lambda consumed: ROWS))):
        tokens, used = batch.tokens.flatten(), batch.labels >= 0
        logits = torch.cat([model(tokens[None, a:b]).logits[0] for a, b in batch.cu_seqlens.unfold(0, 2, 1).tolist()])
        hidden = batch.masked_positions[used]
        losses.append(F.cross_entropy(logits[hidden], batch.labels[used], reduction="none"))
    return float(torch.cat(losses).mean())


def pretrain_on(shard: str, start: Path, save: Path, *flags: object) -> float:
    """Continue from `start`; the first step's loss."""
    steps = ("--micro-batch-size", 2, "--train-iters", 20, "--lr", "1e-2", "--log-interval", 1, "--device", "cpu")
    words = ("--data-path", shard, "--load", start, "--finetune", "--save", save, "--num-workers", 0)
    command(pretrain.main, *words, *SHAPE, *DATA, *steps, *flags)
    return json.loads((save / "metrics.jsonl").read_text().splitlines()[0])["lm_loss"]


@pytest.mark.parametrize("kind", ["esm2", "esm1b"])
@pytest.mark.slow
def test_a_hugging_face_model_is_continued_on_a_family_and_goes_back(kind, family, convert_to, tmp_path):
    source, shard = write_hf(tmp_path / "source", kind), family("esm")
    before = transformers.AutoModelForMaskedLM.from_pretrained(source)
    start, printed = convert_to(source, "start", "--target", "dcp", "--verify", "--data-path", shard, *DATA)
    first, there = pretrain_on(shard, start, tmp_path / "run", *KINDS[kind]), loss_there(before, shard, "esm")
    assert first == pytest.approx(there, abs=2e-6)
    assert float(re.search(r"loss of the first step: ([\d.]+)", printed)[1]) == pytest.approx(there, abs=2e-6)
    assert abs(loss_there(peer(kind, token_dropout=False), shard, "esm") - there) > 1e-3  # the control

    written, _ = convert_to(tmp_path / "run", "tuned", "--target", "esm", "--verify")
    tuned = transformers.AutoModelForMaskedLM.from_pretrained(written)
    assert transformers.AutoTokenizer.from_pretrained(written)("MK")["input_ids"] == [0, 20, 15, 2]
    assert loss_there(tuned, shard, "esm") < there - 0.1
    state, old = tuned.state_dict(), before.state_dict()
    for name in old:  # training has no gradient for two parts of the model, which it hands on
        handed_on = name.startswith("esm.contact_head") or name == "esm.rotary_embeddings.inv_freq"
        assert torch.equal(state[name], old[name]) == handed_on, name


def test_esm_c_is_continued_on_a_family(family, convert_to, tmp_path):
    model = esmc_model(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    model.save_pretrained(tmp_path / "source")
    shard = family("esmc")
    start, _ = convert_to(tmp_path / "source", "start", "--target", "dcp")
    first = pretrain_on(shard, start, tmp_path / "run", *KINDS["esmc"])
    assert first == pytest.approx(loss_there(model, shard, "esmc"), abs=2e-6)
    model.esmc.layers[0].self_attn.q_norm.weight.data[:2] *= 2
    assert abs(first - loss_there(model, shard, "esmc")) > 1e-5  # the control
    _, printed = convert_to(tmp_path / "run", "tuned", "--target", "tape", "--verify")
    assert "verified" in printed
