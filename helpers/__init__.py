"""The module that the notebooks share: one topic a file. Importing the package imports nothing heavy."""

from helpers.memory import keep_freed_memory

keep_freed_memory()
