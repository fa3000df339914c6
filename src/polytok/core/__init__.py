"""Contracts, registry, configuration, errors and files: what every other part stands on."""
