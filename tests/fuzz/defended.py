"""What may pass although something was damaged, and what may stay although a command failed: each with its reason.

A rule is patterns (regular expressions, searched for) of the surface, the command and the damage, and the reason.
Nothing is here because it is hard to mend: numbers that are no numbers never are (fuzz.verdict looks for them in what
was written, whatever a rule says), nor is a file that was cut, zeroed or exchanged where its format could tell.
"""

import re
from dataclasses import dataclass

NO_NUMBER = r"(?!.*(\bnan\b|\binf\b|not finite|1e400|Infinity))"  # of what follows
INSIDE = r"bytes (flip|overwrite|insert|block|truncate)"
NAMES = (
    "save|output|output_dir|output-prefix|json|html|png|embeddings_dir|log_dir|exp_name|time_or_name|id|ignore|target"
)
USED = "task|model_type|max_length|too_long|plugin|csv|head"  # of a run's flags, by who scores it


@dataclass(frozen=True)
class Rule:
    """reason: why what happens is right."""

    surface: str
    command: str
    damage: str
    reason: str

    def holds(self, surface: str, command: str, damage: str) -> bool:
        pairs = ((self.surface, surface), (self.command, command), (self.damage, damage))
        return all(re.search(pattern, text, re.DOTALL) for pattern, text in pairs)


