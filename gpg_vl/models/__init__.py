"""Models: checkpoints in and out, the policy and its parts."""

import logging

# transformers and peft import torchao where it is installed, which then tells of kernels that do not load and of names that
# will be deprecated. Nothing here uses them, and between our own lines they read like faults.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
