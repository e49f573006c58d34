"""Encoders of Hugging Face's `transformers` under every task: ProtT5, ProtBert, Ankh ... (docs/other_encoders.md).

    model = HuggingFaceModel.from_pretrained("prot_t5_xl_uniref50")     a directory as transformers writes it, or a run
    sequence_output, pooled_output = model(input_ids, input_mask)[:2]

input_ids are TAPE's, and states come back in TAPE's layout, `<cls> residues <sep>` (proteinlm.huggingface.trunk): the
family's own tokens are put around each protein inside. pooled_output is the state at <cls>, which for a family without
such a token (the T5s) is the mean of the residues; with config.pooling "mean" it is that for all.

What must hold: padding changes nothing; a run's directory is self-contained, its config.json holding transformers'
config and the ids of the tokens, so that neither the first directory nor a tokenizer is needed again.
"""

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.huggingface.directory import LM_HEAD, TRUNK, build, describe, encoder_of_run, open_directory, run_config
from proteinlm.model_dir.files import CONFIG_NAME, read_config
from tape.models import kinds
from tape.models.base import WeightFile
from tape.models.config import BaselineConfig, check
from tape.models.modeling_bert import ProteinBertModel


class HuggingFaceConfig(BaselineConfig):
    """transformers_config: a config.json of transformers; tokens: proteinlm.huggingface.tokens.TokenTable as a dict.

    hidden_size and max_position_embeddings (residues + 2 of the longest protein, None for any length) are written for
    readers and found again in the network.
    """

    model_type = "huggingface"

    defaults: ClassVar = {
        "transformers_config": None,
        "tokens": None,
        "hidden_size": None,
        "num_hidden_layers": None,
        "max_position_embeddings": None,
        "initializer_range": 0.02,  # of the task's head
        "pooling": "first",
    }

    def __init__(self, *arguments, **values):
        super().__init__(*arguments, **values)
        check(self, "initializer_range", "pooling")

    @classmethod
    def from_json_file(cls, path: str | Path) -> "HuggingFaceConfig":
        """A run's config.json, or transformers' with its tokenizer beside it."""
        values = read_config(path)
        return cls.from_dict(values if "base_model" in values else _described(Path(path).parent))


def _described(directory: Path) -> dict:
    config, table = describe(directory)
    return {"transformers_config": config, "tokens": table.to_dict()}


class HuggingFaceAbstractModel(kinds.BuiltInModel):
    config_class = HuggingFaceConfig
    base_model_prefix = "trunk"
    lm_head: ClassVar[bool] = False  # whether the class has the masked-LM head

    def _init_weights(self, module: nn.Module) -> None:
        """The encoder has transformers' first weights; the heads their own."""

    @classmethod
    def _read(cls, directory: Path, values: dict, overrides: dict) -> WeightFile:
        config = read_config(directory)
        if "base_model" in config:
            kind = config["base_model"]
            if kind != "huggingface":
                raise InputError(f"{directory}: its model type is {ascii(str(kind))[:40]}, not huggingface")
            file = super()._read(directory, values, overrides)
            encoder_of_run(file.config, file.tensors, str(directory / CONFIG_NAME), file.path)  # for its checks
            return file
        trunk, config, notes = open_directory(directory, lm_head=cls.lm_head)
        tensors = {
            f"{LM_HEAD}{name.removeprefix('lm_head.')}" if name.startswith("lm_head.") else TRUNK + name: value
            for name, value in trunk.state_dict().items()
        }
        described = {"transformers_config": config, "tokens": trunk.table.to_dict()}
        return WeightFile(values | described, directory, tensors, notes)


class HuggingFaceModel(HuggingFaceAbstractModel):
    """(input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, h], pooled_output [B, h])."""

    def __init__(self, config: HuggingFaceConfig):
        super().__init__(config)
        values, table = run_config(vars(config), type(config).__name__)
        self.encoder = build(values, table, self.lm_head, type(config).__name__)
        shape = self.encoder.config
        config.hidden_size, config.num_hidden_layers = shape.hidden_size, shape.num_layers
        config.max_position_embeddings = shape.max_tokens

    forward = ProteinBertModel.forward


class HuggingFaceModelWithHead(HuggingFaceModel):
    lm_head = True


class HuggingFaceForMaskedLM(kinds.LanguageModel, HuggingFaceAbstractModel):
    """The encoder with its own masked-LM head. logits [B, N, 30], of TAPE's tokens."""

    kind = "masked_language_modeling"
    trunk_class = HuggingFaceModelWithHead
    lm_head = True

    def __init__(self, config: HuggingFaceConfig):
        super().__init__(config)
        encoder = self.trunk.encoder
        if encoder.lm_head is None:
            raise InputError(f"{encoder.table.family} has no masked-LM head, so no masked_language_modeling")
        self.mlm, encoder.lm_head = encoder.lm_head, None

    def _logits(self, hidden: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        return self.trunk.encoder.to_tape(self.mlm(hidden))


class HuggingFaceForValuePrediction(kinds.Value, HuggingFaceAbstractModel):
    trunk_class = HuggingFaceModel


class HuggingFaceForSequenceClassification(kinds.Classification, HuggingFaceAbstractModel):
    trunk_class = HuggingFaceModel


class HuggingFaceForSequenceToSequenceClassification(kinds.TokenClassification, HuggingFaceAbstractModel):
    trunk_class = HuggingFaceModel


class HuggingFaceForContactPrediction(kinds.Contacts, HuggingFaceAbstractModel):
    trunk_class = HuggingFaceModel