PASSES = [
    Rule("", "", rf"^flags {NO_NUMBER}", "a flag's parser says what it may be; another value is another run"),
    Rule("", "", rf"^flags (--({NAMES})|word)\b", "any text is a name"),
    Rule("", "", r"^\S+ content \S*: twice$", "a key twice: the last one counts, as JSON and YAML readers have it"),
    Rule(
        *("", "", r"^\S+\.(fasta|txt|a3m) (content|bytes (?!whole))"),
        "FASTA and lists of residues have no frame to break: other bytes are other names and letters, and what is "
        "no residue is counted as [UNK]",
    ),
    Rule("", "", r"^\S+\.fasta\.gz content (inside|members)", "as of FASTA; gzip's members may follow each other"),
    Rule("", "", rf"^\S+\.(csv|tsv)(\.gz)? content {NO_NUMBER}", "a table of other cells is another table"),
    Rule(
        *("", "", r"^(table|values|residues|labels)\.(csv|tsv) content (cell|label) (0:\d+|\d+:[01]) "),
        "names and residues: nan is a name, and with inf a protein of three",
    ),
    Rule(
        "", "", rf"^\S+\.(csv|tsv) {INSIDE}", "a table has no checksum: other letters are other names, labels, residues"
    ),
    Rule(
        "", "", r"^\S+/spiece\.model bytes (flip|overwrite|insert|block)", "SentencePiece's file has no checksum either"
    ),
    Rule("", "", r"^\S+\.jsonl? bytes (flip|overwrite|insert|block)", "JSON of another value has no checksum"),
    Rule("", "", r"metrics\.jsonl bytes truncate", "a log that ends early, as a killed process leaves it"),
    Rule(
        *("", "", rf"^\S+\.yaml (content {NO_NUMBER}|{INSIDE})"),
        "another value that the option allows is another run; a YAML file that ends early is a shorter one",
    ),
    Rule(
        *("", "", rf"^\S+\.(safetensors|bin|pt|distcp) {INSIDE}"),
        "weights and tokens have no checksum: other finite numbers are other weights",
    ),
    Rule("", "", rf"^\S+ content (tensor )?\S+ ?tensor b?float\S+ {NO_NUMBER}", "finite weights of the right shape"),
    Rule("", "", rf"^\S+\.mdb (content record|{INSIDE}) {NO_NUMBER}", "other labels or residues of a protein"),
    Rule("", "", rf"^data_json/\S+ content /\d+/(stability_score|primary)\S*: {NO_NUMBER}", "other labels or residues"),
    Rule("", "", r"^data\S*\.mdb file other data\.mdb$", "the other split of the same data is whole data"),
    Rule(
        *("", "^tape-eval", rf"^run\S*/args\.json content /(args/(?!{USED})|(?!args\b))\w+\S*: {NO_NUMBER}"),
        "what a record says of the training is handed on, and nothing is computed with it",
    ),
    Rule(
        *("", "", rf"^(kept|frozen)/\S+ (content (array \S+ )?array float(16|32)|{INSIDE}) {NO_NUMBER}"),
        "kept embeddings have no checksum: other finite numbers of the right shape are others",
    ),
    Rule(
        *("", "^tape-embed .*--duplicates", r"^proteins\.fasta bytes whole itself twice$"),
        "the first of each is taken; the digest of the whole file is kept with the vectors",
    ),
    Rule("", "^tape-eval", r"args\.json content /args/output_dir: '", "any text is a name"),
    Rule("", "", r"^data\S*\.mdb content record \S+ /id: ", "any text or number is a protein's name"),
    Rule("", "", r"^dms\.csv content (cell|label) \d+:2", "a column that is not read is handed on"),
    Rule(
        *("", "^tape-embed", r"^table\.(csv|tsv) content (cell|label) \d+:[23]"),
        "ids and sequences are read; the digest of the whole file is kept with the vectors",
    ),
    Rule(
        "",
        "",
        r"config\.json content /(\S+/)?(layer_norm_eps(ilon)?|rope_theta|rotary_base|residual_scale|\w*dropout\w*"
        r"|num_attention_heads|initializer_(range|factor)): (\d[\d.e+-]*|True|False)$",
        "of what gives no tensor its shape, a value that the format allows is another network, or another training; a "
        "switch for a number, a number for a switch and one that no network has are refused",
    ),
    Rule("", "", r"config\.json content /\w+: (dropped|renamed .+)$", "a key that is absent has its format's default"),
    Rule(
        "", "^curves", r"metrics\.jsonl content line \d+ /\w+: (dropped|renamed .+)$", "logs older than a key lack it"
    ),
    Rule(
        "",
        "^reproduce",
        r"reproduce\.json content /(training/)?(recipe|\w+_commands?|\w+_minutes)\b",
        "a record that is shown as it stands",
    ),
    Rule(
        "",
        "",
        r"^(table|values|residues|labels|labelled)\.(csv|tsv|fasta)(\.gz)? file fifo$",
        "a pipe's table is called pipe in its run",
    ),
    Rule("", "^proteinlm project", r"^proteins\.fasta file fifo$", "a pipe is called pipe in the results"),
    Rule("", "", r"^\S+\.(pt|bin) content \S+: reordered$", "the order of names in a state dict says nothing"),
    Rule(
        "",
        "",
        r"^proteins\.(txt|jsonl) (bytes whole a line|content line \d+ /text)",
        "any text is letters of a protein",
    ),
    Rule("", "", r"metrics\.jsonl content line \d+ /\w+: -?\d[\d.e+-]*$", "a log of other numbers is another log"),
    Rule(
        "", "", r"^(table|values)\.(csv|tsv) content cell \d+:2 '(nan|)'$", "no label: the protein is left out, counted"
    ),
    Rule(
        *("", "", r"^(proteins\.(txt|jsonl)|labelled\.fasta|ckpt/metrics\.jsonl) bytes whole (itself twice|null)$"),
        "what comes twice is there twice; null is four letters",
    ),
    Rule(
        *("^fasta$", "^preprocess", r"^proteins\.fasta bytes whole itself twice$"),
        "a corpus may hold a protein any number of times, under any name: they are counted, and no name is kept",
    ),
    Rule("", "", r"^table\.(csv|tsv)(\.gz)? content (cell|label) \d+:2 ", "a class may have any name"),
    Rule("", "^tape-eval", r"^run\S*/\S+-\S+\.json ", "tape-eval writes its result anew, and reads none"),
    Rule(
        "", "^reproduce", r"^table/runs/\S+-\S+\.json content /training/recipe/", "a recipe is handed on as it stands"
    ),
    Rule("", "^curves", r"metrics\.jsonl content line \d+ /dataset: '", "a set has the name that its log gives it"),
    Rule("", "^tape-table", r"^run\S*/\S+-\S+\.json content /split: '", "a result's own word for its split is shown"),
    Rule(
        *("", "", r"\.safetensors content header \S+: (as list|reordered)$"),
        "the header in another notation, or the shape of a tensor that is not read; the file's sha256 is recorded",
    ),
    Rule("", "", r"\.safetensors content rename bert\.(\S+) to \1$", "TAPE's encoder alone has names without bert."),
    Rule(
        "",
        "^prottrans",
        rf"^prottrans/\S+\.json content /\S+: {NO_NUMBER}(?!dropped|renamed|as |gets |twice)",
        "a number, a name or null where the verb may write one is another result; another kind is refused by its shape",
    ),
    Rule(
        "",
        "^prottrans",
        r"^prottrans/\S+\.json content /(arms|metrics|columns|columns/\w+|settings/splits)/\w+: dropped$",
        "a column or an arm that is not there was not asked for; one whose name is no arm's is refused",
    ),
    Rule(
        "",
        "^prottrans",
        r"^prottrans/\S+\.json content /(columns|settings/splits)/\w+: renamed",
        "columns and splits have the names of the user's table",
    ),
    Rule("", "^prottrans", r"^prottrans/\S+ file missing$", "a page of the steps that are there"),
    Rule("", "", r"^data_json/\S+ content /\d+: (dropped|repeated)$", "a record fewer or more"),
    Rule(
        *("", "^(tape-table|tape-eval)", r"^run\S*/\S+-\S+\.json content /intervals?\b\S*: (dropped|reordered)$"),
        "results older than intervals lack them; the order of keys says nothing",
    ),
    Rule("", "^converter", r"contact-regression\.pt file missing$", "an ESM checkpoint without its contact regression"),
    Rule("", "", r"args\.json file missing$", "a model directory without a run's record is TAPE's own form"),
    Rule(
        *("", "^tape-train", r"^model/config\.json content /(\w*_size|num_\w+|final_layernorm): (\d+|True|False)$"),
        "the shape of an encoder that starts from random weights; the run's first line has its parameters",
    ),
    Rule(
        "^plugin$", "", r"^\S+\.py (content|bytes)", "the plugin's own code: what it gives in the right form is taken"
    ),
]
LEFT = [
    Rule("", "^reproduce .*--report_only", r"/(results\.json|table\.(md|html))$", "a page of the runs that are there"),
    Rule("", "", r"^new \S+\.failed\.tsv$", "the list of what failed and why, which the message names"),
    Rule(
        *("", "^(tape-train|tune)", r"^new \S+/(metrics\.jsonl|args\.json|last/\S+|model\.safetensors|config\.json)$"),
        "a run that has taken steps goes on from there with the same line and --resume",
    ),
    Rule(
        *("", "", r"^new \S+/(\S+\.h5|\S+\.npy|(clusters|map)\S+\.npz|heads/\S+\.(npz|pt))$"),
        "whole files of embeddings, maps and fitted heads, which the next run finds",
    ),
    Rule("", "^tune", r"^new \S+/trials/[^/\s]+\.txt$", "what a trial that took its steps printed, beside its run"),
    Rule("", "", r"^new \S+\.parts/\S+", "whole parts of a long work; the next run goes on from them"),
    Rule(
        "", "pretrain", r"^new \S+/(metrics\.jsonl|iter_\S+|exit_reason\.json|latest_\S+)$", "checkpoints of steps done"
    ),
]


def reason(rules: list[Rule], surface: str, command: str, damage: str) -> str:
    """The reason of the first rule that holds, or ""."""
    return next((rule.reason for rule in rules if rule.holds(surface, command, damage)), "")
