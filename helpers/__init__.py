"""The module that the notebooks share: one topic a file. Importing the package imports nothing heavy."""
