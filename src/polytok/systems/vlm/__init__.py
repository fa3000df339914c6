"""Vision-language models made cheaper: plans that drop visual tokens, by published name."""
