"""`import course` in a notebook of this folder runs the course.py of the course's root, which prepares the notebook."""

from pathlib import Path

exec(Path(__file__).resolve().parents[2].joinpath("course.py").read_text(encoding="utf-8"))
