"""The held-out loss of a run, shared out among its processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from vlp.config import ratio_for, ratios_of
from vlp.distributed import rank, sum_over_ranks, union_over_ranks, world_size
from vlp.interfaces import Batch
from vlp.training.module import TrainingModule


@torch.no_grad()
def held_out_losses(module: TrainingModule, batches: Iterable[Batch], by_source: bool = False) -> dict[str, float]:
    """Mean held-out loss of every objective, and `val_loss`, their mean by the groups' ratios; of each group what
    its objectives report, as `val/GROUP/NAME`. A group is measured on the sources that it is drawn for.

    by_source: the same numbers, but for `val_loss`, of each source by itself too, as `source/SOURCE/...`.

    Of an objective only the micro-batches count where it had something to predict, its loss being zero otherwise.
    """
    module.eval()
    preparation = module.preparation
    sums: dict[str, torch.Tensor] = {}
    device = module.device
    # sum and number of micro-batches
    zeros = torch.zeros(2, dtype=torch.float64, device=device)
    one = zeros.new_ones(())
    group_sums = zeros.repeat(len(module.groups), 1)
    for number, batch in enumerate(batches):
        if number % world_size() != rank():
            continue
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in str(module.trainer.precision)):
            for place, group in enumerate(module.groups):
                if not ratio_for(group.sampling_ratio, batch.source):
                    continue
                seed = (module.seed, "validation", number)
                prepared = preparation.of_group(batch, group, *seed).to(device)
                total, losses, report, _ = module.losses(prepared, *seed)
                group_sums[place] += torch.stack([total.double(), one])
                found = {
                    f"val_loss/{name}": torch.stack([value.double(), (value != 0).double()])
                    for name, value in losses.items()
                }
                for name, value in report.items():
                    found[f"val/{group.name}/{name}"] = torch.stack([value.double(), one])
                for key, value in found.items():
                    for name in [key, f"source/{batch.source}/{key}"] if by_source else [key]:
                        sums[name] = sums.get(name, zeros) + value
    module.train()
    # a process may have had no batch of a group, but all must add up the same numbers
    names = union_over_ranks({*sums})
    totals = sum_over_ranks(torch.cat([torch.stack([sums.get(name, zeros) for name in names]), group_sums]))
    means = (totals[:, 0] / totals[:, 1].clamp(min=1)).tolist()
    row = {name: means[n] for n, name in enumerate(names)}
    measured = (totals[len(names) :, 1] > 0).tolist()
    ratios = [seen * sum(ratios_of(g.sampling_ratio).values()) for seen, g in zip(measured, module.groups, strict=True)]
    row["val_loss"] = sum(r * m for r, m in zip(ratios, means[len(names) :], strict=True)) / sum(ratios)
    return row
