"""Transfer: embeddings put in and read back, heuristics, bits per byte, folders as they were."""

from __future__ import annotations

import base64
import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from polytok.core.errors import (
    ConfigError,
    PolytokError,
    SignalError,
    UnknownNameError,
    WeightsError,
)
from polytok.networks.pretrained.optional import import_hf
from polytok.systems.text import zett
from polytok.systems.text._shared import to_bytes
from polytok.systems.text.zett.heuristics import sparsemax
from polytok.systems.text.zett.surgery import PATHS, LMEmbeddings
from systems.text.zett_models import (
    END,
    TEXTS,
    TYPES,
    bpe,
    fallback_bpe,
    language_model,
    unigram,
    wordpiece,
)

CAUSAL = [kind for kind in TYPES if "roberta" not in kind]
every_type = pytest.mark.parametrize("kind", TYPES)


def hypernet_for(lm: zett.LanguageModel, **change: Any) -> zett.Hypernet:
    where = lm.embeddings
    sizes: dict[str, Any] = {
        "vocab_size": lm.tokenizer.vocabulary.num_original,
        "num_extra": lm.tokenizer.num_extra,
        "pad_id": lm.pad_id,
        "embed_dim": where.dim,
        "is_tied": where.is_tied,
        "has_bias": where.has_bias,
        "dim": 16,
        "inner_dim": 32,
        "num_heads": 2,
    }
    torch.manual_seed(0)
    return zett.Hypernet(zett.HypernetConfig(**{**sizes, **change}))


def test_every_type_has_a_tiny_model() -> None:
    assert set(TYPES) == set(PATHS)


@every_type
@torch.no_grad()
def test_the_same_tokenizer_gives_the_same_model(kind: str) -> None:
    """Embeddings of a vocabulary it has already go out and come back; logits stay."""
    lm = language_model(kind, padding=5)
    ids = torch.randint(5, 60, (2, 9))
    before = lm.model(input_ids=ids).logits
    size = lm.tokenizer.vocabulary.num_original
    lm.embeddings.write(lm.source)
    after = lm.model(input_ids=ids).logits
    assert after.shape[-1] == size == before.shape[-1] - 5
    torch.testing.assert_close(after, before[..., :size], atol=1e-6, rtol=0)
    assert lm.model.config.vocab_size == size
    assert lm.model.get_input_embeddings().num_embeddings == size


@every_type
@pytest.mark.parametrize("way", ["hypernet", "fvt"])
def test_special_rows_are_copied_bit_for_bit(kind: str, way: str) -> None:
    lm = language_model(kind)
    old, source = lm.source, lm.tokenizer.vocabulary.specials
    hypernet = hypernet_for(lm) if way == "hypernet" else None
    made = zett.transfer_tokenizer(lm, wordpiece(), hypernet=hypernet)
    new = LMEmbeddings(made.model).read(len(made.tokenizer))
    assert made.tokenizer.vocabulary.specials.keys() == source.keys()
    for name, index in made.tokenizer.vocabulary.specials.items():
        for part in ("input", "output", "bias"):
            a, b = getattr(old, part), getattr(new, part)
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a[source[name]], b[index]), (name, part)


@every_type
def test_a_written_folder_is_a_plain_one(kind: str, tmp_path: Path) -> None:
    """``transformers`` alone loads it: same ids, same logits, ids of special tokens in place."""
    hf = import_hf("transformers")
    lm = language_model(kind)
    made = zett.transfer_tokenizer(lm, bpe(), method="fvt")
    zett.save_transfer(made, tmp_path / "out")
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir() if p.suffix != ".json") == [
        ".safetensors"
    ]
    frame = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    loader = hf.AutoModelForMaskedLM if "roberta" in kind else hf.AutoModelForCausalLM
    model = loader.from_pretrained(tmp_path / "out").eval()
    assert model.config.model_type == kind and model.config.vocab_size == len(frame)
    for text in TEXTS[:3]:
        ids = frame(text)["input_ids"]
        assert ids == made.tokenizer.tokenizer.encode(text).ids
        assert frame.decode(ids, skip_special_tokens=True) == text
        with torch.no_grad():
            given = torch.tensor([ids])
            wanted = made.model(input_ids=given).logits
            torch.testing.assert_close(model(input_ids=given).logits, wanted)
    for name in ("bos", "eos"):
        token = getattr(lm.frame, f"{name}_token")
        assert getattr(model.config, f"{name}_token_id") == frame.convert_tokens_to_ids(token)


def test_ids_of_special_tokens_move_where_they_must() -> None:
    """A token at the end of a large vocabulary moves to the end of a small one."""
    hf = import_hf("transformers")
    data = json.loads(bpe().to_str())
    vocab, far = data["model"]["vocab"], len(data["model"]["vocab"]) - 1
    other = next(token for token, index in vocab.items() if index == far)
    vocab[END], vocab[other], data["added_tokens"][0]["id"] = far, 0, far
    frame = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), bos_token=END, eos_token=END
    )
    config = hf.GPT2Config(
        vocab_size=far + 1, n_embd=16, n_layer=1, n_head=2, bos_token_id=far, eos_token_id=[far]
    )
    lm = zett.of_parts(hf.GPT2LMHeadModel(config), frame)
    made = zett.transfer_tokenizer(lm, bpe(300))
    last = len(made.tokenizer) - 1
    assert made.model.config.bos_token_id == last and made.model.config.eos_token_id == [last]
    assert made.model.generation_config.bos_token_id == last


