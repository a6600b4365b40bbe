"""Losses x conditions x paired seeds: asked for (plan), trained (cells), watched (board), read (results)."""
