"""vLLM as a rollout engine: in this process (`engine`), or as a server (`server`, started by `serve`).

Prompts are passed as our encoder made them (`inputs`), weights as the trainer has them (`weights`), and every answer carries the
version of the weights that sampled it. vllm itself is imported late and only in this package: everything else works without it.
"""
