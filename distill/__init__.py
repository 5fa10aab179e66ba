"""Teachers and pictures to a small student. Needs torch; nothing below `export` and `cli` imports this."""

import logging

# torch warns here about deprecated calls that torchao makes as both are imported: nothing a user can act on.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
