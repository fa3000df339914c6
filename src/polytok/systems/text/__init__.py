"""Tools that read, judge and exchange text tokenizers."""
