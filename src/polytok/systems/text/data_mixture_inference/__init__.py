"""Data mixture inference: what a BPE tokenizer tells of the text it was trained on.

A tool without weights. Every merge of a BPE tokenizer was the most frequent pair of its training
text when it was chosen. With a sample of every category that may have been in that text, these
facts are linear inequalities in the shares of the categories; a linear program finds the shares.

    >>> infer_mixture("tokenizer.json", {"en": english, "code": python})  # doctest: +SKIP

Paper: Hayase, Liu, Choi, Oh, Smith 2024, "Data Mixture Inference: What do BPE Tokenizers Reveal
about their Training Data?", arXiv 2407.16607. The authors' program is at
github.com/alisawuffles/tokenizer-attack; its files are read and written by ``official``. It needs a
commercial solver and a changed tokenizer library; this one needs neither, and no torch.
"""

from polytok.systems.text._tokenizer_file import TokenizerFile, read_tokenizer
from polytok.systems.text.data_mixture_inference.counting import (
    PairTranscript,
    Target,
    count_pairs,
)
from polytok.systems.text.data_mixture_inference.inference import infer_mixture, solve, target_of
from polytok.systems.text.data_mixture_inference.result import (
    Fit,
    MixtureResult,
    mean_squared_error,
)
from polytok.systems.text.data_mixture_inference.solver import SolveConfig
from polytok.systems.text.data_mixture_inference.synthesis import Synthesis, synthesize

__all__ = [
    "Fit",
    "MixtureResult",
    "PairTranscript",
    "SolveConfig",
    "Synthesis",
    "Target",
    "TokenizerFile",
    "count_pairs",
    "infer_mixture",
    "mean_squared_error",
    "read_tokenizer",
    "solve",
    "synthesize",
    "target_of",
]
