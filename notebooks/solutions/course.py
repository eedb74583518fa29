"""`import course` in a notebook of this folder runs the course.py of the course's root, which prepares the notebook."""

import runpy
from pathlib import Path

globals().update(runpy.run_path(str(Path(__file__).resolve().parents[2] / "course.py"), run_name="course"))
