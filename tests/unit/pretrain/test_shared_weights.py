"""Shared layers and a factorised embedding: gradients are the whole weights', and the result is a model like any."""

import pytest
import torch
from tiny_runs import losses, trainer

from converter.sources import read
from pretrain.config.read import parse_config
from proteinlm.errors import InputError
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initialize

SHAPE = {"hidden_size": 16, "num_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 32}
BATCH = torch.arange(5, 25), torch.arange(20) % 10, torch.tensor([0, 10, 20], dtype=torch.int32)


def network(**options) -> ProteinBert:
    model = ProteinBert(ModelConfig(**SHAPE, hidden_dropout=0.0, attention_dropout=0.0, **options)).double()
    initialize(model, 3)
    return model


@pytest.mark.parametrize("options", [{"share_layers": True}, {"embedding_size": 4}], ids=str)
def test_the_number_of_parameters(options):
    model = network(**options)
    assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters()


def test_a_shared_layer_has_the_gradients_of_all_layers():
    shared, apart = network(share_layers=True), network()
    apart.load_state_dict(shared.state_dict())
    for model in (shared, apart):
        model(*BATCH, torch.tensor([3, 14])).logsumexp(-1).sum().backward()
    gradients = {name: p.grad for name, p in apart.named_parameters()}
    for name, parameter in shared.named_parameters():
        layers = [
            gradients[name.replace("layers.0.", f"layers.{i}.", 1)] for i in range(3 if "layers.0" in name else 1)
        ]
        torch.testing.assert_close(parameter.grad, sum(layers), rtol=1e-10, atol=1e-12)
        if len(layers) > 1 and name.endswith("weight"):
            assert not torch.allclose(parameter.grad, layers[0], rtol=1e-3)  # one layer's alone would not do


def test_a_factorised_embedding_is_its_product():
    factorised, whole = network(embedding_size=4), network()
    state = factorised.state_dict()
    factor, projection = state.pop("word_embeddings.factor"), state.pop("word_embeddings.projection")
    whole.load_state_dict(state | {"word_embeddings.weight": factor @ projection})
    logits = [model(*BATCH, torch.tensor([3, 14])) for model in (factorised, whole)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-12)
    logits[1][:, :31].logsumexp(-1).sum().backward()
    logits[0][:, :31].logsumexp(-1).sum().backward()
    product = whole.word_embeddings.weight.grad  # by the chain rule
    torch.testing.assert_close(factorised.word_embeddings.factor.grad, product @ projection.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(factorised.word_embeddings.projection.grad, factor.T @ product, rtol=1e-10, atol=1e-12)


def test_the_product_is_spread_as_a_whole_embedding_and_has_empty_padding_rows():
    model = ProteinBert(ModelConfig(**SHAPE | {"hidden_size": 256}, embedding_size=64))
    initialize(model, 0)
    weight = model.word_embeddings.weight
    assert not weight[31:].any() and weight[:31].std().item() == pytest.approx(0.02, rel=0.1)


def test_it_trains_resumes_and_is_written_as_a_whole_model(prefix, tmp_path):
    flags = ("--share-layers", "--embedding-size", "8", "--hidden-dropout", "0", "--attention-dropout", "0")
    whole = trainer(prefix, tmp_path / "whole", *flags, "--train-iters", "4")
    whole.run()
    trainer(prefix, tmp_path / "parts", *flags, "--train-iters", "4", "--exit-interval", "2").run()
    again = trainer(prefix, tmp_path / "parts", *flags, "--train-iters", "4", "--load", str(tmp_path / "parts"))
    again.run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    with pytest.raises(InputError, match="share-layers True, this run asks for False"):
        trainer(prefix, tmp_path / "other", "--train-iters", "4", "--load", str(tmp_path / "parts"))
    model = read(tmp_path / "whole")
    assert not model.config.share_layers and model.config.embedding_size is None
    run, built = whole.model[0].eval(), model.build()
    torch.testing.assert_close(run(*BATCH), built(*BATCH), rtol=0, atol=1e-6)
    built.layers["1"].mlp.dense_4h_to_h.weight.data.zero_()  # a layer's weights are its own now
    assert not torch.allclose(run(*BATCH), built(*BATCH), atol=1e-3)


@pytest.mark.parametrize("name", ["--share-layers", "--embedding-size 8", "--objective rtd"])
def test_layouts_that_cut_the_model_are_refused(name):
    words = f"{name} --tensor-model-parallel-size 2 --data-path p --save s --train-iters 1"
    with pytest.raises(InputError, match=f"{name} needs the whole model in each process"):
        parse_config(words.split(), world_size=2)
