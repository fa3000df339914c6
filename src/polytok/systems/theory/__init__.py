"""Closed forms and regularisers: what a model must do before it is trained."""
