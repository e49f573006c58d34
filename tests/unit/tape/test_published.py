"""The published numbers and the reasons that keep them apart from our numbers, against hand-written cases."""

import pytest

from tape.reporting.published import PUBLISHED, SYSTEMS, reasons

LIKE = {"split": "cb513", "n_examples": 513, "train_proteins": 8_678, "metric": "accuracy", "head": "proteinlm"}
LIKE |= {"task": "secondary_structure", "truncated": {"proteins_cropped": 0}, "n_seeds": 3}


def test_the_published_table():
    """As in the two papers (FORMATS: contacts, homology, secondary structure, fluorescence, stability)."""
    columns = {system: [PUBLISHED[task][system].value for task in PUBLISHED] for system in SYSTEMS}
    assert columns["TAPE Transformer"] == [0.36, 0.21, 0.73, 0.68, 0.73]
    assert columns["ProteinLM-200M"] == [0.52, 0.26, 0.75, 0.68, 0.77]
    assert columns["ProteinLM-3B"] == [0.75, 0.30, 0.79, 0.68, 0.79]
    assert columns["TAPE one-hot"] == [0.29, 0.09, 0.69, 0.14, 0.19]


def test_the_same_measurement_has_only_the_remaining_reasons():
    differences = reasons(LIKE, PUBLISHED["secondary_structure"]["ProteinLM-200M"])
    assert [reason.split(":")[0] for reason in differences] == ["length", "seeds", "encoder"]
    result = LIKE | {"head": "tape", "task": "stability", "metric": "spearmanr", "split": "test"}
    result |= {"n_examples": 12_851, "train_proteins": 53_614}
    differences = reasons(result, PUBLISHED["stability"]["TAPE Transformer"])
    assert [reason.split(":")[0] for reason in differences] == ["seeds"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"split": "valid"}, "split: ours valid, published cb513"),
        ({"n_examples": 500}, "proteins: ours 500, published 513"),
        ({"train_proteins": 100}, "train: ours 100 proteins, published 8,678"),
        ({"metric": "accuracy_valid"}, "metric: ours accuracy_valid, published 3-class accuracy over residues"),
        ({"head": "tape"}, "head: ours tape, published proteinlm"),
        ({"truncated": {"proteins_cropped": 3, "max_length": 500}}, "length: ours cropped 3 proteins to 500 residues"),
        ({"n_seeds": 1}, "seeds: ours 1, published one run without a spread"),
        ({"early": "240 steps"}, "training: ours 240 steps"),
    ],
)
def test_every_difference_is_named(change, reason):
    published = PUBLISHED["secondary_structure"]["ProteinLM-3B"]
    assert reason in reasons(LIKE | change, published)
    assert reason not in reasons(LIKE, published)


def test_contacts_are_compared_in_the_definition_that_each_used():
    result = LIKE | {"task": "contact_prediction", "split": "test", "n_examples": 40, "train_proteins": 25_299}
    tape, proteinlm = (PUBLISHED["contact_prediction"][name] for name in ("TAPE Transformer", "ProteinLM-3B"))
    medium = reasons(result | {"metric": "precision_at_l5_medium_long"}, tape)
    assert not [reason for reason in medium if reason.startswith("metric")]
    assert [reason for reason in reasons(result | {"metric": "precision_at_l5"}, tape) if reason.startswith("metric")]
    pooled = [r for r in reasons(result | {"metric": "precision_at_l5"}, proteinlm) if r.startswith("metric")]
    assert len(pooled) == 1 and "pooled over a batch" in pooled[0]
