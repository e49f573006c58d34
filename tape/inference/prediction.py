"""What tape-predict does once its flags are read: the run's model, its predictions window by window, their file.

What must hold: results are in input order and do not depend on how proteins are batched (1e-5); memory is one window of
proteins whatever the size of the input; every protein is in the output or counted in the last line.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from proteinlm.devices import choose_device
from proteinlm.encoder import Stream, computing, default_batch_tokens, make_stream, to_device, token_batches
from proteinlm.errors import InputError
from proteinlm.files import reread
from proteinlm.model_dir.find import fair_esm_file, read_config
from proteinlm.progress import Progress
from proteinlm.tables import is_fasta, is_table, read_table
from tape.data.examples import summary
from tape.data.lengths import residue_limit
from tape.data.users_code import calling, refuse
from tape.inference.encoding import TOKENIZER, pad
from tape.inference.fasta import Protein, Rules, read_windows, scan_fasta
from tape.inference.own_reports import own_report
from tape.inference.parts import plan_parts
from tape.inference.predictors import REPORTS, Report, kind_of_logits, open_maps, open_table
from tape.inference.windows import Parts, in_windows, mean_over_windows, spans
from tape.own_data.data import DATA_JSON, OwnData
from tape.registry import TASK_KINDS, own_data_task, resolve_task
from tape.runs.plugins import plugins_of
from tape.runs.processes import choose_precision
from tape.runs.results import read_run
from tape.tasks.base import logits_of
from tape.tasks.own_data import KINDS

WINDOW = 1024  # proteins; sorted by length within

MAP_WINDOW = 16  # whose maps are in memory together


class Predictor:
    """A finetuned model on a device; `kind` is a key of tape.inference.predictors.REPORTS, `report` what it writes."""

    def __init__(
        self,
        model: torch.nn.Module,
        kind: str | None,
        device: torch.device,
        precision: torch.dtype,
        report: Report | None = None,
    ):
        self.model, self.device, self.precision = model.to(device).eval(), device, precision
        self.window: int | None = None  # residues, beyond which a protein is read in windows
        one_residue = self.logits(make_stream(["A"], TOKENIZER))
        self.kind = kind or kind_of_logits(one_residue)
        if self.kind is None:
            forms = "[B, 1], [B, C], [B, N, C] or [B, N, N, 2]"
            refuse(model, f"forward should return logits {forms}; of one residue they are {summary(one_residue)}")
        self.labels = one_residue.shape[-1]
        self.report = report or REPORTS[self.kind]

    def logits(self, stream: Stream) -> Tensor:
        """fp32 on the CPU, [B, ...], of a padded batch."""
        ids, mask = (to_device(array, self.device) for array in pad(stream))
        with calling(self.model, "forward"), computing(self.device, self.precision, f"{list(ids.shape)} tokens"):
            batch = {"input_ids": ids, "input_mask": mask}
            return logits_of(self.model, batch, self.model(**batch)).float().cpu()

    @property
    def reads_windows(self) -> bool:
        """Whether the head is apart from the encoder, and reads nothing else."""
        return hasattr(self.model, "head_logits") and getattr(self.model.config, "head", None) != "attention"

    def windowed_logits(self, residues: str, width: int, tokens_per_batch: int) -> Tensor:
        """`logits` [...] of one protein whose residues' vectors are the means over windows; the head reads those."""

        def compute(pieces: list[str]) -> Parts:
            ids, mask = (to_device(array, self.device) for array in pad(make_stream(pieces, TOKENIZER)))
            with computing(self.device, self.precision, f"{list(ids.shape)} tokens"):
                hidden, pooled, *_ = self.model.base_model(ids, mask)
            return [hidden[mask].float()], [pooled.float()]

        (hidden,), (pooled,) = in_windows(compute, [residues], width, tokens_per_batch)
        if getattr(self.model.config, "pooling", None) == "mean":
            pooled = hidden[1:-1].mean(0, keepdim=True)
        states = pooled if self.kind in ("value", "classification") else hidden[None]
        mask = torch.ones(1, len(hidden), dtype=torch.bool, device=self.device)
        with computing(self.device, self.precision, f"{len(hidden)} tokens"):
            return self.model.head_logits(states, mask)[0].float().cpu()

    def masked_logits(self, residues: str, width: int | None, tokens_per_batch: int) -> Tensor:
        """[L, vocabulary]: of each residue, when it alone is hidden; the mean over windows of a longer protein."""
        if width is not None and len(residues) > width:
            where = spans(len(residues), width)
            parts = [self.masked_logits(residues[begin:end], None, tokens_per_batch) for begin, end in where]
            return mean_over_windows(parts, where, len(residues))
        one = make_stream([residues], TOKENIZER)
        rows, results = max(1, tokens_per_batch // len(one.tokens)), []
        for begin in range(1, len(residues) + 1, rows):
            hidden = np.arange(begin, min(begin + rows, len(residues) + 1))
            tokens = np.repeat(one.tokens[None], len(hidden), 0)
            tokens[np.arange(len(hidden)), hidden] = TOKENIZER.mask_id
            logits = self.logits(Stream(tokens.ravel(), np.repeat(one.sizes, len(hidden))))
            results.append(logits[torch.arange(len(hidden)), torch.from_numpy(hidden)])
        return torch.cat(results)

    def predict(self, proteins: Sequence[Protein], args: argparse.Namespace) -> list:
        """One result a protein (tape.inference.predictors), for proteins that fit one batch."""
        residues, width = [protein.residues for protein in proteins], self.window
        if self.kind == "masked_language_modeling" and args.masked:
            logits = [self.masked_logits(one, width, args.tokens_per_batch) for one in residues]
        else:
            fits = [i for i, one in enumerate(residues) if width is None or len(one) <= width]
            rows = self.logits(make_stream([residues[i] for i in fits], TOKENIZER)) if fits else ()
            direct = dict(zip(fits, rows, strict=True))
            logits = [
                direct[i] if i in direct else self.windowed_logits(one, width, args.tokens_per_batch)
                for i, one in enumerate(residues)
            ]
            if self.kind == "masked_language_modeling":
                logits = [row[1 : len(p.residues) + 1] for row, p in zip(logits, proteins, strict=True)]
        with calling(self.model, "forward"):  # of another shape for several proteins than for one
            return [self.report.result(row, protein, args.top_k) for row, protein in zip(logits, proteins, strict=True)]


def load_predictor(args: argparse.Namespace) -> tuple[str, Predictor, dict]:
    """(task's name, Predictor, the run's flags)."""
    directory = Path(args.run_dir)
    run = read_run(directory)
    flags, config = run.get("args", {}), {} if fair_esm_file(directory) else read_config(directory)
    own = OwnData.load(directory, proteins=False) if (directory / DATA_JSON).exists() else None
    args.data_file = reread(args.data_file)  # a pipe's columns are looked at before its proteins are
    if own and is_table(args.data_file) and not is_fasta(args.data_file):
        own.columns.as_before(args, read_table(args.data_file).columns)
    name = own.name if own else args.task or flags.get("task") or config.get("finetuning_task")
    if name is None:
        raise InputError(f"{directory}/config.json: finetuning_task is empty and there is no args.json; give --task")
    made_for = config.get("finetuning_task") or flags.get("task")
    if made_for not in (None, name):
        raise InputError(f"--task {name}: {directory} was finetuned on {made_for}")
    model_type = args.model_type or flags.get("model_type") or config.get("base_model") or "transformer"
    with plugins_of(run, args.plugin):
        task = own_data_task(own, model_type) if own else resolve_task(name, model_type)
    kind = KINDS[own.kind] if own else TASK_KINDS.get(name)
    if kind is not None and kind not in REPORTS:
        raise InputError(f"task {name}: has no predictions to write; tape-embed gives embeddings")
    if args.masked and kind != "masked_language_modeling":
        raise InputError(f"--masked: is for masked_language_modeling, {directory} is a {name} model")
    model = task.model.from_pretrained(directory, require_head=True, num_labels=task.num_labels)
    device = choose_device(args.device)
    args.tokens_per_batch = args.tokens_per_batch or default_batch_tokens(device)
    precision = choose_precision(args.fp16, args.bf16, device)
    return name, Predictor(model, kind, device, precision, own_report(own) if own else None), flags


def check_output(args: argparse.Namespace, name: str, kind: str) -> None:
    """OUT's suffix must fit the task: a wrong one is a mistake that shows only later."""
    output = Path(args.out_file)
    suffixes = (".npz",) if kind == "contacts" else (".tsv", ".csv", ".txt")
    if output.suffix not in suffixes:
        forms = " or ".join(suffixes[:2])
        raise InputError(f"{output}: {name} is written as {forms}, so OUT should end in {forms}")
    if args.png and kind != "contacts":
        raise InputError(f"--png: draws contact maps, {args.run_dir} is a {name} model")
    if kind == "contacts" and args.duplicates == "keep":
        raise InputError("--duplicates keep: the names are the keys of an .npz file; give error or first")


def run(args: argparse.Namespace) -> None:
    """The whole command."""
    name, predictor, flags = load_predictor(args)
    check_output(args, name, predictor.kind)
    limit = residue_limit(predictor.model.config, args.max_length or flags.get("max_length"))
    scan = scan_fasta(args.data_file, Rules(limit, args.too_long, args.duplicates, args.sequence, args.id))
    if scan.counts.get("windowed"):
        if not predictor.reads_windows:
            raise InputError(f"--too_long window: {args.run_dir} has no head that reads vectors alone; crop or skip")
        predictor.window = limit
    output = Path(args.out_file)
    maps = predictor.kind == "contacts"
    pictures = output.with_name(output.stem + "_png") if maps and args.png is not False else None
    opened = open_maps(output, pictures) if maps else open_table(output, predictor.report, predictor.labels)
    bounds = plan_parts(scan.selected_lengths, MAP_WINDOW if maps else WINDOW, 0)
    cap = 1 if maps else args.batch_size  # a map is work enough, and its padding would be squared
    with opened as write, Progress("proteins", len(scan), seconds=args.log_interval) as progress:
        for _, proteins in read_windows(scan, bounds, range(len(bounds) - 1)):
            results: list = [None] * len(proteins)
            lengths = np.array([len(protein.residues) for protein in proteins])
            for batch in token_batches(lengths, args.tokens_per_batch, cap, padded=True):
                for i, result in zip(batch, predictor.predict([proteins[i] for i in batch], args), strict=True):
                    results[i] = result
                progress.add(len(batch), int(lengths[batch].sum()))
            for protein, result in zip(proteins, results, strict=True):
                write(protein, result)
    seconds = time.monotonic() - progress.started
    print(f"wrote {output}: {name} of {len(scan):,} proteins{scan.summary()} in {seconds:,.1f} s", flush=True)
