"""Pocket Scenes: small drawn pictures with five captions each; `scenes.py` has the doors."""
