"""The hypernetwork: rows are read by themselves, padding is not read, scalers fit, losses teach."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polytok.core.config import override
from polytok.core.errors import ConfigError
from polytok.systems.text.zett import Embeddings, Hypernet, HypernetConfig, preset
from polytok.systems.text.zett.losses import identity_loss, language_loss, lexical_loss

CONFIG = HypernetConfig(
    vocab_size=50,
    num_extra=4,
    pad_id=54,
    embed_dim=12,
    is_tied=False,
    has_bias=True,
    dim=32,
    inner_dim=48,
    num_heads=2,
    num_positions=16,
)


def surfaces(count: int = 60, length: int = 7) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, length + 1, (count, 1), generator=rng)
    ids = torch.randint(54, (count, length), generator=rng)
    return ids.where(torch.arange(length) < lengths, CONFIG.pad_id)


def source(config: HypernetConfig = CONFIG) -> Tensor:
    rng = torch.Generator().manual_seed(2)
    rows = torch.randn(config.vocab_size, config.source_dim, generator=rng)
    return (rows * torch.linspace(0.1, 2, config.source_dim) + 0.3).double()


@pytest.fixture
def network() -> Hypernet:
    # In fp64, as the scalers enlarge what rounding differs in.
    made = Hypernet(CONFIG)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made.double().calibrate(torch.arange(50), source())
    return made.eval()


def assert_close(left: Embeddings, right: Embeddings, atol: float = 1e-5) -> None:
    for name in ("input", "output", "bias"):
        a, b = getattr(left, name), getattr(right, name)
        assert a is not None and b is not None
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def taken(found: Embeddings, rows: Tensor) -> Embeddings:
    assert found.output is not None and found.bias is not None
    return Embeddings(found.input[rows], found.output[rows], found.bias[rows])


@torch.no_grad()
def test_rows_are_independent(network: Hypernet) -> None:
    ids = surfaces()
    every = network(ids, source())
    order = torch.randperm(len(ids))
    assert_close(network(ids[order], source()), taken(every, order))
    for row in (0, 7, 59):
        assert_close(network(ids[row : row + 1], source()), taken(every, torch.tensor([row])))


@torch.no_grad()
def test_padding_is_not_read(network: Hypernet) -> None:
    ids = surfaces()
    longer = torch.nn.functional.pad(ids, (0, 9), value=CONFIG.pad_id)
    assert_close(network(longer, source()), network(ids, source()))
    assert_close(network.by_length(ids, source()), network(ids, source()))


@torch.no_grad()
def test_order_and_every_piece_matter(network: Hypernet) -> None:
    ids = torch.tensor([[3, 4, 5], [5, 4, 3], [3, 4, 6], [3, 4, 51], [3, 4, 52]])
    found = network(ids, source()).input
    distances = torch.cdist(found, found) + torch.eye(5)
    assert float(distances.min()) > 1e-4


@torch.no_grad()
def test_a_row_of_padding_is_finite(network: Hypernet) -> None:
    found = network(torch.full((1, 7), CONFIG.pad_id), source())
    assert bool(found.joined.isfinite().all())


@torch.no_grad()
def test_scalers_give_anchors_the_statistics_of_the_truth(network: Hypernet) -> None:
    ids, truth = torch.arange(50), source()
    scaled = network.in_scaler(truth)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(24).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.full((24,), 0.02).double(), atol=1e-4, rtol=0)
    found = network(ids[:, None], truth).joined
    torch.testing.assert_close(found.mean(0), truth.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std(0), truth.std(0), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_language_changes_rows_and_must_be_known() -> None:
    torch.manual_seed(0)
    network = Hypernet(override(CONFIG, num_languages=2)).double()
    torch.nn.init.normal_(network.languages.weight)
    first, second = (network(surfaces(), source(), i).input for i in (0, 1))
    assert float((first - second).abs().max()) > 1e-3
    single = network.by_length(surfaces(), source(), torch.tensor(1)).input
    torch.testing.assert_close(single, second, atol=1e-5, rtol=1e-5)
    for language in (None, 2, -1):
        with pytest.raises(ConfigError, match="language"):
            network(surfaces(), source(), language)


def test_other_shapes_are_refused(network: Hypernet) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.16"):
        network(torch.zeros(2, 17, dtype=torch.long), source())
    with pytest.raises(ConfigError, match="was trained for"):
        network(surfaces(), source()[:, :12])
    with pytest.raises(ConfigError, match="knows 0 languages"):
        network(surfaces(), source(), 1)
    with pytest.raises(ConfigError, match="embed_dim"):
        Hypernet(preset("zett-tiny"))


@pytest.mark.parametrize(
    "change", [{"dim": 33}, {"num_layers": 0}, {"max_pieces": 17}, {"pad_id": -1}]
)
def test_wrong_sizes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        override(CONFIG, **change)


@pytest.mark.parametrize(
    ("name", "millions"), [("zett-gpt2", 20), ("zett-tinyllama", 148), ("zett-mistral-7b", 590)]
)
def test_paper_sizes_build(name: str, millions: float) -> None:
    """Parameters by hand: 3 layers of 4 h^2 + 2 h i, a projector and a map at each end."""
    with torch.device("meta"):
        network = Hypernet(preset(name))
    c = network.config
    layer = 4 * c.dim**2 + 2 * c.dim * c.inner_dim
    ends = c.source_dim * c.dim + 2 * c.dim * c.inner_dim
    heads = (1 if c.is_tied else 2) * (2 * c.dim * c.inner_dim + c.dim * c.embed_dim)
    total = sum(p.numel() for p in network.parameters())
    assert total == pytest.approx(3 * layer + ends + heads, rel=0.01)
    assert total / 1e6 == pytest.approx(millions, rel=0.2)


def test_losses_follow_their_formulas() -> None:
    found = Embeddings(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2, 2))
    truth = Embeddings(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.ones(2, 2))
    assert identity_loss(found, truth).item() == pytest.approx(((5 + 1) / 2 + math.sqrt(2)) / 2)
    mask = torch.tensor([True, False])
    wanted = (25 / ((0 + 2) / 2) + 2 / math.sqrt(2)) / 2
    assert lexical_loss(found, truth, mask).item() == pytest.approx(wanted)
    assert lexical_loss(found, truth, torch.zeros(2, dtype=torch.bool)).item() == 0
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0]]])
    targets, where = torch.tensor([[1, 0]]), torch.tensor([[True, False]])
    assert language_loss(logits, targets, where).item() == pytest.approx(math.log(4 / 3))


def test_marked_rows_are_replaced_bit_for_bit() -> None:
    found = Embeddings(torch.randn(3, 4), None, torch.randn(3))
    truth = Embeddings(torch.randn(9, 4), None, torch.randn(9))
    mixed = found.with_rows(torch.tensor([-1, 7, -1]), truth)
    assert torch.equal(mixed.input[1], truth.input[7])
    assert torch.equal(mixed.input[[0, 2]], found.input[[0, 2]])
    assert mixed.bias is not None and truth.bias is not None and mixed.output is None
    assert torch.equal(mixed.bias[1], truth.bias[7])
