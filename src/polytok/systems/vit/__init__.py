"""Vision transformers made cheaper: reducers, and backbones with fewer tokens."""
