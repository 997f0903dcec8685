"""Families of inference engines, by name.

family    what a family is
known     which there are; each has a room of its own
protocol  what a family's driver answers, and to which commands
toy       a decoder in numpy: milliseconds, flaws on request
"""
