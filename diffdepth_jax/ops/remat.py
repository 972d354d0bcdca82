"""How much of a forward pass is recomputed in the backward pass instead of being stored."""

from typing import Literal

import jax

# "none" stores everything. "convolutions" stores the results of convolutions and matrix products,
# which take the time, and recomputes norms and activations, which take the memory. "full" stores
# nothing but the input.
Remat = Literal["none", "convolutions", "full"]

# The policy for `jax.checkpoint` and `flax.linen.remat`, for each option but "none".
POLICIES = {"convolutions": jax.checkpoint_policies.dots_saveable, "full": None}
