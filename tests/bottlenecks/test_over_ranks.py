"""Two processes (gloo) share one codebook: usage, start and restarts are those of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from polytok.bottlenecks import MultiScaleVQ

WORKER = """
import sys
import torch
import torch.distributed as dist
from polytok.bottlenecks import MultiScaleVQ

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
given = torch.load(f"{folder}/given.pt", weights_only=True)
quantizer = MultiScaleVQ(**given["options"])
quantizer.load_state_dict(given["state"])
half = given["latents"].chunk(2)[rank]
quantizer.update(quantizer(half))
usage = quantizer.usage.clone()
quantizer.start(half, rng=torch.Generator().manual_seed(0))
started = quantizer.embedding.weight.detach().clone()
quantizer.load_state_dict(given["state"])
quantizer.restart_every = 1
quantizer.update(quantizer(half))
restarted = quantizer.embedding.weight.detach().clone()
torch.save([usage, started, restarted], f"{folder}/found{rank}.pt")
dist.destroy_process_group()
"""


@torch.no_grad()
def test_two_processes_share_usage_start_and_restarts(tmp_path: Path) -> None:
    options = {"codebook_size": 24, "codebook_dim": 4, "slots": (1, 4, 9), "resampler": "linear1d"}
    quantizer = MultiScaleVQ(**options)  # type: ignore[arg-type]
    quantizer.embedding.weight[20:] = 1e3  # dead
    state = {k: v.clone() for k, v in quantizer.state_dict().items()}
    latents = torch.randn(16, 9, 4)
    torch.save({"options": options, "state": state, "latents": latents}, tmp_path / "given.pt")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    found = [torch.load(tmp_path / f"found{rank}.pt", weights_only=True) for rank in range(2)]
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
    usage, started, restarted = found[0]

    out = quantizer(latents)
    quantizer.update(out)
    torch.testing.assert_close(usage, quantizer.usage)
    quantizer.start(latents, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(started, quantizer.embedding.weight, atol=1e-5, rtol=1e-5)

    moved = (restarted != state["embedding.weight"]).any(1)
    assert bool(moved[20:].all()) and not bool(moved.all())
    pool = torch.cat([v.flatten(0, 1) for v in out.stats["inputs"]])
    reach = (restarted[moved][:, None] - pool).abs().amax(-1).amin(1)
    assert float(reach.max()) < 1e-5
