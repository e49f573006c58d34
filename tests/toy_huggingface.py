"""Tiny random directories of other encoders, laid out as their authors publish them: tokenizer files, config, weights.

directory = write_family("ProtT5", tmp_path / "prott5")          FAMILIES has the names
"""

from pathlib import Path

import torch
from sentencepiece import sentencepiece_model_pb2 as protobuf

from proteinlm.encoder import Encoder
from proteinlm.files import write_json, write_text
from proteinlm.huggingface.directory import open_directory
from proteinlm.tokenizer import build_tokenizer

LETTERS = "LAGVESIKRDTPNQFYMHCWXUBZO"  # the order of ProtTrans' vocab.txt
T5_LETTERS = "ALGVSREDTIPKFQNYMHWCXBOUZ"  # and of ProtT5's SentencePiece model
BERT_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
BERT_SIZES = {
    **{"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 64, "initializer_range": 0.3},
}
T5_SIZES = {
    **{"d_model": 16, "d_kv": 12, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2},
    **{"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "decoder_start_token_id": 0},
}
XLNET_SIZES = {
    **{"vocab_size": 37, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "initializer_range": 0.3},
    **{"mem_len": 512, "use_mems_eval": True, "pad_token_id": 5},
}


def write_vocabulary(directory: Path) -> None:
    """vocab.txt alone says nothing of the case, and transformers takes a BERT vocabulary for a lower-case one."""
    write_text(directory / "vocab.txt", "\n".join(BERT_VOCABULARY) + "\n")


def write_pieces(directory: Path, specials: list[str], letters: list[str]) -> None:
    """spiece.model: the pieces in this order, specials first."""
    model = protobuf.ModelProto()
    model.trainer_spec.model_type = protobuf.TrainerSpec.UNIGRAM
    model.trainer_spec.unk_id = next(i for i, piece in enumerate(specials) if "unk" in piece)
    model.normalizer_spec.add_dummy_prefix = True
    kinds = protobuf.ModelProto.SentencePiece
    for piece in specials:
        kind = kinds.UNKNOWN if "unk" in piece else kinds.CONTROL
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for number, piece in enumerate(letters):
        model.pieces.add(piece=piece, score=-2.0 - number / 100, type=kinds.NORMAL)
    (directory / "spiece.model").write_bytes(model.SerializeToString())


def protbert(directory: Path):
    from transformers import BertConfig, BertForMaskedLM

    write_vocabulary(directory)
    return BertForMaskedLM(BertConfig(**BERT_SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def protalbert(directory: Path):
    from transformers import AlbertConfig, AlbertForMaskedLM

    write_pieces(directory, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], [f"▁{letter}" for letter in LETTERS])
    sizes = BERT_SIZES | {"vocab_size": 34}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout_prob": 0.0}
    return AlbertForMaskedLM(AlbertConfig(**sizes, embedding_size=8, num_hidden_groups=1, **dropout))


def protelectra_generator(directory: Path):
    from transformers import ElectraConfig, ElectraForMaskedLM

    write_vocabulary(directory)
    return ElectraForMaskedLM(ElectraConfig(**BERT_SIZES, embedding_size=24))


def protelectra_discriminator(directory: Path):
    from transformers import ElectraConfig, ElectraForPreTraining

    write_vocabulary(directory)
    return ElectraForPreTraining(ElectraConfig(**BERT_SIZES, embedding_size=16))


def protxlnet(directory: Path):
    from transformers import XLNetConfig, XLNetLMHeadModel

    specials = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    write_pieces(directory, specials, [f"▁{letter}" for letter in LETTERS])
    return XLNetLMHeadModel(XLNetConfig(**XLNET_SIZES))


def prott5(directory: Path):
    from transformers import T5Config, T5ForConditionalGeneration

    write_pieces(directory, ["<pad>", "</s>", "<unk>"], [f"▁{letter}" for letter in T5_LETTERS])
    write_json(directory / "tokenizer_config.json", {"do_lower_case": False})
    return T5ForConditionalGeneration(T5Config(**T5_SIZES, vocab_size=128, feed_forward_proj="relu"))


def prostt5(directory: Path):
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    write_pieces(directory, ["<pad>", "</s>", "<unk>"], [f"▁{letter}" for letter in T5_LETTERS])
    tokenizer = T5Tokenizer.from_pretrained(directory)
    tokenizer.add_tokens([*"pynwrqhgdlvtmfsaeikc", "<fold2AA>", "<AA2fold>"])
    tokenizer.save_pretrained(directory)
    (directory / "spiece.model").unlink(missing_ok=True)
    return T5ForConditionalGeneration(T5Config(**T5_SIZES, vocab_size=150, feed_forward_proj="relu"))


def ankh_tokenizer(directory: Path, more: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    specials = ["<pad>", "</s>", "<unk>"]
    extra = [f"<extra_id_{number}>" for number in range(100)]
    pieces = [*specials, *T5_LETTERS, *extra, *more]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*specials, *extra, *more])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})


def ankh(directory: Path, more: tuple[str, ...] = ()):
    from transformers import T5Config, T5ForConditionalGeneration

    ankh_tokenizer(directory, list(more))
    sizes = T5_SIZES | {"vocab_size": 144, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return T5ForConditionalGeneration(T5Config(**sizes))


def ankh3(directory: Path):
    return ankh(directory, ("[NLU]", "[S2S]"))


def esmc(directory: Path):
    from transformers import EsmcConfig, EsmcForMaskedLM
    from transformers.models.esmc.tokenization_esmc import EsmcTokenizer

    EsmcTokenizer().save_pretrained(directory)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return EsmcForMaskedLM(EsmcConfig(vocab_size=64, **sizes))


def roberta(directory: Path):
    """A family that no table knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import RobertaConfig, RobertaForMaskedLM

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return RobertaForMaskedLM(RobertaConfig(**BERT_SIZES, pad_token_id=1, bos_token_id=0, eos_token_id=2))


FAMILIES = {
    "ProtBert": protbert,
    "ProtAlbert": protalbert,
    "ProtElectra generator": protelectra_generator,
    "ProtElectra discriminator": protelectra_discriminator,
    "ProtXLNet": protxlnet,
    "ProtT5": prott5,
    "ProstT5": prostt5,
    "Ankh": ankh,
    "Ankh3": ankh3,
    "ESM C": esmc,
    "RoBERTa": roberta,
}


def write_family(name: str, directory: Path, seed: int = 0) -> Path:
    """The directory of one of FAMILIES, its weights random and far from zero."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = FAMILIES[name](directory)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms, which begin as 0 and 1
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory


def load_trunk(directory: Path, dtype: torch.dtype = torch.float32) -> Encoder:
    """The encoder of a directory through transformers, also where proteinlm.load has a network of its own (ESM C)."""
    trunk, _, _ = open_directory(directory)
    return Encoder(trunk, build_tokenizer("tape"), torch.device("cpu"), dtype, str(directory))
