"""How much of a forward pass is recomputed in the backward pass instead of being stored."""

from typing import Literal

from jax import checkpoint_policies

# "none" stores everything. "convolutions" stores the results of convolutions and matrix products,
# which take the time, and recomputes norms and activations, which take the memory. "full" stores
# nothing but the input.
Remat = Literal["none", "convolutions", "full"]

# The name given to what is small but needs a pass over a map: "convolutions" stores it too.
STATISTICS = "statistics"

# The policy for `jax.checkpoint` and `flax.linen.remat`, for each option but "none".
POLICIES = {
    "convolutions": checkpoint_policies.save_from_both_policies(
        checkpoint_policies.dots_saveable,
        checkpoint_policies.save_only_these_names(STATISTICS),
    ),
    "full": None,
}
