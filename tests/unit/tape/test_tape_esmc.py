"""The tape-* commands on a directory of Hugging Face's EsmcForMaskedLM: states and logits, a finetuned run."""

import json

import pytest
import torch
from toy_data import write_split
from toy_esm import esmc_model, transformers

import proteinlm
from proteinlm.tokenizer import build_tokenizer
from tape import TAPETokenizer, train
from tape.models.modeling_bert import ProteinBertForMaskedLM

PROTEIN, LETTERS = "MKVLAAGIVPWXBUZO", "LAGVSERTIDPKQNFYMHWCXBUZO"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("esmc")
    esmc_model().save_pretrained(root / "model")
    for split, seed in (("train", 1), ("valid", 2)):
        write_split(root, "stability", split, 3, seed=seed, longest=24)
    return root


@torch.no_grad()
def test_states_and_logits_are_hugging_faces(root, tmp_path):
    peer, esmc = transformers.EsmcForMaskedLM.from_pretrained(root / "model").eval(), build_tokenizer("esmc")
    ids = torch.tensor([[esmc.cls_id, *esmc.encode(PROTEIN).tolist(), esmc.sep_id]])
    expected = peer(ids, output_hidden_states=True)
    columns = [[tokenizer.tokens.index(letter) for letter in LETTERS] for tokenizer in (TAPETokenizer(), esmc)]
    model = ProteinBertForMaskedLM.from_pretrained(root / "model", require_head=True)
    model.save_pretrained(tmp_path / "copy")
    for own in (model, ProteinBertForMaskedLM.from_pretrained(tmp_path / "copy", require_head=True)):
        tokens = torch.from_numpy(TAPETokenizer().encode(PROTEIN))[None]
        states, logits = own.bert(tokens)[0], own(tokens)[0]
        torch.testing.assert_close(states, expected.hidden_states[-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits[..., columns[0]], expected.logits[..., columns[1]], atol=1e-5, rtol=0)
    tied = logits - own.mlm.bias  # negative control: the embedding in the decoder's place
    own.mlm.decoder.weight.copy_(own.bert.encoder.word_embeddings.weight)
    assert (own(tokens)[0] - own.mlm.bias - tied).abs().max() > 0.01


def test_a_finetuned_run(root, tmp_path):
    words = ["transformer", "stability", "--from_pretrained", root / "model", "--data_dir", root, "--output_dir"]
    words += [tmp_path / "run", "--recipe", "none", "--max_steps", 1, "--eval_steps", 1, "--device", "cpu"]
    assert train.main([*map(str, words), "--learning_rate", "1e-3"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["qk_layernorm"] and config["swiglu"] and config["residual_scale"] == 18**0.5
    before, after = (proteinlm.load(path, device="cpu").embed(PROTEIN) for path in (root / "model", tmp_path / "run"))
    assert 1e-5 < abs(after - before).max() < 1