def test_dtypes_stay() -> None:
    lm = language_model("llama")
    lm.model.to(torch.bfloat16)
    made = zett.transfer_tokenizer(lm, bpe())
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}


def test_the_report_counts() -> None:
    lm = language_model()
    source = lm.tokenizer.vocabulary
    made = zett.transfer_tokenizer(lm, unigram(), hypernet=hypernet_for(lm, max_pieces=2))
    tokens = made.tokenizer.vocabulary.tokens
    there = {t.text for t in source.tokens}
    long = [t for t in tokens if t.kind == "piece" and len(lm.tokenizer.spell(t.text)) > 2]
    assert made.report["tokens_after"] == len(tokens)
    assert made.report["tokens_shared"] == sum(t.text in there for t in tokens)
    assert made.report["tokens_truncated"] == len(long) > 0
    assert any(f"{len(long)} tokens are longer than 2" in note for note in made.notes)
    assert any("NFKC" in note for note in made.notes)


def initialised(method: str, seed: int = 0) -> tuple[zett.LanguageModel, Any, torch.Tensor]:
    lm = language_model()
    target = zett.byte_level(fallback_bpe(), specials_of=lm.tokenizer)
    made = zett.initialize_embeddings(lm, target, method=method, seed=seed)
    return lm, target.vocabulary.tokens, made.embeddings.input


def test_fvt_is_the_mean_of_the_pieces() -> None:
    lm, tokens, found = initialised("fvt")
    source = lm.source.input
    for token, row in zip(tokens, found, strict=True):
        if token.kind == "piece":
            wanted = source[lm.tokenizer.spell(token.text)].mean(0)
            torch.testing.assert_close(row, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["fvt", "lexical", "focus"])
def test_shared_tokens_keep_their_embedding(method: str) -> None:
    lm, tokens, found = initialised(method)
    ids = {t.text: i for i, t in enumerate(lm.tokenizer.vocabulary.tokens)}
    shared = [(i, ids[t.text]) for i, t in enumerate(tokens) if t.text in ids]
    assert len(shared) > 256
    for new, old in shared:
        torch.testing.assert_close(found[new], lm.source.input[old], atol=1e-6, rtol=0)


def test_other_methods_do_what_they_say() -> None:
    lm, tokens, found = initialised("mean")
    source = lm.source.input
    free = [i for i, t in enumerate(tokens) if t.kind != "special"]
    torch.testing.assert_close(found[free], source.mean(0).expand(len(free), -1))
    _, _, found = initialised("unk")
    torch.testing.assert_close(found[free], source[0].expand(len(free), -1))
    _, _, found = initialised("random")
    torch.testing.assert_close(found[free].mean(), source.mean(), atol=2e-3, rtol=0)
    torch.testing.assert_close(found[free].std(), source.std(), rtol=0.1, atol=0)
    assert torch.equal(found, initialised("random")[2])
    assert not torch.equal(found, initialised("random", seed=1)[2])
    with pytest.raises(UnknownNameError, match="did you mean 'focus'"):
        initialised("focuss")


def test_focus_rows_are_convex_sums_of_shared_ones() -> None:
    weights = sparsemax(torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) * 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    assert (weights >= 0).all() and (weights == 0).any()
    # Optimality of the projection: logits minus weights are equal on the support, no larger off it.
    logits = torch.tensor([[1.0, 0.8, -1.0]])
    torch.testing.assert_close(sparsemax(logits), torch.tensor([[0.6, 0.4, 0.0]]))


@pytest.mark.parametrize("kind", CAUSAL)
def test_bits_per_byte_are_those_of_a_plain_sum(kind: str) -> None:
    lm = language_model(kind)
    texts = [TEXTS[0][:40], TEXTS[1][:33], ""]
    bits = 0.0
    for text in texts[:2]:
        ids = lm.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        full = torch.tensor([[lm.tokenizer.vocabulary.specials[lm.start], *ids]])
        with torch.no_grad():
            logs = lm.model(input_ids=full).logits.log_softmax(-1)[0]
        bits -= sum(float(logs[i, token]) for i, token in enumerate(ids)) / math.log(2)
    found = zett.bits_per_byte(lm, lm.tokenizer, texts)
    assert found.bits == pytest.approx(bits, rel=1e-5)
    assert found.bytes == sum(len(t.encode()) for t in texts)
    assert found.bits_per_byte == pytest.approx(bits / found.bytes, rel=1e-5)


