"""No number depends on what a protein is batched with: every task x head x model type of the registry.

Batched logits equal the single protein's to 1e-5; a whole split's scores are the same for batches of 1, 3 and all.
Negative control: with padding passed off as residues, the same comparison fails wherever a head or a trunk looks
beyond its own residue.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn
from toy_data import build_model

from proteinlm.huggingface.tokens import TokenTable
from tape import TAPETokenizer
from tape.data.splits import load_split
from tape.models.heads import MaskedBatchNorm
from tape.registry import TASK_KINDS, registry, resolve_task
from tape.runs.names import HEADS
from tape.scoring.inference import predict

LENGTHS = (24, 6, 17, 11, 2)
SIZES = {
    "lstm": {"input_size": 8, "hidden_size": 12, "num_hidden_layers": 2},
    "resnet": {"hidden_size": 12, "num_hidden_layers": 3},
    "onehot": {},
}
BERT_SIZES = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "max_position_embeddings": 40,
}
# A BERT of transformers whose vocabulary is TAPE's, between its own [CLS] and [SEP].
TOKENS = TokenTable("ProtBert", (*range(30),), (*range(30),), prefix=(2,), suffix=(3,), pad_id=0, cls=0, sep=1)
SIZES["huggingface"] = {
    "transformers_config": {"model_type": "bert", "vocab_size": 30, **BERT_SIZES},
    "tokens": TOKENS.to_dict(),
}
CONTINUOUS = ("mse", "mae", "largest_error", "perplexity")  # all other scores are counts and ranks, and must be equal


def heads_of(task, model_type):
    """Kinds of heads that a task has: language models one of their own, contacts one more where there are maps."""
    if TASK_KINDS[task].endswith("modeling"):
        return HEADS[:1]
    maps = task == "contact_prediction" and model_type in ("transformer", "huggingface")
    return [head for head in HEADS if head != "attention" or maps]


def marks(task, model_type, head):
    """The fast tier has the contact head, 60 convolutions, over one model type."""
    slow = (task, head) == ("contact_prediction", "proteinlm") and model_type != "transformer"
    return pytest.mark.slow if slow else ()


CASES = [
    pytest.param(task, model_type, head, id=f"{task}-{model_type}-{head}", marks=marks(task, model_type, head))
    for task in TASK_KINDS
    if task != "embed"
    for model_type in registry.get_task_spec(task).models
    for head in heads_of(task, model_type)
]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Small proteins with the fields of every task, as one of TAPE's JSON files."""
    rng = np.random.default_rng(0)
    proteins = [
        {
            "id": f"protein{number}",
            "primary": "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)),
            "protein_length": length,
            "log_fluorescence": [rng.normal()],
            "stability_score": [rng.normal()],
            "fold_label": int(rng.integers(1195)),
            "ss3": rng.integers(0, 3, length).tolist(),
            "ss8": rng.integers(0, 8, length).tolist(),
            "tertiary": rng.normal(scale=6.0, size=(length, 3)).tolist(),
            "valid_mask": (rng.random(length) < 0.9).tolist(),
        }
        for number, length in enumerate(LENGTHS)
    ]
    path = tmp_path_factory.mktemp("data") / "valid.json"
    path.write_text(json.dumps(proteins))
    return path


def build(task, model_type, head):
    """A random model in evaluation mode, away from the fresh weights that map zeros (and padding) to zeros, and whose
    trunks (standard deviation 0.02) hardly mix positions."""
    if model_type == "huggingface":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = task.model.config_class(**SIZES.get(model_type, BERT_SIZES))
    model = build_model(task, config=config, head=head)
    with torch.no_grad():
        for part, parameter in model.base_model.named_parameters():
            if parameter.dim() > 1:  # the ResNet's pooler takes the tanh of a sum over the protein: not near 1
                parameter.normal_(std=(0.1 if "pooler" in part else 1.0) * parameter[0].numel() ** -0.5)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter) - 0.3)
        for module in model.modules():
            if isinstance(module, MaskedBatchNorm | nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def own_part(logits, length):
    """What of one row of a batch's logits is about the protein of `length` residues."""
    if logits.dim() == 1:  # [C]: one answer a protein
        return logits
    if logits.dim() == 2:  # [N, C]: <cls> residues <sep>
        return logits[: length + 2]
    return logits[:length, :length]


def largest_difference(task, model, data, change=lambda mask: mask):
    """Over all proteins, between the logits in a batch of everything, whose mask is `change`d, and those alone."""

    def logits_of(indices, change):
        batch = data[0, np.array(indices)]
        return task.forward(model, {**batch, "input_mask": change(batch["input_mask"])})

    with torch.no_grad():
        together = logits_of(range(len(LENGTHS)), change)
        alone = [logits_of([place], lambda mask: mask)[0] for place in range(len(LENGTHS))]
    pairs = zip(together, alone, LENGTHS, strict=True)
    return max(float((own_part(a, n) - own_part(b, n)).abs().max()) for a, b, n in pairs)


@pytest.mark.parametrize(("name", "model_type", "head"), CASES)
def test_a_protein_does_not_see_its_batch(name, model_type, head, records):
    task = resolve_task(name, model_type)
    model = build(task, model_type, head)
    data = load_split(task, records, "valid", TAPETokenizer(), None, "error")
    assert largest_difference(task, model, data) < 1e-5
    if model_type != "onehot" or name != "contact_prediction" or head != "tape":  # one-hot pairs see nothing around
        assert largest_difference(task, model, data, torch.ones_like) > 1e-4, "the control was not caught"


@pytest.mark.parametrize(("name", "model_type", "head"), CASES)
def test_scores_of_a_split_do_not_depend_on_the_batch_size(name, model_type, head, records):
    task = resolve_task(name, model_type)
    model = build(task, model_type, head).double()  # how a processor adds up may not decide a rank
    data = load_split(task, records, "valid", TAPETokenizer(), None, "error")
    results = []
    for batch_size in (1, 3, len(LENGTHS)):
        predictions, loss = predict(task, model, data, batch_size, torch.device("cpu"))
        assert [p.id for p in predictions] == [f"protein{number}" for number in range(len(LENGTHS))]
        results.append((task.score(predictions), loss))
    scores, loss = results[0]
    assert scores["n_examples"] == len(LENGTHS)
    for others, other_loss in results[1:]:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert others.keys() == scores.keys()
        for key in scores:
            tolerance = 1e-5 if key in CONTINUOUS else 0.0
            np.testing.assert_allclose(others[key], scores[key], rtol=tolerance, err_msg=key)
