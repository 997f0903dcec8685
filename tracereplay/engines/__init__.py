"""Families of inference engines, by name.

family    what a family is
known     the list of families; each has its own package
protocol  the commands that a family's driver answers
toy       a decoder in numpy: milliseconds, flaws on request
"""
