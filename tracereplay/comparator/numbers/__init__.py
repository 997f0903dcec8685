"""Rows of two passes, paired and measured: what differs, by how much, and what is allowed."""
