"""Scoring rules, one module per published source, each restated with its defects; `strict` is ours."""
