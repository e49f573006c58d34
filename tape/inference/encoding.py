"""Proteins to embeddings with the trunk of any model type, a batch at a time; proteinlm.encoder does the transformer's.

    encoder = TrunkEncoder(model, layer=-1, device=torch.device("cpu"), precision=torch.float32)
    vectors = encoder.embed(["MKV", "MKVLA"], ("pooled", "avg", "mean"))     # {"pooled": [2, h], ...}

OUTPUTS: `pooled` the model's pooled output (for the transformer the first token's state); `avg` the mean over all
tokens, <cls> and <sep> included, as TAPE's; `mean` the mean over residues alone; `seq` the state of every token, <cls>
and <sep> included, as TAPE's. Layers: 0 the embedding, N the state after layer N, -1 (the same as the last N) after the
final LayerNorm too; `pooled` of another layer is its first token's state.

What must hold: a protein's embedding does not depend on its companions (1e-5 in fp32). The transformer runs on the flat
stream of tokens, without padding and only as deep as `layer` asks; other models get padded batches and a mask.

Legend: B proteins, T tokens of a batch (residues + 2 each), N tokens of the longest, h hidden size.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from proteinlm.encoder import POOLINGS, Encoder, Stream, computing, layer_number, make_stream, to_device, token_batches
from proteinlm.errors import InputError
from proteinlm.progress import Progress
from proteinlm.tokenizer import build_tokenizer
from tape.inference.fasta import Protein
from tape.inference.parts import split_rows
from tape.models.modeling_bert import ProteinBertModel
from tape.models.modeling_huggingface import HuggingFaceModel

TOKENIZER = build_tokenizer("tape")
OUTPUTS = ("pooled", "avg", "mean", "seq")


def pad(stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids int64 [B, N], 0 at padding; input_mask bool [B, N])."""
    mask = np.arange(stream.sizes.max()) < stream.sizes[:, None]
    ids = np.full(mask.shape, TOKENIZER.pad_id, np.int64)
    ids[mask] = stream.tokens
    return ids, mask


class TrunkEncoder:
    """A trunk on a device. precision: float32, or the dtype of autocast."""

    def __init__(self, model: nn.Module, layer: int, device: torch.device, precision: torch.dtype):
        self.model = model.to(device).eval()
        self.device, self.precision = device, precision
        self.flat = isinstance(model, ProteinBertModel | HuggingFaceModel)
        self.depth, self.last, self.padded = -1, True, True
        if self.flat:
            self.encoder = Encoder(model.encoder, TOKENIZER, device, precision, type(model).__name__)
            self.padded = self.encoder.padded
            self._set_depth(layer, self.encoder.config.num_layers)
        elif layer != -1:
            self._choose(layer)

    def _set_depth(self, layer: int, depth: int) -> None:
        self.depth = layer_number(layer, depth, "--layer")
        self.last = self.depth == depth

    def _choose(self, layer: int) -> None:
        """Have the model return all its layers' states; InputError if it cannot."""
        config = self.model.config
        depth = getattr(config, "num_hidden_layers", None)
        config.output_hidden_states = True
        outputs = self._outputs(make_stream(["A"], TOKENIZER))
        if depth is None or len(outputs) < 3 or len(outputs[2]) != depth + 1:
            config.output_hidden_states = False
            raise InputError(f"--layer {layer}: {type(self.model).__name__} gives only its last layer (-1)")
        self._set_depth(layer, depth)

    @property
    def widths(self) -> dict[str, int]:
        """Numbers of each output's vectors (`pooled` may be wider than the rest); found by embedding one residue."""
        return {name: value.shape[-1] for name, value in self.embed(["A"], OUTPUTS).items()}

    def embed(self, proteins: Sequence[str], outputs: Sequence[str]) -> dict[str, Tensor]:
        """fp32 on the device: `pooled`, `avg`, `mean` [B, h] and `seq` [T, h], the proteins one after the other."""
        stream = make_stream(proteins, TOKENIZER)
        states, pooled = self._flat_states(stream) if self.flat else self._padded_states(stream)
        values = {"pooled": pooled, "seq": states}
        return {name: values[name] if name in values else POOLINGS[name](states, stream) for name in outputs}

    def _flat_states(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """(states [T, h], pooled [B, h])."""
        states = self.encoder.states(stream, self.depth)
        pooling = "mean" if self.last and self.model.config.pooling == "mean" else "cls"
        return states, POOLINGS[pooling](states, stream)

    def _padded_states(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """(states [T, h], pooled [B, p])."""
        outputs = self._outputs(stream)
        padded = outputs[0] if self.depth == -1 else outputs[2][self.depth]
        states = padded.flatten(0, 1)[to_device(np.flatnonzero(pad(stream)[1]), self.device)].float()
        return states, outputs[1].float() if self.last else POOLINGS["cls"](states, stream)

    def _outputs(self, stream: Stream) -> tuple:
        with computing(self.device, self.precision, f"{len(stream.sizes)} proteins, {len(stream.tokens)} tokens"):
            return self.model(*(to_device(array, self.device) for array in pad(stream)))

    def embed_part(
        self, proteins: Sequence[Protein], outputs: Sequence[str], args: argparse.Namespace, progress: Progress
    ) -> dict[str, np.ndarray]:
        """Rows of each output, in input order: one a protein, of `seq` one a token. args: tape-embed's."""
        lengths = np.array([len(protein.residues) for protein in proteins], np.int32)
        batches = []
        for batch in token_batches(lengths, args.tokens_per_batch, args.batch_size, padded=self.padded):
            batches.append((batch, self.embed([proteins[i].residues for i in batch], outputs)))
            progress.add(len(batch), int(lengths[batch].sum()))
        rows, arrays = list(split_rows(lengths)), {}
        for name in outputs:
            height = rows[-1].stop if name == "seq" else len(proteins)
            width = batches[0][1][name].shape[1]
            arrays[name] = np.empty((height, width), np.float16 if args.save_fp16 else np.float32)
            for batch, tensors in batches:
                values = tensors.pop(name).cpu().numpy()
                if name == "seq":
                    for i, tokens in zip(batch, split_rows(lengths[batch]), strict=True):
                        arrays[name][rows[i]] = values[tokens]
                else:
                    arrays[name][batch] = values
            if args.save_fp16 and not np.isfinite(arrays[name]).all():
                raise InputError(f"--save_fp16: {name} holds numbers beyond float16's 65504; write float32")
        return arrays
