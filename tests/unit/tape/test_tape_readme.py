"""What the README of songlab's package shows, only paths and sizes changed: model, embedding, training, evaluating.

The commands run as their users call them, from a folder that holds ./data, and by the names the README gives.
"""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_data import write_config, write_data

import tape
from proteinlm.errors import InputError
from tape.main import run_embed, run_eval, run_train, to_argv

pytestmark = pytest.mark.slow

SEQUENCE = "GCTVEDRCLIGMGAILLNGCVIGSGSLVAAGALITQ"
FASTA = f">seq1\n{SEQUENCE}\n>seq2\nRTIKVRILHAIGFEGGLMLLTIPMVAYAMDMTLFQAILLDLSMTTCILVYTFIFQWCYDILENR\n"
SHORT = ["--num_train_epochs", "1", "--batch_size", "16", "--learning_rate", "1e-3", "--warmup_steps", "2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's folder: ./data, a small pretrained model under a name, a FASTA file."""
    root = tmp_path_factory.mktemp("home")
    for task in ("secondary_structure", "masked_language_modeling"):
        write_data(root / "data", task, train=24, valid=8)
    config = tape.ProteinBertConfig.from_json_file(write_config(root / "small.json", max_position_embeddings=128))
    torch.manual_seed(0)
    tape.ProteinBertForMaskedLM(config).save_pretrained(root / "models" / "bert-base")
    (root / "my_input.fasta").write_text(FASTA)
    return root


@pytest.fixture(autouse=True)
def inside(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("TAPE_MODELS", str(home / "models"))


def test_every_name_is_where_it_was():
    import tape.datasets
    import tape.metrics
    import tape.models.modeling_bert
    import tape.models.modeling_lstm
    import tape.models.modeling_onehot
    import tape.models.modeling_resnet
    import tape.models.modeling_utils
    import tape.registry
    import tape.tokenizers

    kinds = "MaskedLM ValuePrediction SequenceClassification SequenceToSequenceClassification ContactPrediction"
    names = ["ProteinModel", "ProteinConfig", "ProteinBertModel", "ProteinBertConfig", "TAPETokenizer"]
    for name in names + [f"ProteinBertFor{kind}" for kind in kinds.split()]:
        assert getattr(tape, name).__name__ == name and name in tape.__all__
    assert tape.models.modeling_bert.ProteinBertModel is tape.ProteinBertModel
    assert tape.models.modeling_utils.ProteinModel is tape.ProteinModel
    assert issubclass(tape.ProteinBertModel, tape.ProteinModel)
    for module, kind in (("lstm", "LSTM"), ("resnet", "ResNet"), ("onehot", "OneHot")):
        models = getattr(tape.models, f"modeling_{module}")
        model = getattr(models, f"Protein{kind}ForValuePrediction")
        assert issubclass(model, tape.ProteinModel) and getattr(tape, model.__name__) is model
        assert issubclass(getattr(models, f"Protein{kind}Config"), tape.ProteinConfig)


def test_models_and_tasks_of_the_list():
    models = tape.registry.model_types()
    assert {"transformer", "resnet", "lstm", "onehot", "tape_transformer"} <= set(models)
    for name in ("secondary_structure", "contact_prediction", "remote_homology", "fluorescence", "stability"):
        assert set(models) <= set(tape.registry.registry.get_task_spec(name).models)
    assert "lstm" in tape.registry.registry.get_task_spec("language_modeling").models
    masked = tape.registry.registry.get_task_spec("masked_language_modeling").models
    assert {"transformer", "resnet"} <= set(masked)


def test_loading_a_pretrained_model():
    from tape import ProteinBertModel, TAPETokenizer

    model = ProteinBertModel.from_pretrained("bert-base")
    tokenizer = TAPETokenizer(vocab="iupac")
    token_ids = torch.tensor([tokenizer.encode(SEQUENCE)])
    output = model(token_ids)
    sequence_output, pooled_output = output[0], output[1]
    assert sequence_output.shape == (1, 38, 16) and pooled_output.shape == (1, 16)


@pytest.mark.parametrize(
    ("name", "message"), [("babbler-1900", "left out"), ("bert-large", "bert-large"), ("trrosetta", "left out")]
)
def test_a_model_that_is_not_there(name, message):
    with pytest.raises(InputError, match=message) as error:
        tape.ProteinBertModel.from_pretrained(name)
    assert "\n" not in str(error.value)


def test_embedding():
    run_embed(["transformer", "my_input.fasta", "output_filename.npz", "bert-base", "--tokenizer", "iupac"])
    arrays = np.load("output_filename.npz", allow_pickle=True)
    assert list(arrays.keys()) == ["seq1", "seq2"]
    vectors = arrays["seq1"].item()
    model, tokenizer = tape.ProteinBertModel.from_pretrained("bert-base"), tape.TAPETokenizer()
    with torch.no_grad():
        sequence_output, pooled_output = model(torch.tensor([tokenizer.encode(SEQUENCE)]))[:2]
    np.testing.assert_allclose(vectors["avg"], sequence_output[0].mean(0), atol=1e-5)
    np.testing.assert_allclose(vectors["pooled"], pooled_output[0], atol=1e-5)
    run_embed(["transformer", "my_input.fasta", "full.npz", "bert-base", "--full_sequence_embed"])
    whole = np.load("full.npz", allow_pickle=True)["seq1"].item()["seq"]
    np.testing.assert_allclose(whole, sequence_output[0], atol=1e-5)


def test_unirep_is_named_as_left_out(capsys):
    words = ["unirep", "my_input.fasta", "output_filename.npz", "babbler-1900", "--tokenizer", "unirep"]
    with pytest.raises(SystemExit) as ended:
        run_embed(words)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and "unirep" in message and "left out" in message and message.count("\n") == 1


@pytest.fixture(scope="module")
def trained(home):
    """results/ss: the README's downstream training, from the pretrained model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("TAPE_MODELS", str(home / "models"))
        words = "transformer secondary_structure --from_pretrained models/bert-base --gradient_accumulation_steps 2"
        words += " --eval_freq 1 --save_freq 1 --output_dir results/ss"
        run_train([*words.split(), *SHORT])
    return home / "results" / "ss"


def test_training_and_evaluating_a_downstream_model(trained):
    assert json.loads((trained / "config.json").read_text())["num_labels"] == 3
    words = ["transformer", "secondary_structure", "results/ss", "--metrics", "accuracy", "--split", "valid"]
    scores = run_eval(words)
    assert list(scores) == ["accuracy"] and 0 <= scores["accuracy"] <= 1
    assert json.loads((trained / "secondary_structure-valid.json").read_text())["n_examples"] == 8


def test_training_a_language_model():
    run_train(["transformer", "masked_language_modeling", "--model_config_file", "small.json", *SHORT])
    (run,) = Path("results").glob("*masked_language_modeling*")  # TAPE's ./results/<a name>
    assert tape.ProteinBertForMaskedLM.from_pretrained(run).config.hidden_size == 16


@pytest.mark.slow
def test_the_distributed_command(python):
    words = "transformer masked_language_modeling --model_config_file small.json --nproc_per_node 2"
    words += " --gradient_accumulation_steps 2 --output_dir results/two --no_cuda"
    command = [str(python), "-m", "tape.train_distributed", *words.split(), *SHORT]
    source = str(Path(tape.__file__).parent.parent)
    environment = {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": "."}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Path("results/two/config.json").is_file()


def test_a_namespace_is_a_command_line():
    from argparse import Namespace

    flags = {"task": "stability", "fp16": False, "seed": 3, "from_pretrained": None, "no_cuda": True, "metrics": []}
    words = to_argv(Namespace(model_type="transformer", **flags, split=["a", "b"]), ("model_type", "task"))
    assert words == ["transformer", "stability", "--seed", "3", "--no_cuda", "--split", "a", "b"]
    assert to_argv(None, ()) is None and to_argv(["a", 1], ()) == ["a", "1"]


def test_a_mistake_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        run_train(["transformer", "secondary_structre", "--output_dir", "results/x"])
    assert ended.value.code == 2 and re.search("secondary_structre.*secondary_structure", capsys.readouterr().err)
