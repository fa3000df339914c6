"""Bases that other systems stand on."""