def test_long_texts_are_read_in_windows_that_score_each_token_once() -> None:
    lm = language_model()
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.zero_()
    text = TEXTS[0] * 6
    found = zett.bits_per_byte(lm, lm.tokenizer, [text], context=10)
    even = math.log2(lm.model.config.vocab_size)
    assert found.tokens > 60
    assert found.bits == pytest.approx(found.tokens * even, rel=1e-5)
    without = zett.LanguageModel(lm.model, lm.frame, lm.tokenizer, None)
    found = zett.bits_per_byte(without, lm.tokenizer, [text], context=10)
    assert found.bits == pytest.approx(found.tokens * even, rel=1e-5)


def test_what_cannot_be_scored_is_refused() -> None:
    lm = language_model()
    with pytest.raises(SignalError, match="empty"):
        zett.bits_per_byte(lm, lm.tokenizer, ["", ""])
    with pytest.raises(PolytokError, match="context=2"):
        zett.bits_per_byte(lm, lm.tokenizer, ["a"], context=2)
    masked = language_model("roberta")
    with pytest.raises(PolytokError, match="fills masks"):
        zett.bits_per_byte(masked, masked.tokenizer, ["a"])


def test_a_sibling_follows_its_base() -> None:
    base = language_model("llama")
    sibling, tuned = copy.deepcopy(base.model), copy.deepcopy(base)
    with torch.no_grad():
        for parameter in sibling.parameters():
            parameter.add_(0.1)
    made = zett.transfer_tokenizer(tuned, bpe())
    with torch.no_grad():
        made.model.model.norm.weight.add_(1.0)
    zett.transfer_sibling(sibling, base.model, made.model, weight=0.5)
    own, new = dict(sibling.named_parameters()), dict(made.model.named_parameters())
    for name, old in base.model.named_parameters():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(own[name], new[name])
        else:
            moved = 0.5 if name == "model.norm.weight" else 0.0
            torch.testing.assert_close(own[name], old + 0.1 + moved)
    assert sibling.config.vocab_size == made.model.config.vocab_size
    with pytest.raises(ConfigError, match="weight=2"):
        zett.transfer_sibling(sibling, base.model, made.model, weight=2)
    with pytest.raises(WeightsError, match="same parts"):
        zett.transfer_sibling(language_model().model, base.model, made.model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 9}, "vocab_size=9"),
        ({"embed_dim": 8}, "embed_dim=8"),
        ({"is_tied": False}, "is_tied=False"),
    ],
)
def test_a_hypernetwork_of_another_model_is_refused(change: dict[str, Any], says: str) -> None:
    lm = language_model()
    with pytest.raises(WeightsError, match=says):
        zett.transfer_tokenizer(lm, unigram(), hypernet=hypernet_for(lm, **change))


def test_models_that_are_not_known_or_do_not_fit_are_refused() -> None:
    hf = import_hf("transformers")
    frame = language_model().frame
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    small = hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=100, bos_token_id=0, eos_token_id=0, **sizes)
    )
    with pytest.raises(WeightsError, match="embeds only 100"):
        zett.of_parts(small, frame)
    bare = hf.GPT2Model(hf.GPT2Config(vocab_size=420, bos_token_id=0, eos_token_id=0, **sizes))
    with pytest.raises(WeightsError, match=r"no transformer\.wte"):
        zett.of_parts(bare, frame)
    other = hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=420,
            hidden_size=16,
            num_hidden_layers=1,
            ffn_dim=16,
            num_attention_heads=2,
            word_embed_proj_dim=16,
        )
    )
    with pytest.raises(UnknownNameError, match="'opt'"):
        zett.of_parts(other, frame)


def test_lists_of_merges_and_ranks_are_tokenizers_too(tmp_path: Path) -> None:
    source = bpe()
    merges = json.loads(source.to_str())["model"]["merges"]
    path = tmp_path / "merges.txt"
    path.write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges))
    ranks = tmp_path / "ranks.tiktoken"
    tokens = [t.text for t in zett.byte_level(source).vocabulary.tokens if t.kind == "piece"]
    names = [base64.b64encode(to_bytes(token)).decode() for token in tokens]
    ranks.write_text("\n".join(f"{name} {rank}" for rank, name in enumerate(names)))
    for text in TEXTS[:3]:
        wanted = source.encode(text).tokens
        assert zett.load_tokenizer(path).encode(text).tokens == wanted
        assert zett.load_tokenizer(ranks).encode(text).tokens == wanted
    path.write_text("#version: 0.2\n▁ a\n▁a 日")
    with pytest.raises(SignalError, match="not written in bytes"):
        zett.load_tokenizer(path)


def test_tokenizers_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "tokenizer.json"
    for content in (b"", b"{}", b"\xff\x00", b"[1, 2]"):
        bad.write_bytes(content)
        with pytest.raises(SignalError, match="cannot read"):
            zett.load_tokenizer(tmp_path)
    with pytest.raises(SignalError, match="no fast tokenizer"):
        zett.load_tokenizer(object())


def test_an_unfinished_folder_is_never_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = zett.transfer_tokenizer(language_model(), unigram())
    out = tmp_path / "out"
    monkeypatch.setattr(made.frame, "save_pretrained", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        zett.save_transfer(made, out)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    zett.save_transfer(made, out)
    with pytest.raises(PolytokError, match="--force"):
        zett.save_transfer(made, out)
    zett.save_transfer(made, out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
