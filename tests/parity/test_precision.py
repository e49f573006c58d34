"""Sharding: memory is taken for the shards alone, half precision is FSDP2's, and sums are in fp32."""

import parity_jobs as jobs
import precision_jobs as precision
import pytest
import torch
from parity_layouts import FSDP, SHAPES, SP, TP, TWO, ZERO_BUBBLE

pytestmark = pytest.mark.slow

FULL, HALF_STREAM = ["--use-torch-fsdp2"], ["--no-fp32-residual-connection"]


@pytest.mark.parametrize(("size", "flags"), [(2, FSDP), (4, [*FULL, *TP])])
def test_a_process_never_holds_more_than_its_shards_and_one_weight(size, flags, ranks, corpus):
    for peak, whole, largest in ranks.run(size, precision.bytes_to_build, [*corpus, *flags]):
        assert whole / size < peak < whole / size + 3 * largest


def test_the_bytes_of_a_model_that_is_whole_first_are_seen(ranks, corpus):
    for peak, whole, _ in ranks.run(2, precision.bytes_to_build, [*corpus, *FSDP], True):
        assert peak >= whole


@pytest.mark.parametrize("shape", [[], SHAPES["esmc"]], ids=["bert", "esmc"])
def test_sharded_weights_are_gathered_in_half_precision(shape, ranks, esm_corpus):
    """No autocast; losses, gradients and rotary angles stay in fp32."""
    flags = [*esm_corpus, *shape, *FULL, "--bf16"]
    seen = ranks.run(2, precision.dtypes_of_a_step, flags)[0]
    rest = {"autocast": "False", "weight": "bfloat16", "logits": "bfloat16", "loss": "float32", "gradient": "float32"}
    angles = "float32" if shape else "None"
    assert seen == {**rest, "angles": angles, "stream": "float32", "out": "float32"}
    seen = ranks.run(2, precision.dtypes_of_a_step, [*flags, *HALF_STREAM])[0]
    assert seen == {**rest, "angles": angles, "stream": "bfloat16", "out": "bfloat16"}


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        (1, []),
        (2, FULL),
        (4, [*FSDP, *ZERO_BUBBLE]),
        (4, [*FSDP, *SP, *TWO]),
    ],
)
def test_half_precision_follows_fp32(size, flags, ranks, corpus, tmp_path):
    """Both residual streams, and they are not the same."""
    flags = [*corpus, "--save", str(tmp_path), *flags]
    plain, fp32_stream, half_stream = (
        ranks.run(size, jobs.losses_in_fp32, [*flags, *more])[0] for more in ([], ["--bf16"], ["--bf16", *HALF_STREAM])
    )
    assert fp32_stream == pytest.approx(plain, abs=5e-2) and half_stream == pytest.approx(plain, abs=5e-2)
    assert plain != fp32_stream != half_stream


@pytest.mark.parametrize("param_dtype", [None, torch.bfloat16])
def test_micro_batches_are_not_added_up_in_the_dtype_that_travels(param_dtype, ranks):
    """300 ones on two processes. In bf16 256 + 1 is 256, which FSDP2's own reduce_dtype shows."""
    assert ranks.run(2, precision.sum_of_ones, 300, False, param_dtype) == [600.0, 600.0]
    assert ranks.run(2, precision.sum_of_ones, 300, True, param_dtype) == [512.0, 512.0]
