"""Each file of scripts/, checked by shellcheck and run on small data."""

import importlib
import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tape_lmdb import write_lmdb

from probe.__main__ import VERBS
from probe.tables.rows import SECTIONS, STEPS

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.sh"), *(ROOT / "scripts").glob("*.sbatch")])
SHELL_FILES = [*SCRIPTS, *sorted((ROOT / "benchmarks").glob("*.sh")), ROOT / ".ci/run"]
TASKS = ("secondary_structure", "contact_prediction", "remote_homology", "fluorescence", "stability")
TINY_MODEL = ("--num-layers", 2, "--hidden-size", 32, "--num-attention-heads", 2, "--seq-length", 128)
TINY_MODEL += (
    "--max-position-embeddings",
    128,
    "--ffn-hidden-size",
    64,
    "--micro-batch-size",
    2,
    "--global-batch-size",
    4,
)
TINY_RUN = ("--train-iters", 2, "--lr-decay-iters", 2, "--split", "90,10,0", "--eval-iters", 1, "--device", "cpu")


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_shellcheck(path):
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=ROOT / ".venv/bin")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_stops_at_the_first_failure_and_says_what_it_is(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert "set -euo pipefail" in lines


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_tells_its_usage(path, run_command):
    done = run_command("bash", path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:") and path.name in done.stderr


@pytest.fixture(scope="module")
def run_warm(run_command):
    return partial(run_command, warm=True)


@pytest.fixture(scope="module")
def shard(tmp_path_factory, tiny_fasta, run_warm) -> Path:
    """What scripts/preprocess_pfam.sh makes of the tiny FASTA."""
    prefix = tmp_path_factory.mktemp("shard") / "pfam"
    run_warm("bash", ROOT / "scripts/preprocess_pfam.sh", tiny_fasta, prefix)
    return Path(f"{prefix}_text_document")


@pytest.fixture(scope="module")
def model(tmp_path_factory, shard, run_warm) -> Path:
    """The model directory that scripts/{pretrain_single_gpu,convert}.sh make of the shard."""
    folder = tmp_path_factory.mktemp("model")
    pretrain = ROOT / "scripts/pretrain_single_gpu.sh"
    run_warm("bash", pretrain, shard, folder / "ckpt", *TINY_MODEL, *TINY_RUN)
    run_warm("bash", ROOT / "scripts/convert.sh", folder / "ckpt", folder / "tape")
    return folder / "tape"


@pytest.mark.slow
def test_preprocess_writes_a_shard(shard):
    assert shard.with_suffix(".bin").stat().st_size > 0
    assert shard.with_suffix(".idx").read_bytes()[:9] == b"MMIDIDX\0\0"


@pytest.mark.slow
def test_pretrain_and_convert_write_a_model(model):
    assert (model / "config.json").is_file()
    assert (model / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_finetune(task, model, tiny_tape_data, tmp_path, run_warm):
    script = ROOT / f"scripts/finetune_{task}.sh"
    run_warm("bash", script, model, tiny_tape_data, tmp_path / "run", "--max_steps", 2, "--head", "tape")
    assert list((tmp_path / "run").rglob(f"{task}-*.json")), "tape-eval wrote its numbers"


TABLE_ARMS = "pretrained", "onehot"
TABLE_PRESET = """
all: {recipe: none, holdout: 0.25, batch_size: 4, max_steps: 2, eval_steps: 2, learning_rate: 1.0e-3, head: tape}
stability: {seeds: [0, 1]}
"""


@pytest.mark.slow
def test_reproduce_table(model, tiny_tape_data, tmp_path, run_warm):
    """Two tasks, two arms, every split; a second call has nothing to do; a lost score comes back alone."""
    out, preset = tmp_path / "out", tmp_path / "preset.yaml"
    preset.write_text(TABLE_PRESET)
    words = ("bash", ROOT / "scripts/reproduce_table.sh", model, tiny_tape_data, out, "--preset", preset)
    words += ("--arms", *TABLE_ARMS, "--tasks", "stability", "contact_prediction", "--device", "cpu", "--jobs", 2)
    run_warm(*words, timeout=900)
    results = json.loads((out / "results.json").read_text())
    lines = 2 + 2 * 2  # splits of the two tasks; contacts in two separation bands
    assert len(results["rows"]) == 2 * lines and len(results["differences"]) == lines
    assert not results["not_run"]
    lost = out / "runs/onehot/stability/seed1/stability-test.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    again = run_warm(*words, timeout=900).stdout
    assert again.count("was done") == 5 and again.count("scored test") == 1 and "trained in" not in again
    after = json.loads(lost.read_text())
    assert {key: after[key] for key in ("metrics", "intervals", "checkpoint")} == {
        key: before[key] for key in ("metrics", "intervals", "checkpoint")
    }
    page = (out / "table.html").read_text()
    assert "<svg" in page and "src=" not in page and 'href="http' not in page.replace("xlink:href", "")
    refused = run_warm(*words, "--train_flags", "--weight_decay 0.5", check=False)
    assert refused.returncode == 2 and "trained by another command or" in refused.stdout


@pytest.mark.slow
def test_from_fasta_to_table(tiny_fasta, tiny_tape_data, tmp_path, run_warm):
    """The whole pipeline in one file, on its smallest case: a second call trains and converts nothing again, more
    iterations give another model with its own table."""
    config, preset, out = tmp_path / "config.yaml", tmp_path / "preset.yaml", tmp_path / "out"
    debug = (ROOT / "pretrain/configs/debug.yaml").read_text()
    debug = debug.replace("lr_decay_style: linear", "lr_decay_iters: 3")  # the same schedule for 2 and 3 iterations
    preset.write_text(TABLE_PRESET.splitlines()[1])
    words = ("env", f"CONFIG={config}", f"PRESET={preset}", "bash", ROOT / "scripts/from_fasta_to_table.sh", tiny_fasta)
    words += (tiny_tape_data, out, "--tasks", "stability", "--arms", "pretrained", "--device", "cpu")
    first, second = (out / f"iteration_{iterations}" for iterations in (2, 3))
    config.write_text(debug.replace("train_iters: 50", "train_iters: 2"))
    run_warm(*words)
    assert "stability" in (first / "table/table.md").read_text()
    weights, written = first / "model/model.safetensors", (first / "model/model.safetensors").stat().st_mtime_ns
    run_warm(*words)
    assert weights.stat().st_mtime_ns == written and not second.exists()
    assert (out / "ckpt/latest_checkpointed_iteration.txt").read_text().strip() == "2"
    config.write_text(debug.replace("train_iters: 50", "train_iters: 3"))
    done = run_warm(*words)
    assert f"done: {second}/table/table.html" in done.stdout
    assert "stability" in (second / "table/table.md").read_text()
    assert weights.stat().st_mtime_ns == written
    assert (second / "model/model.safetensors").read_bytes() != weights.read_bytes()


# A python that writes down what it is asked for and leaves the result that reproduce_prottrans.sh looks for.
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$ASKED"
if [[ "$*" == *"$FAILS"* ]]; then exit 3; fi
out=${*: -1}
while [ $# -gt 0 ]; do
    case $1 in --output) out=$2 ;; --heads) heads=.heads ;; probe | project | contacts | variants) verb=$1 ;; esac
    shift
done
case ${verb-} in
probe) mkdir -p "$out" && touch "$out/results.json" ;;
project | contacts) touch "$out${heads-}.json" ;;
variants) touch "${out%.csv}.json" ;;
*) touch "$out.csv" ;;
esac
"""


class Recorded:
    """reproduce_prottrans.sh with that python."""

    def __init__(self, folder: Path, run_command):
        self.folder, self.run_command = folder, run_command
        (folder / "bin").mkdir()
        (folder / "bin/python").write_text(STAND_IN)
        (folder / "bin/python").chmod(0o755)
        self.model, self.data, self.out = folder / "model", folder / "data", folder / "out"
        self.model.mkdir()
        (self.model / "weights").write_text("1")
        for name in ("tape/secondary_structure/x", "tape/proteinnet/proteinnet_train.lmdb", "scope/scope35.csv",
                     "tape/proteinnet/proteinnet_valid.lmdb", "tape/fluorescence/x", "deeploc/train.csv.gz",
                     "deeploc/valid.csv.gz", "variants/blat.fasta", "variants/blat.csv"):  # fmt: skip
            (self.data / name).parent.mkdir(parents=True, exist_ok=True)
            (self.data / name).touch()

    def __call__(self, *flags: str, fails: str = "nothing"):
        """(what it did, the commands that it gave)."""
        asked = self.folder / "asked"
        asked.write_text("")
        words = ["env", f"PATH={self.folder / 'bin'}:{os.environ['PATH']}", f"ASKED={asked}", f"FAILS={fails}", "bash"]
        words += [ROOT / "scripts/reproduce_prottrans.sh", self.model, self.data, self.out, *flags]
        done = self.run_command(*words, check=False)
        return done, asked.read_text().splitlines()


@pytest.fixture
def recorded(tmp_path, run_command):
    return Recorded(tmp_path, run_command)


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_reproduce_prottrans_gives_commands_that_the_verbs_take(recorded, preset):
    done, asked = recorded("--preset", preset, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert asked[-2].startswith("-m probe variants") and asked[-1] == f"-m probe.tables {recorded.out}"
    assert asked[-3] == f"-m probe.tables.fluorescence {recorded.data}/tape {recorded.out}/assays/gfp"
    commands = [line.removeprefix("-m probe ").split() for line in asked if line.startswith("-m probe ")]
    verbs = [verb for verb, *_ in commands]
    assert verbs == ["probe", "probe", "project", "project", "contacts", "contacts", "variants", "variants"]
    for verb, *words in commands:
        args = importlib.import_module(VERBS[verb][0]).build_parser().parse_args(words)
        assert args.device == "cpu" and args.output.startswith(str(recorded.out))
        assert getattr(args, "random_seed", 0) == 0 and not getattr(args, "no_random", False)
        fitted = verb == "probe" or "--fit" in words
        assert not fitted or args.seeds == ([0, 1, 2] if preset == "full" else [0])
        assert (getattr(args, "limit", None) is None) == (preset == "full" or not hasattr(args, "limit"))
    assert (recorded.out / "not_run.txt").read_text() == ""


def test_reproduce_prottrans_goes_on_where_it_stopped(recorded):
    done, asked = recorded(fails="project")
    assert done.returncode == 3 and asked[-1].startswith("-m probe.tables ")  # the page of what is done
    assert "scope_map: stopped with status 3" in done.stderr and [line.split()[2] for line in asked[:-1]] == [
        "probe", "probe", "project"]  # fmt: skip
    assert (recorded.out / "not_run.txt").read_text().startswith("scope_map: stopped with status 3")
    done, asked = recorded()
    assert done.returncode == 0 and done.stdout.count(": was done") == 2 and "project" in asked[0]
    assert (recorded.out / "not_run.txt").read_text() == ""
    (recorded.out / "variants/blat.json").unlink()
    done, asked = recorded()
    assert [line.split()[1] for line in asked] == ["probe", "probe.tables"] and "blat.fasta" in asked[0]
    done, asked = recorded("--preset", "quick")
    assert done.returncode == 2 and not asked
    assert "secondary_structure.txt: step secondary_structure was begun by another command or with" in done.stderr
    (recorded.model / "weights").write_text("2")
    done, asked = recorded()
    assert done.returncode == 2 and not asked and "with other weights; give another OUT" in done.stderr
    shutil.rmtree(recorded.out)
    done, asked = recorded(fails="fluorescence")
    assert done.returncode == 3 and "gfp: stopped with status 3" in done.stderr and "probe.tables " in asked[-1]


def test_reproduce_prottrans_of_a_model_by_name(recorded):
    shutil.rmtree(recorded.model)
    for done_before in (0, 8):
        done, asked = recorded()
        assert done.returncode == 0 and done.stdout.count(": was done") == done_before, done.stderr
        assert len(asked) == (10 if done_before == 0 else 1)


def test_reproduce_prottrans_says_what_is_not_there(recorded):
    shutil.rmtree(recorded.data)
    (recorded.data / "variants").mkdir(parents=True)
    (recorded.data / "variants/blat.fasta").touch()
    done, asked = recorded()
    assert done.returncode == 0 and asked == [f"-m probe.tables {recorded.out}"]
    lines = (recorded.out / "not_run.txt").read_text().splitlines()
    steps = [line.partition(": ")[0] for line in lines]
    assert set(steps) <= set(STEPS) and {STEPS[step] for step in steps} == set(SECTIONS)
    assert "deeploc: no deeploc/train.csv in DATA" in lines and "variants: no variants/blat.csv in DATA" in lines
    done, _ = recorded("--preset", "fast")
    assert done.returncode == 2 and done.stderr == "--preset 'fast': should be quick or full\n"


@pytest.fixture(scope="module")
def prottrans_data(tmp_path_factory, tiny_tape_data) -> Path:
    """DATA of reproduce_prottrans.sh, a few random proteins everywhere."""
    data, rng = tmp_path_factory.mktemp("prottrans"), np.random.default_rng(3)
    (data / "tape").mkdir()
    for name in ("secondary_structure", "proteinnet"):
        (data / "tape" / name).symlink_to(tiny_tape_data / name)
    proteins = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 30)) for _ in range(60)]
    wild = proteins[0]
    mutants = [(wild[:i] + "W" + wild[i + 1 :], i) for i in range(20) if wild[i] != "W"]
    records = [{"primary": text, "num_mutations": int(n != -1), "log_fluorescence": np.array([n], np.float32)}
               for text, n in [(wild, -1), *mutants]]  # fmt: skip
    write_lmdb(data / "tape/fluorescence/fluorescence_train.lmdb", records)
    for name in ("deeploc", "scope", "variants"):
        (data / name).mkdir()
    places = "Nucleus", "Cytoplasm", "Plastid"
    for name, own in (("train", proteins[:40]), ("valid", proteins[40:])):
        lines = [f"{name}{i},{text},{places[i % 3]},{'SM'[i % 2]}" for i, text in enumerate(own)]
        (data / f"deeploc/{name}.csv").write_text("\n".join(["id,sequence,location,membrane", *lines]) + "\n")
    lines = [f"d{i},{'ab'[i % 2]},{'Bacteria' if i % 3 else 'Eukaryota'},{text}" for i, text in enumerate(proteins)]
    (data / "scope/scope35.csv").write_text("\n".join(["id,class,domain,sequence", *lines]) + "\n")
    (data / "variants/p.fasta").write_text(f">p\n{wild}\n")
    lines = [f"{wild[i]}{i + 1}W,{i % 7}" for _, i in mutants]
    (data / "variants/p.csv").write_text("\n".join(["mutant,score", *lines]) + "\n")
    return data


@pytest.mark.slow
def test_reproduce_prottrans(recorded, prottrans_data, monkeypatch):
    """The commands of the script, each run for real in this process, with few draws and without pictures."""
    from toy_esm import esm_model

    from probe import themes
    from probe.contacts import scoring
    from probe.probes import scoring as probe_scoring
    from probe.projection import neighbors
    from tape.data import holdout

    esm_model().save_pretrained(recorded.model)
    recorded.data = prottrans_data
    done, asked = recorded("--preset", "quick", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(recorded.out)
    for module, name in ((scoring, "RESAMPLES"), (probe_scoring, "RESAMPLES"), (neighbors, "RESAMPLES")):
        monkeypatch.setattr(module, name, 20)
    for name in ("SHUFFLES", "SILHOUETTE_SHUFFLES"):
        monkeypatch.setattr(neighbors, name, 5)
    monkeypatch.setattr(themes, "THEMES", {})
    monkeypatch.setattr(holdout, "ROUNDS", 2)
    for _, module, *words in map(str.split, asked):
        name = module if module.endswith("fluorescence") else f"{module}.__main__"
        assert importlib.import_module(name).main(words) == 0
    results = json.loads((recorded.out / "prottrans.json").read_text())
    assert {row["section"] for row in results["rows"]} == set(SECTIONS)
    assert all(row["random"] for row in results["rows"]) and len(results["heads"]["pretrained"]) == 5
    assert {row["of"] for row in results["rows"] if row["section"] == "variants"} == {"p", "gfp"}
    assert "Not run" not in (recorded.out / "prottrans.md").read_text()


def test_every_script_is_run():
    """Here, in tests/test_download_data.py, or (those of several processes) in tests/seam/test_launchers.py."""
    names = {path.stem for path in SCRIPTS}
    launchers = {path.stem for path in SCRIPTS if path.name in (ROOT / "tests/seam/test_launchers.py").read_text()}
    assert launchers == {"pretrain_multinode", "pretrain_slurm", "pretrain_mpirun"}
    here = {"preprocess_pfam", "pretrain_single_gpu", "convert", "finetune", *(f"finetune_{task}" for task in TASKS)}
    here |= {"reproduce_table", "reproduce_prottrans", "from_fasta_to_table", "download_data"}
    assert names == here | launchers
