"""Flags and YAML: Megatron's launch lines work unchanged, every mistake is one line with both numbers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from pretrain.config.flags import MATHS, OBSOLETE
from pretrain.config.options import OPTIONS, SECTIONS, Config
from pretrain.config.read import parse_config
from pretrain.config.schedules import Schedule
from proteinlm.errors import InputError
from proteinlm.network.model import ProteinBert
from proteinlm.tokenizer import build_tokenizer

CONFIGS = Path(__file__).resolve().parents[3] / "pretrain" / "configs"
NEEDED = ["--data-path", "d", "--save", "s", "--train-iters", "100"]


def parse(*words, needed=True, **kwargs) -> Config:
    return parse_config([*(NEEDED if needed else []), *map(str, words)], notify=lambda notice: None, **kwargs)


def yaml_file(tmp_path, text: str) -> list[str]:
    (tmp_path / "c.yaml").write_text(text)
    return ["--config", str(tmp_path / "c.yaml")]


# ---- the original's launch lines

SINGLE = """--num-layers 12 --attention-dropout 0.1 --hidden-dropout 0.1 --hidden-size 768 --num-attention-heads 12
--layernorm-epsilon 1e-12 --micro-batch-size 4 --global-batch-size 8 --seq-length 2176 --max-position-embeddings 2176
--train-iters 2000000 --lr-decay-iters 990000 --save ckpt --load ckpt --data-path pfam_text_document
--vocab-file iupac_vocab.txt --tokenizer-type BertWordPieceCase --data-impl mmap --split 32593668,1715454,44311
--lr 0.0001 --min-lr 0.00001 --lr-decay-style linear --lr-warmup-fraction .01 --weight-decay 1e-2 --clip-grad 1.0
--log-interval 100 --save-interval 10000 --eval-interval 1000 --eval-iters 10 --fp16"""
MANY = """--local_rank=3 --num-layers 16 --attention-dropout 0.1 --hidden-dropout 0.1 --hidden-size 1024
--num-attention-heads 16 --layernorm-epsilon 1e-12 --micro-batch-size 4 --global-batch-size 128 --seq-length 2176
--max-position-embeddings 2176 --train-iters 1000000 --save ckpt --load ckpt --data-path pfam_text_document
--vocab-file iupac_vocab.txt --data-impl mmap --split 32593668,1715454,44311 --num-workers 96
--distributed-backend nccl --lr 0.0001 --lr-decay-style linear --min-lr 1.0e-5 --lr-decay-iters 990000
--weight-decay 1e-2 --clip-grad 1.0 --lr-warmup-fraction .01 --log-interval 1 --save-interval 1000
--eval-interval 100 --eval-iters 10 --fp16 --checkpoint-activations --tensorboard-dir tb"""


def test_the_originals_single_process_line():
    config = parse_config(SINGLE.split())
    assert (config.model.num_layers, config.model.hidden_size, config.model.num_attention_heads) == (12, 768, 12)
    assert config.model.layernorm_epsilon == 1e-12 and config.optim.min_lr == 1e-5
    assert config.training.fp16 and config.training.recompute_granularity is None
    assert config.data.data_path == ("pfam_text_document",) and config.data.tokenizer_type == "BertWordPieceCase"
    assert (config.model.hidden_act, config.model.lm_head_act) == ("gelu_new", "gelu")


def test_the_originals_many_gpu_line_is_the_200m_recipe():
    config = parse_config(MANY.split(), world_size=32)
    recipe = parse_config(["--config", str(CONFIGS / "proteinlm_200m.yaml"), "--data-path", "x", "--save", "y"])
    assert config.parallel.local_rank == 3 and config.training.recompute_granularity == "full"
    tokenizer = build_tokenizer()
    assert config.model_config(tokenizer) == recipe.model_config(tokenizer)
    assert config.optim == recipe.optim
    assert config.data.split == recipe.data.split and config.training.global_batch_size == 128


def test_defaults():
    config = parse()
    assert dataclasses.asdict(config.optim) | {"lr_decay_iters": None} == dataclasses.asdict(Config().optim)
    assert (config.optim.weight_decay, config.optim.clip_grad, config.optim.adam_beta2) == (0.01, 1.0, 0.999)
    assert (config.data.split, config.data.mask_prob, config.training.seed) == ("969,30,1", 0.15, 1234)
    assert config.optim.lr_decay_iters == 100
    assert config.training.global_batch_size == config.training.micro_batch_size


def test_every_option_is_documented_in_one_line():
    for name, (section, option) in OPTIONS.items():
        doc = option.metadata["doc"]
        assert doc and "\n" not in doc and len(doc) < 90, (section, name)
    assert len(OPTIONS) == sum(len(dataclasses.fields(section)) for section in SECTIONS.values())  # no name twice


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_config(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(f"--{name.replace('_', '-')}" in text for name in OPTIONS)


# ---- old spellings, flags that choose the maths, flags without a meaning


@pytest.mark.parametrize(
    ("flags", "acts"),
    [
        ("", ("gelu_new", "gelu")),
        ("--bias-gelu-fusion", ("gelu_new", "gelu")),
        ("--no-bias-gelu-fusion", ("gelu", "gelu")),
        ("--onnx-safe", ("gelu", "gelu")),
        ("--onnx-safe True", ("gelu", "gelu")),
        ("--onnx-safe False", ("gelu_new", "gelu")),
        ("--openai-gelu", ("gelu_new", "gelu_new")),
        ("--openai-gelu --no-bias-gelu-fusion", ("gelu_new", "gelu_new")),
    ],
)
def test_activations(flags, acts):
    model = parse(*flags.split()).model
    assert (model.hidden_act, model.lm_head_act) == acts


def test_the_networks_options(tmp_path):
    words = "--position-embedding-type rope --seq-length 4096 --rotary-base 5e5 --swiglu --normalization RMSNorm"
    words += " --disable-bias-linear --qk-layernorm --untie-embeddings-and-output-weights --embedding-layernorm"
    words += " --residual-scale 1.5 --no-lm-head-transform --token-dropout --tokenizer-type esm"
    tokenizer = build_tokenizer("esm")
    model = parse(*words.split()).model_config(tokenizer)
    assert (model.position_embedding_type, model.rotary_base, model.max_tokens) == ("rope", 5e5, None)
    assert model.swiglu and model.hidden_act == "swish" and model.ffn_hidden_size == 2688  # two thirds of 4096, in 64s
    assert (model.normalization, model.add_bias_linear, model.lm_head_transform) == ("RMSNorm", False, False)
    assert model.qk_layernorm and model.untie_embeddings_and_output_weights and model.embedding_layernorm
    assert model.residual_scale == 1.5 and model.token_dropout and model.mask_token_id == tokenizer.mask_id == 32
    text = "add_bias_linear: false\nlm_head_transform: no\n"
    from_file = parse(*yaml_file(tmp_path, text)).model
    assert not from_file.add_bias_linear and not from_file.lm_head_transform
    assert parse(*yaml_file(tmp_path, text), "--add-bias-linear").model.add_bias_linear
    assert parse().model_config(build_tokenizer()).mask_token_id is None


def test_aliases():
    words = "--model-parallel-size 2 --batch-size 8 --warmup 0.02 --checkpoint-activations"
    config = parse(*words.split())
    assert config.parallel.tensor_model_parallel_size == 2 and config.training.micro_batch_size == 8
    assert config.optim.lr_warmup_fraction == 0.02 and config.training.recompute_granularity == "full"
    assert parse("--activations-checkpoint-method", "uniform").training.recompute_granularity == "full"
    with pytest.raises(InputError, match="--batch-size means --micro-batch-size 8, but --micro-batch-size 4 is given"):
        parse("--batch-size", 8, "--micro-batch-size", 4)
    with pytest.raises(InputError, match="--openai-gelu means --hidden-act gelu_new, but --hidden-act relu"):
        parse("--openai-gelu", "--hidden-act", "relu")


@pytest.mark.parametrize("flag", OBSOLETE)
def test_flags_without_a_meaning_are_accepted_with_a_notice(flag):
    notices = []
    value = ["1"] if OBSOLETE[flag][0] else []
    config = parse_config([*NEEDED, f"--{flag}", *value], notify=notices.append)
    assert config == parse()
    assert len(notices) == 1 and f"--{flag} " in notices[0] and "\n" not in notices[0]


def test_no_notice_without_reason(capsys):
    parse_config(SINGLE.split())
    assert capsys.readouterr() == ("", "")
    assert not set(MATHS) & set(OBSOLETE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--apply-residual-connection-post-layernorm", "--apply-residual-connection-post-layernorm is not supported"),
        ("--data-impl lazy", "--data-impl lazy is not supported"),
        ("--optimizer sgd", "--optimizer sgd is not one of adam, muon"),
    ],
)
def test_refused_by_name(words, message):
    with pytest.raises(InputError, match=message):
        parse(*words.split())


def test_unknown_flag_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--hiden-size", 3)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "did you mean --hidden-size?" in error and error.count("\n") == 1


def test_underscores_are_dashes_in_flags_but_not_in_values():
    config = parse("--hidden_size=64", "--num_attention_heads", 4, "--tensorboard_dir", "a_b")
    assert config.model.hidden_size == 64 and config.logging.tensorboard_dir == "a_b"


# ---- values and combinations

WRONG = [
    ("--num-layers 0", "--num-layers is 0, but must be at least 1"),
    ("--num-workers 257", "--num-workers is 257, but must be at most 256"),
    ("--num-layers two", "--num-layers is 'two', not a number"),
    ("--num-layers 2.5", "--num-layers is 2.5, not a whole number"),
    ("--lr nan", "--lr is nan, not a finite number"),
    ("--lr 1e-999", "--lr is 0.0, but must be more than 0"),
    ("--lr -1", "--lr is -1.0, but must be more than 0"),
    ("--hidden-dropout 1", "--hidden-dropout is 1.0, but must be less than 1"),
    ("--mask-prob 0", "must be more than 0"),
    ("--mask-prob 1e-6", "mask-prob 1e-06 of seq-length 2176 masks no token"),
    ("--lr-decay-style exponential", "not one of constant, linear, cosine, WSD"),
    ("--hidden-act silu", "--hidden-act silu is not one of gelu, gelu_new, relu, swish"),
    ("--tokenizer-type GPT2BPETokenizer", "--tokenizer-type GPT2BPETokenizer is not one of"),
    ("--recompute-granularity selective", "not one of full"),
    ("--hidden-size 100", "num-attention-heads 16 must divide hidden-size 100"),
    ("--seq-length 4096", "seq-length 4096 is more than max-position-embeddings 2176"),
    ("--fp16 --bf16", "exclude each other"),
    ("--global-batch-size 10", "global-batch-size 10 must be a multiple of micro-batch-size 4"),
    ("--min-lr 1", "min-lr 1.0 is more than lr 0.0001"),
    ("--train-samples 5", "train-iters 100 and train-samples 5 are both given"),
    ("--lr-decay-samples 5", "lr-decay-samples 5 does not go with train-iters; use lr-decay-iters"),
    ("--lr-warmup-samples 5", "lr-warmup-samples 5 does not go with train-iters"),
    ("--lr-warmup-fraction 0.1 --lr-warmup-iters 5", "lr-warmup-fraction 0.1 and lr-warmup-iters 5: give one"),
    ("--lr-warmup-iters 200", "lr-warmup-iters 200 is more than lr-decay-iters 100"),
    ("--rampup-batch-size 4 4", "takes START INCREMENT SAMPLES, not 4 4"),
    ("--rampup-batch-size 4 12 100 --global-batch-size 32", "4 in steps of 12 does not reach global-batch-size 32"),
    ("--split 1,2,3,4", "--split 1,2,3,4 is not one to three shares"),
    ("--split 0,0,0", "is not one to three shares"),
    ("--split a,b,c", "is not one to three shares"),
    ("--split=-1,1,1", "--split -1,1,1 is not one to three shares"),
    ("--valid-data-path a/valid2 b/valid2", "a/valid2 and b/valid2 are both named valid2"),
    ("--valid-data-path valid=x", "x is named valid, as --split 969,30,1's own set is; give another NAME="),
    ("--data-path 0.5 a 0.5", "--data-path has 3 words"),
    ("--data-path x a 0.5 b", "'x' before a is not a weight"),
    ("--tokenizer-type SentencePiece", "needs --vocab-file"),
    ("--tensor-model-parallel-size 3", "tensor-model-parallel-size 3 must divide num-attention-heads 16"),
    ("--pipeline-model-parallel-size 17", "pipeline-model-parallel-size 17 is more than num-layers 16"),
    ("--num-layers-per-virtual-pipeline-stage 2", "needs pipeline-model-parallel-size above 1, not 1"),
    (
        "--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 3",
        "num-layers 16 must be a multiple of pipeline-model-parallel-size 4 x num-layers-per-virtual-pipeline-stage 3",
    ),
    ("--position-embedding-type alibi", "alibi is not one of learned_absolute, rope, none"),
    (
        "--position-embedding-type rope --hidden-size 48",
        "position-embedding-type rope rotates pairs: hidden-size 48 / num-attention-heads 16 = 3 must be even",
    ),
    ("--position-embedding-type rope --position-offset 2", "position-offset 2 is of learned positions"),
    ("--normalization BatchNorm", "--normalization BatchNorm is not one of LayerNorm, RMSNorm"),
    ("--swiglu --hidden-act relu", "--swiglu's activation is swish; --hidden-act relu does not go with it"),
    ("--swiglu --openai-gelu --lm-head-act relu", "--openai-gelu means --lm-head-act gelu_new"),
    ("--residual-scale 0", "--residual-scale is 0.0, but must be more than 0"),
    ("--rotary-base 0", "--rotary-base is 0.0, but must be more than 0"),
    (
        "--swiglu --hidden-size 64 --tensor-model-parallel-size 16 --ffn-hidden-size 40",
        "tensor-model-parallel-size 16 must divide ffn-hidden-size 40",
    ),
    ("--disable-bias-linear --add-bias-linear", "--disable-bias-linear means --add-bias-linear False"),
    ("--keep-last 0", "--keep-last is 0, but must be at least 1"),
    ("--override-lr-scheduler --use-checkpoint-lr-scheduler", "exclude each other"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_values_are_reported_with_both_numbers(words, message):
    with pytest.raises(InputError) as error:
        parse(*words.split())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_needed(tmp_path):
    needs = {"--save s --train-iters 1": "--data-path is needed", "--data-path d --train-iters 1": "--save is needed"}
    for words, message in {**needs, "--data-path d --save s": "give --train-iters or --train-samples"}.items():
        with pytest.raises(InputError, match=message):
            parse(*words.split(), needed=False)
    with pytest.raises(InputError, match=r"is more than .* 31 \(options of \S+c\.yaml and the flags\)$"):
        parse(*yaml_file(tmp_path, "max_position_embeddings: 31"), "--seq-length", 64)
    assert parse("--train-iters", 1, needed=False, required=()).data.data_path == ()


def test_samples_instead_of_iterations():
    words = "--data-path d --save s --train-samples 1000 --lr-warmup-samples 10 --rampup-batch-size 4 4 100"
    config = parse(*words.split(), "--global-batch-size", 16, needed=False)
    assert config.optim.lr_decay_samples == 1000 and config.training.rampup_batch_size == (4, 4, 100)


def test_a_split_is_what_megatron_takes_for_one():
    for split in ("9,1", "9/1", "100"):
        assert parse("--split", split).data.split == split
    names = parse("--split", "1,0,0", "--valid-data-path", "valid=x").data.valid_data_path
    assert names == ("valid=x",)


def test_a_growing_batch_divides_at_every_size():
    words = ("--rampup-batch-size", 4, 6, 100, "--global-batch-size", 16)
    with pytest.raises(InputError, match="a global batch of 10 must be a multiple of micro-batch-size 4"):
        parse(*words)
    assert parse(*words, "--micro-batch-size", 2, world_size=1)
    with pytest.raises(InputError, match=r"a global batch of 10 must be a multiple of .* 2 x 2 .* = 4"):
        parse(*words, "--micro-batch-size", 2, world_size=2)


def test_world():
    words = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2)
    assert parse(*words, world_size=8).training.global_batch_size == 4 * 2 * 2
    with pytest.raises(InputError, match=r"8 is 1 .* fewer than the 2 stages of pipeline-schedule 1f1b; 16 rows are"):
        parse(*words, "--global-batch-size", 8, world_size=8)
    with pytest.raises(InputError, match="2 x pipeline-model-parallel-size 2 = 4 must divide the 6 processes"):
        parse(*words, world_size=6)
    with pytest.raises(InputError, match=r"global-batch-size 12 must be a multiple of .* 4 x 2 .* = 8"):
        parse("--global-batch-size", 12, world_size=2)


# ---- YAML


def test_yaml_then_flags(tmp_path):
    text = "model:\n  num-layers: 4\n  hidden_size: 64\nnum_attention_heads: 4\nfp16: yes\n"
    text += "optim: {lr: 1e-3, min_lr: 1e-4}\n"
    config = parse(*yaml_file(tmp_path, text + "train_samples: 1e6\ndata_path: [0.5, a, 0.5, b c]\n"), "--lr", "3e-3")
    assert (config.model.num_layers, config.model.hidden_size, config.model.num_attention_heads) == (4, 64, 4)
    assert config.optim.lr == 3e-3 and config.optim.min_lr == 1e-4  # PyYAML itself reads 1e-4 as text
    assert config.training.fp16 and config.training.train_iters == 100 and config.training.train_samples is None
    assert config.data.data_path == ("d",)
    assert (
        parse(*yaml_file(tmp_path, text), "--bf16").training.fp16 is False
    )  # a flag drops what the file says against it
    assert parse(*yaml_file(tmp_path, text), "--no-fp16").training.fp16 is False
    assert parse(*yaml_file(tmp_path, "rampup_batch_size: 4 4 10\nglobal_batch_size: 8\n")).training.rampup_batch_size


def test_numbers_as_yaml_has_them(tmp_path):
    text = "train_samples: 1e6\nlr: 1E-4\nseed: 7\nloss_scale_window: 500.0\nsave_interval: null\nload: 12\n"
    config = parse(*yaml_file(tmp_path, text), "--data-path", "d", "--save", "s", needed=False)
    assert config.training.train_samples == 1_000_000 and config.optim.loss_scale_window == 500
    assert config.checkpoint.save_interval is None and config.checkpoint.load == "12"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden_size: 3\n", ":1: hiden_size is not an option; did you mean hidden_size?"),
        ("model:\n  num_layers: 2\n  lr: 3\n", ":3: lr belongs to section optim, not model"),
        ("modle:\n  num_layers: 2\n", ":1: modle is not an option; did you mean model?"),
        ("num_layers: 2\nnum_layers: 3\n", ":2: num_layers is given twice, first on line 1"),
        ("num_layers: 2\nmodel:\n  num-layers: 3\n", "num-layers is given twice"),
        ("num_layers: [2]\n", ":1: num_layers is [2], not a number"),
        ("num_layers: true\n", "num_layers is True, not a number"),
        ("fp16: maybe\n", "fp16 is 'maybe', not true or false"),
        ("data_path: {a: 1}\n", "data_path is {'a': 1}, not text"),
        ("model: 3\n", ":1: model is a section"),
        ("- a\n", "should hold lines of `key: value`, found a YAML sequence"),
        ("a: [1\n", "not YAML"),
        ("lr: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("num_layers: null\n", "num_layers is None, not a number"),
    ],
)
def test_wrong_yaml_names_file_and_line(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        parse(*yaml_file(tmp_path, text))
    assert "c.yaml" in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_missing_yaml(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml: no such file"):
        parse("--config", tmp_path / "absent.yaml")


def test_what_a_checkpoint_says_of_its_run_is_a_configuration_again(tmp_path):
    config = parse("--data-path", "0.3", "a", "0.7", "b c", "--adam-eps", "1e-9", "--bf16", "--valid-data-path", "x=y")
    for text in (yaml.safe_dump(config.to_dict()), json.dumps(config.to_dict())):
        assert parse_config(yaml_file(tmp_path, text)) == config


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *[("debug", 0.12), ("proteinlm_8m", 8), ("proteinlm_35m", 34)],
        *[("proteinlm_200m", 205), ("proteinlm_200m_fast", 205)],
    ],
)
def test_configs_are_what_they_are_called(name, millions):
    config = parse_config(["--config", str(CONFIGS / f"{name}.yaml")], required=())
    model = config.model_config(build_tokenizer(config.data.tokenizer_type))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.02)
    assert model.hidden_act == "gelu_new" and model.vocab_size == 31


# Trainable parameters of transformers' EsmForMaskedLM in these sizes (5.23), without its contact head.
ESM2 = {"8m": 7512353, "35m": 33501153, "150m": 148139553, "650m": 651042593, "3b": 2839004193}


@pytest.mark.parametrize("name", ESM2)
def test_esm2_configs_are_the_published_models(name):
    config = parse_config(["--config", str(CONFIGS / f"esm2_{name}.yaml")], required=())
    model = config.model_config(build_tokenizer(config.data.tokenizer_type))
    assert (model.vocab_size, model.mask_token_id, model.max_tokens) == (33, 32, None)
    unpadded = dataclasses.replace(model, make_vocab_size_divisible_by=1)
    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in ProteinBert(unpadded).parameters())
    assert built == unpadded.num_parameters() == ESM2[name]
    assert config.training.global_batch_size * config.data.seq_length == 2**21
    assert Schedule(config).learning_rate(2000, 0) == 4e-4
    assert Schedule(config).learning_rate(450_000, 0) == Schedule(config).learning_rate(500_000, 0) == 4e-5


def test_3b_says_that_its_shape_is_unknown():
    config = parse_config(["--config", str(CONFIGS / "proteinlm_3b.yaml")], required=())
    assert (config.model.num_layers, config.model.hidden_size, config.model.num_attention_heads) == (36, 2560, 40)
    assert "without its shape" in (CONFIGS / "proteinlm_3b.yaml").read_text()


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().model.num_layers = 3
