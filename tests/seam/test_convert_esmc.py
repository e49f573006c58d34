"""ESM C through the converter: in, out bit for bit, through what pretraining saves and onto TAPE's vocabulary."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_esm import esmc_model

from converter.formats import WriteOptions
from converter.huggingface.esmc import prepare_hf_esmc
from converter.sources import read
from proteinlm.errors import InputError


@pytest.fixture(scope="module")
def esmc_dir(tmp_path_factory):
    """Random weights in bf16, every row of the vocabulary its own."""
    path = tmp_path_factory.mktemp("esmc") / "model"
    model = esmc_model(hidden_size=12, intermediate_size=10, num_attention_heads=3)
    model.to(torch.bfloat16).save_pretrained(path)
    return path


def test_in_and_out_bit_for_bit(esmc_dir, convert_to):
    source = load_file(esmc_dir / "model.safetensors")
    straight, printed = convert_to(esmc_dir, "straight", "--target", "esmc", "--verify")
    assert "(through transformers)" in printed and "logits" in printed and "left out" not in printed
    checkpoint, _ = convert_to(esmc_dir, "dcp", "--target", "dcp", "--verify")
    back, _ = convert_to(checkpoint, "back", "--target", "esmc", "--verify")
    for path in (straight, back):
        result = load_file(path / "model.safetensors")
        assert result.keys() == source.keys()
        assert all(torch.equal(result[name], source[name]) for name in source)
    tape, printed = convert_to(esmc_dir, "tape", "--verify")
    assert "rows of ., -, |, <unused_33> ... <unused_63> left out" in printed
    assert read(tape).config.residual_scale == 18**0.5
    assert not torch.equal(read(tape).tensors["word_embeddings.weight"], source["esmc.embed_tokens.weight"])


def test_a_wrong_result_is_seen(esmc_dir, convert_to, monkeypatch):
    """The negative control of --verify: gate and value of the MLP in each other's place."""
    from converter.huggingface import esmc

    def swap(directory, *arguments):
        write(directory, *arguments)
        tensors = load_file(directory / "model.safetensors")
        names = [f"esmc.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")]
        tensors |= {names[0]: tensors[names[1]].clone(), names[1]: tensors[names[0]].clone()}
        save_file(tensors, directory / "model.safetensors")

    write = esmc.write_weights
    monkeypatch.setattr(esmc, "write_weights", swap)
    _, printed = convert_to(esmc_dir, "wrong", "--target", "esmc", "--verify", status=1)
    assert "verification failed: 2 of" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual_scale": 1.0}, r"residual_scale 1.0; Hugging Face's ESM C has residual_scale 4.24\d* only"),
        ({"token_dropout": True, "mask_token_id": 32}, "token_dropout True; Hugging Face's ESM C has token_dropout Fa"),
        ({"qk_layernorm": False}, "qk_layernorm False; Hugging Face's ESM C has qk_layernorm True only"),
        ({"lm_head_act": "gelu_new"}, "lm_head_act gelu_new; Hugging Face's ESM C has lm_head_act gelu only"),
        ({"rotary_base": 500.0}, "rotary_embeddings.inv_freq is not that of rotary_base 500, which"),
        ({"final_layernorm": False}, "final_layernorm is false, and Hugging Face's ESM C always applies that norm"),
    ],
)
def test_another_form_is_refused(esmc_dir, change, message):
    with pytest.raises(InputError, match=f"^{esmc_dir}: {message}"):
        prepare_hf_esmc(read(esmc_dir).with_config(**change), WriteOptions())


def test_a_trained_bias_of_the_final_norm_is_refused(esmc_dir):
    model = read(esmc_dir)
    bias = {"final_layernorm.bias": torch.full((12,), 0.1)}
    with pytest.raises(InputError, match=r"final_layernorm.bias is not zeros; .* has no bias in its final norm"):
        prepare_hf_esmc(replace(model, tensors=model.tensors | bias), WriteOptions())
