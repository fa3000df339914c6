"""Signals: reading, preparing, restoring and writing what users have."""
