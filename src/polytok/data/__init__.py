"""Training data: prepared shapes and what is drawn from them."""

from polytok.data.prepared import PreparedFolder, Summary, prepare_folder

__all__ = ["PreparedFolder", "Summary", "prepare_folder"]
