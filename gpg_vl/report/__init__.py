"""The report of a run: its folder read into plain records, and one page written from them.

Everything here only reads; it knows the files of a run folder and nothing of how they were written.
"""
