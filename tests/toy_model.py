"""A toy model directory for the tests of proteinlm.load."""

import json

import torch

from proteinlm.model_dir.config import CONFIG_KEYS
from proteinlm.model_dir.files import write_tape_dir
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initialize

CONFIG = ModelConfig(
    **{"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "vocab_size": 30},
    **{"ffn_hidden_size": 32, "init_method_std": 0.3, "make_vocab_size_divisible_by": 1},
)


def write_model(directory, lm_head=True, **changes):
    """A model directory whose layers and residues differ well above rounding. changes: to its config.json."""
    model = ProteinBert(CONFIG, lm_head=lm_head)
    initialize(model, 0)
    with torch.no_grad():  # biases and norms away from 0 and 1
        for parameter in (p for p in model.parameters() if p.dim() == 1):
            parameter.add_(torch.linspace(-0.2, 0.3, len(parameter)))
    config = {key: getattr(CONFIG, name) for name, key in CONFIG_KEYS.items()}
    write_tape_dir(directory, config, model.state_dict())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory
