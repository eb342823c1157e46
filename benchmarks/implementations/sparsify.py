"""EleutherAI/sparsify: its TopK sparse coder, k = L0.

Its trainer has no update to call: one step is a part of `Trainer.fit`, which runs a language model
(its hook from `set_decoder_norm_to_unit_norm` on, then what follows `substep == 0`). That part is
restated here from sparsify's own functions, with its defaults (loss "fvu", no AuxK, no Multi-TopK)
but for the optimizer: its "adam" without bitsandbytes, since the others use Adam.
"""

from __future__ import annotations

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from benchmarks.implementations import Coding, Implementation, Training
from benchmarks.workload import LEARNING_RATE, Workload


class _Trainer:
    def __init__(self, coder: SparseCoder, batch: Tensor) -> None:
        self.coder, self.batch = coder, batch
        self.optimizer = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE)
        self.did_fire = torch.zeros(coder.num_latents, device=batch.device, dtype=torch.bool)
        self.tokens_since_fired = torch.zeros_like(self.did_fire, dtype=torch.long)

    def loss(self) -> Tensor:
        self.coder.set_decoder_norm_to_unit_norm()
        total_variance = (self.batch - self.batch.mean(0)).pow(2).sum()
        out = self.coder(x=self.batch, y=self.batch, dead_mask=None, total_variance=total_variance)
        self.did_fire[out.latent_indices.flatten()] = True
        loss: Tensor = out.fvu + 0.0 * out.auxk_loss + out.multi_topk_fvu / 8
        return loss

    def optimize(self) -> None:
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def count_fired(self) -> None:
        self.tokens_since_fired += len(self.batch)
        self.tokens_since_fired[self.did_fire] = 0
        self.did_fire.zero_()

    def update(self) -> None:
        self.loss().backward()
        self.optimize()
        self.count_fired()


def build(_name: str, workload: Workload) -> Implementation:
    """The coder with the workload's weights."""
    case, batch = workload.case, workload.x_BN
    config = SparseCoderConfig(num_latents=case.d_sae, k=case.l0)
    coder = SparseCoder(case.d_in, config, case.device, torch.float32)
    with torch.no_grad():
        coder.encoder.weight.copy_(workload.W_dec_MN)
        coder.W_dec.copy_(workload.W_dec_MN)
    trainer = _Trainer(coder, batch)
    return Implementation(
        coding=Coding(
            lambda: coder.encode(batch),
            lambda encoded: coder.decode(encoded.top_acts, encoded.top_indices),
            lambda encoded: encoded.top_acts,
        ),
        training=Training(
            coder,
            trainer.optimizer,
            trainer.update,
            trainer.loss,
            Tensor.backward,
            trainer.optimize,
        ),
    )
