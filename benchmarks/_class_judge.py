"""A convolutional classifier of small pictures that judges samples by their class.

    python benchmarks/_class_judge.py --train cifar10-train.zip --test cifar10-test.zip --out judge

It is built and trained unlike the classifiers and tokenizers of the package, and no loss uses it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _image_judges import accuracy, keep
from polytok.core.seeding import torch_rng
from polytok.data.images import EpochOrder, LabelledImages, read_labelled

SIZE = 32
FILTERS = 12  # of the whitening, each with its negative
WIDTHS = (32, 96, 128)
BATCH = 256
LR, DECAY, WARM_SHARE = 4e-3, 0.02, 0.15
SMOOTHING, SHIFT = 0.1, 2
SEED = 9001  # no training of the repository uses it


class ClassJudge(nn.Module):
    """Images (B, 3, 32, 32) in [0, 1] -> class scores (B, n).

    Whitened patches of 2 x 2 pixels, then three stages that halve the sides before their second
    convolution; features are what the last stage's greatest values over the image are.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 2 * FILTERS, 2)
        self.whiten.requires_grad_(False)
        wide = (2 * FILTERS, *WIDTHS)
        self.stages = nn.Sequential(
            *(_stage(a, b) for a, b in zip(wide, WIDTHS, strict=False)), nn.AdaptiveMaxPool2d(1)
        )
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    @torch.no_grad()
    def whiten_by(self, images: Tensor) -> None:
        """Take the whitening of patches from images (n, 3, H, W)."""
        patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T.cov())
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(FILTERS, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        assert self.whiten.bias is not None
        self.whiten.bias.copy_(-(self.whiten.weight * images.mean()).sum((1, 2, 3)))

    def look(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, d), and class scores."""
        x = F.gelu(self.whiten(image.contiguous(memory_format=torch.channels_last)))
        features = self.stages(x).flatten(1)
        return features, self.head(features)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores."""
        return self.look(image)[1]


def _stage(width: int, wider: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, wider, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(wider),
        nn.GELU(),
        nn.Conv2d(wider, wider, 3, padding=1, bias=False),
        nn.BatchNorm2d(wider),
        nn.GELU(),
    )


def train(images: LabelledImages, *, epochs: int) -> ClassJudge:
    """A judge of labelled images: shifts, mirrors, one rise and fall of the step size."""
    torch.manual_seed(SEED)
    judge = ClassJudge(len(images.classes)).to(memory_format=torch.channels_last)
    judge.whiten_by(images.images(torch.arange(0, len(images), max(1, len(images) // 2000))))
    moved = [p for p in judge.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moved, LR, betas=(0.9, 0.98), weight_decay=DECAY)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=steps, pct_start=WARM_SHARE, cycle_momentum=False
    )
    order, rng, start = EpochOrder(len(images), SEED), torch_rng(SEED, "moves"), time.time()
    for step in range(steps):
        picks = torch.tensor([order(step * BATCH + i) for i in range(BATCH)])
        scores = judge(moved_images(images.images(picks), rng))
        loss = F.cross_entropy(scores, images.labels[picks], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            rate = (step + 1) * BATCH / (time.time() - start)
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}, {rate:.0f}/s", flush=True)
    return judge.eval().requires_grad_(False)


def moved_images(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each shifted by up to :data:`SHIFT` pixels, half of them mirrored."""
    padded = F.pad(images, [SHIFT] * 4, mode="reflect")
    out = torch.empty_like(images)
    moves = torch.randint(0, 2 * SHIFT + 1, (len(images), 2), generator=rng)
    turned = torch.rand(len(images), generator=rng) < 0.5
    height, width = images.shape[-2:]
    for top, left in moves.unique(dim=0).tolist():
        some = (moves == torch.tensor([top, left])).all(1)
        out[some] = padded[some, :, top : top + height, left : left + width]
    return torch.where(turned[:, None, None, None], out.flip(-1), out)


def main(argv: Sequence[str] | None = None) -> None:
    """Train a judge and say what it gets right of unseen pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", required=True, help="labelled pictures, class/name.jpg")
    parser.add_argument("--test", required=True, help="other labelled pictures")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True, help="file of the judge")
    args = parser.parse_args(argv)
    images = read_labelled(args.train, SIZE)
    judge = train(images, epochs=args.epochs)
    told = {
        "classes": images.classes,
        "seed": SEED,
        "images": len(images),
        "epochs": args.epochs,
        "accuracy": accuracy(judge, read_labelled(args.test, SIZE)),
    }
    keep(judge, told, args.out)
    print(told)


if __name__ == "__main__":
    main()
