"""Published systems, the only place where their names occur."""
