"""Layers are one graph for batches of any proteins: counted by a backend that compiles nothing."""

import pytest
import torch
from stand_in_attention import stand_in, with_lengths_as_numbers

from pretrain.config.read import parse_config
from pretrain.parallel.apply import compile_layers, compiles
from proteinlm.errors import InputError
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initialize

HALF = ["--bf16", "--train-iters", "1"]


def train(compiled: bool, positions: str = "learned_absolute") -> tuple[list[int], list[float]]:
    """(graphs after each of ten batches of other proteins, their losses)."""
    shape = ModelConfig(
        16, 2, 2, 64, attention_dropout=0.0, hidden_dropout=0.0, position_embedding_type=positions, vocab_size=31
    )
    network = ProteinBert(shape)
    initialize(network, 0)
    network.train()
    graphs: list = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    if compiled:
        compile_layers(network, count)
    counts, losses, random = [], [], torch.Generator().manual_seed(0)
    for proteins in range(2, 12):
        cuts = torch.randperm(62, generator=random)[: proteins - 1].sort().values + 1
        bounds = torch.cat([torch.zeros(1, dtype=torch.int64), cuts, torch.tensor([64])]).int()
        tokens = torch.randint(5, 25, (2, 32), generator=random)
        loss = network(tokens, torch.arange(32).expand(2, 32), bounds, torch.arange(0, 64, 7)).logsumexp(-1).sum()
        loss.backward()
        counts.append(len(graphs))
        losses.append(float(loss.detach()))
    return counts, losses


@pytest.mark.parametrize("positions", ["learned_absolute", "rope"])
def test_ten_batches_of_other_proteins_make_one_graph(positions):
    with stand_in():
        counts, losses = train(True, positions)
        assert counts == [1] * 10
        assert losses == pytest.approx(train(False, positions)[1], rel=1e-5)


def test_a_graph_that_holds_the_lengths_of_proteins_is_seen():
    """The control: such a layer is not one graph."""
    with stand_in(with_lengths_as_numbers), pytest.raises(torch._dynamo.exc.TorchDynamoException):
        train(True)


def config(*flags: str):
    return parse_config([*HALF, *flags], required=())


def test_a_gpu_in_half_precision_compiles_unless_told_otherwise():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert compiles(config(), gpu) and compiles(config("--fp16", "--no-bf16"), gpu)
    assert compiles(config("--no-bf16", "--compile"), gpu)
    assert not compiles(config("--no-compile"), gpu) and not compiles(config("--no-bf16"), gpu)
    assert not compiles(config(), cpu)
    with pytest.raises(InputError, match="--compile needs a GPU"):
        compiles(config("--compile"), cpu)


def test_what_cannot_be_compiled_is_not_by_default_and_refused_when_asked():
    parallel = ["--tensor-model-parallel-size", "2"]
    gpu = torch.device("cuda")
    assert not compiles(config(*parallel), gpu)
    assert compiles(config(*parallel, "--sequence-parallel"), gpu)
    assert compiles(config(*parallel, "--attention-dropout", "0"), gpu)
    with pytest.raises(InputError, match=r"without --sequence-parallel gives attention-dropout 0\.1 .* --compile"):
        config(*parallel, "--compile")
