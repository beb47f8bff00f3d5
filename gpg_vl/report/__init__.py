"""The report of a run: reads the run folder into plain records and writes one page from them.

Everything here only reads; it knows the files of a run folder and nothing of how they were written.
"""
