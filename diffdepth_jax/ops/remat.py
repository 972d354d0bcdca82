"""How much of a forward pass is recomputed in the backward pass instead of being stored."""

from typing import Literal

import jax

# "none" stores everything. "convolutions" stores the results of convolutions and matrix products,
# which cost the time, and recomputes norms and activations, which cost the memory. "full" stores
# nothing but the input.
Remat = Literal["none", "convolutions", "full"]

# What `jax.checkpoint` and `flax.linen.remat` take as their policy for each but "none".
POLICIES = {"convolutions": jax.checkpoint_policies.dots_saveable, "full": None}
