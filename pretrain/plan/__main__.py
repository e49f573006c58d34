"""`python -m pretrain.plan --config FILE [pretraining flags] --gpu H100 --gpus-per-node 8 --nodes 4 [--html FILE]`.

Every layout of the run on that cluster, with memory, traffic, time and cost; one of them is recommended, with the
command line that starts it. No GPU is needed.
"""

import shlex
import sys
from collections.abc import Sequence

from pretrain.config.flags import read_flags
from pretrain.config.read import parse_config
from pretrain.plan.cluster import make_cluster
from pretrain.plan.lengths import lengths_of_rows
from proteinlm.errors import ArgumentParser, InputError, run
from proteinlm.files import check_writable, write_json, write_text
from proteinlm.tokenizer import build_tokenizer

LARGEST_NODE = 4096  # GPUs
POSITIVE = ("gpus_per_node", "nodes", "gpu_memory", "bandwidth", "price_per_gpu_hour", "tokens", "rows")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m pretrain.plan",
        description="Layouts of a pretraining run on a cluster. Takes the flags of `python -m pretrain` besides.",
    )
    parser.add_argument("--gpu", default="H100", help="as in pretrain/gpus.py, or a device's own name (H100)")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="(8)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="1e9 bytes (the data sheet's)")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of the network, a GPU (the GPU's usual one)")
    parser.add_argument("--price-per-gpu-hour", type=float, metavar="X", help="to say what a run costs")
    parser.add_argument("--tokens", type=float, metavar="N", help="real tokens to train on (the whole run's)")
    parser.add_argument("--calibration", metavar="JSON", help="measured rates of this GPU (docs/formats.md)")
    parser.add_argument("--json", metavar="FILE", help="write the plan as JSON")
    parser.add_argument("--html", metavar="FILE", help="write it as a page: trade-off, hover, sortable table")
    parser.add_argument("--rows", type=int, default=12, metavar="N", help="layouts to print (12)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Plan, print, write."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, flags = build_parser().parse_known_args(words)
    for name in POSITIVE:
        if (value := getattr(own, name)) is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} {value} must be more than 0")
    if own.gpus_per_node > LARGEST_NODE:
        raise InputError(f"--gpus-per-node {own.gpus_per_node} must be at most {LARGEST_NODE}")
    source = read_flags(flags).config
    for path in filter(None, (own.json, own.html)):
        check_writable(path, *filter(None, (own.calibration, source)))
    cluster = make_cluster(
        own.gpu, own.gpus_per_node, own.nodes, own.gpu_memory, own.bandwidth, own.price_per_gpu_hour, own.calibration
    )
    config = parse_config(flags, required=())
    model = config.model_config(build_tokenizer(config.data.tokenizer_type, config.data.vocab_file))
    lengths = lengths_of_rows(config.data.seq_length, config.data.data_path)
    from pretrain.plan.page import to_html
    from pretrain.plan.report import as_text, make_plan, to_dict
    from pretrain.plan.search import Search

    t = config.training
    rows = t.train_samples or t.train_iters * t.global_batch_size
    tokens = own.tokens or rows * lengths.real_tokens
    candidates = Search(config, model, cluster, lengths).all()
    command = shlex.join(["python", "-m", "pretrain.plan", *words])
    try:
        plan = make_plan(command, config, model, cluster, lengths, tokens, candidates)
    except InputError as error:
        raise InputError(f"{source}: {error}" if source else str(error)) from None
    values = to_dict(plan, flags)
    if own.json:
        write_json(own.json, values)
    if own.html:
        write_text(own.html, to_html(values))
    print(as_text(plan, values, own.rows))


if __name__ == "__main__":
    sys.exit(run(main))
