"""Models: loading and saving checkpoints, the policy and its parts."""

import logging

# transformers and peft import torchao if it is installed. torchao then warns about kernels that do not load and about future
# deprecations. Nothing here uses them, and users would take the warnings for errors.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
