"""The benchmarks, by name. Each is a function without arguments that builds a `gpg_vl.eval.task.Task`.

A package of your own announces one in the entry-point group `gpg_vl.eval_tasks`; a file is named as `my.py:function`.
"""

from collections.abc import Callable

from gpg_vl.eval.task import Task
from gpg_vl.registry import Registry

tasks: Registry[Callable[[], Task]] = Registry(
    "eval task", builtin={"cvbench": "gpg_vl.eval.tasks.cvbench:cvbench"}, entry_point_group="gpg_vl.eval_tasks"
)
