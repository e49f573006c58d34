"""Points, vectors and maps: what a table becomes, PCA beside the SVD, t-SNE by its seed, what a killed run finds."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from toy_model import write_model

import proteinlm
from probe import page, themes
from probe.names import AMINO_ACIDS
from probe.projection import maps, vectors
from probe.projection.picture import STYLES, draw_column, style_of
from probe.projection.points import PROPERTIES, Points, amino_acids, make_column, read_points
from proteinlm.errors import InputError

TABLE = """id,sequence,place,mass,note
P1,MKV,Nucleus,1.5,x
P2,mkva-,ER,2,x
P3,AAA,Golgi,NA,x
P4,CCC,Nucleus,2,x
"""


def table(folder, text=TABLE):
    path = folder / "a.csv"
    path.write_text(text)
    return str(path)


def test_a_table_becomes_points(tmp_path):
    points = read_points(table(tmp_path), ["place", "mass"], ignore=["Golgi"])
    assert points.ids == ["P1", "P2", "P3", "P4"] and points.sequences[1] == "MKVA"
    place, mass = points.columns
    assert place.classes == ("Nucleus", "ER") and place.values.tolist() == [0, 1, -1, 0]
    assert place.texts() == ["Nucleus", "ER", "", "Nucleus"] and place.counts == [2, 1]
    assert mass.texts() == ["1.5", "2", "", "2"] and mass.classes == ("2", "1.5")  # few numbers: classes
    assert [column.name for column in read_points(table(tmp_path)).columns] == ["place", "mass"]  # x is no colour


def test_many_numbers_are_numbers_and_a_fasta_is_coloured_by_length(tmp_path):
    column = make_column("mass", [*map(str, range(30)), "NA"])
    assert column.classes == () and column.values[:30].tolist() == list(range(30)) and np.isnan(column.values[30])
    assert column.known.sum() == 30 and column.texts()[29:] == ["29", ""]
    assert make_column("mass", [*map(str, range(30)), "x"]).classes[0] == "0"
    fasta = tmp_path / "a.fasta"
    fasta.write_text(">P1\nMKV\n>P2\nMK\n")
    (length,) = read_points(str(fasta)).columns
    assert (length.name, length.values.tolist()) == ("length", [3, 2])


@pytest.mark.parametrize(
    "text, columns, words",
    [
        (TABLE, ["plac"], "no column 'plac'; did you mean place"),
        (TABLE, ["domain"], "no column 'domain'; it has id, sequence, place, mass, note"),
        (TABLE, ["note"], "column note: only 'x' in it; should have two classes"),
        (TABLE + "P1,MK,Golgi,1,x\n", None, r"line 6, column id: P1 again, as on line 2"),
        (TABLE + "P5,-*,Golgi,1,x\n", None, r"line 6, column sequence: no residues"),
        (TABLE + ",MK,Golgi,1,x\n", None, r"line 6, column id: no name"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, text, columns, words):
    with pytest.raises(InputError, match=words):
        read_points(table(tmp_path, text), columns)


def test_every_amino_acid_has_one_class_of_each_property():
    points = amino_acids()
    assert points.ids == list("ACDEFGHIKLMNPQRSTVWY") and len(points.columns) == 5
    for name, classes in PROPERTIES.items():
        assert sorted("".join(classes.values())) == points.ids, name
    charge = points.columns[0]
    assert dict(zip(points.ids, charge.texts(), strict=True))["K"] == "positive"


def test_input_embeddings_are_the_rows_of_the_amino_acids(tmp_path):
    encoder = proteinlm.load(write_model(tmp_path), device="cpu")
    rows = vectors.input_embeddings(encoder)
    ids = [encoder.tokenizer.encode(letter) for letter in AMINO_ACIDS]
    ids = [int(np.asarray(own).ravel()[len(np.asarray(own).ravel()) // 2]) for own in ids]
    assert np.array_equal(rows, encoder.model.word_embeddings.weight.detach().numpy()[ids])
    assert len(np.unique(rows, axis=0)) == 20


def test_input_embeddings_of_an_encoder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    from toy_huggingface import write_family

    encoder = proteinlm.load(write_family("ProtT5", tmp_path), device="cpu")
    rows, names = vectors.input_embeddings(encoder), transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = names.convert_tokens_to_ids([f"▁{letter}" for letter in AMINO_ACIDS])
    assert np.array_equal(rows, encoder.model.model.get_input_embeddings().weight.detach().numpy()[ids])


def test_vectors_that_are_not_finite_are_named():
    values = np.ones((20, 3), np.float32)
    values[4, 1] = np.nan
    with pytest.raises(InputError, match=r"F: the vector of m is not finite \(1 of 20 such\)"):
        vectors.check_finite(values, amino_acids(), "m")


def test_cosine_distances():
    values = np.random.default_rng(0).normal(size=(2, 4))
    a, b = vectors.with_metric(values, "cosine")
    cosine = values[0] @ values[1] / np.linalg.norm(values[0]) / np.linalg.norm(values[1])
    assert np.linalg.norm(a - b) == pytest.approx(np.sqrt(2 - 2 * cosine))
    with pytest.raises(InputError, match="metric 'angle': should be one of euclidean, cosine"):
        vectors.with_metric(values, "angle")


def test_pca_is_the_svd():
    values = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1]
    own = maps.pca(values, seed=0)
    u, s, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    assert np.abs(own.xy) == pytest.approx(np.abs(u[:, :2] * s[:2]), abs=1e-9)
    assert own.axes[0] == f"PC 1 ({s[0] ** 2 / (s**2).sum():.1%} of the variance)"


def test_tsne_is_a_function_of_the_seed_and_is_made_once(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(30, 6))
    first = maps.make_map(values, "tsne", 0, 5.0, 250, tmp_path)
    assert np.array_equal(first.xy, maps.tsne(values, 0, 5.0, 250)) and first.axes == ("t-SNE 1", "t-SNE 2")
    assert not np.array_equal(first.xy, maps.tsne(values, 0, 6.0, 250))
    monkeypatch.setattr(maps, "tsne", None)  # a call would fail
    assert np.array_equal(maps.make_map(values, "tsne", 0, 5.0, 250, tmp_path).xy, first.xy)
    for other in ({"seed": 1}, {"perplexity": 6.0}, {"iterations": 251}, {"vectors": values + 1}):
        words = {"vectors": values, "method": "tsne", "seed": 0, "perplexity": 5.0, "iterations": 250} | other
        with pytest.raises(TypeError):
            maps.make_map(**words, directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_tsne_before_scikit_learn_1_5(monkeypatch):
    class Old:
        def __init__(self, n_components, perplexity, init, random_state, n_iter, verbose):
            self.iterations = n_iter

        def fit_transform(self, values):
            return np.full((len(values), 2), self.iterations)

    monkeypatch.setattr("sklearn.manifold.TSNE", Old)
    assert maps.tsne(np.zeros((3, 2)), 0, 2.0, 300).tolist() == [[300, 300]] * 3


def test_umap_by_its_library_or_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match=r"needs umap-learn: pip install 'proteinlm\[umap\]'"):
        maps.make_map(np.zeros((4, 3)), "umap", 7, 5.0, 250)

    class Umap:
        def __init__(self, random_state):
            self.seed = random_state

        def fit_transform(self, values):
            return values[:, :2] + self.seed

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    assert maps.make_map(np.zeros((4, 3)), "umap", 7, 5.0, 250).xy.tolist() == [[7, 7]] * 4


def test_few_points_for_the_perplexity_are_one_line():
    maps.check_perplexity(6, 5, "a.csv")
    with pytest.raises(InputError, match=r"a.csv: 5 points, not more than the perplexity 5"):
        maps.check_perplexity(5, 5, "a.csv")


@pytest.mark.slow
def test_no_two_classes_look_alike_and_a_picture_has_all_of_them(tmp_path):
    assert len({style_of(place) for place in range(STYLES)}) == STYLES
    cells = [f"class {place:02d}" for place in range(STYLES + 2)] * 3 + [""]
    column = make_column("a kind", cells)
    names = list(map(str, range(len(cells))))
    points = Points("a.csv", names, names, names, (column,))
    xy = np.random.default_rng(0).normal(size=(len(cells), 2))
    own = {"trained": {"pca": maps.Map(xy, ("PC 1", "PC 2"))}}
    paths = draw_column(tmp_path / "out", points, column, own, "data, model, seed", ["trained: purity"])
    names = [f"out_a_kind{end}" for end in (".png", ".svg", ".dark.png", ".dark.svg")]
    assert [path.name for path in paths] == names
    text = (tmp_path / "out_a_kind.svg").read_text()
    for word in ("class 17 (3)", "2 others (6)", "missing (1)", "PC 2", "data, model, seed", "trained: purity", "PCA"):
        assert word in text, word


@pytest.mark.slow
def test_a_picture_of_numbers_has_a_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(themes, "THEMES", {"": page.LIGHT})
    column = make_column("mass", [*map(str, range(30)), "NA"])
    names = list(map(str, range(31)))
    xy = np.random.default_rng(0).normal(size=(31, 2))
    own = {"trained": {"pca": maps.Map(xy, ("PC 1", "PC 2"))}}
    draw_column(tmp_path / "out", Points("a.csv", names, names, names, (column,)), column, own, "data", [])
    text = (tmp_path / "out_mass.svg").read_text()
    assert "missing (1)" in text and ">mass<" in text and ">25<" in text
