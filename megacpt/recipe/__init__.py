"""What the user wrote, read strictly and completed: nothing here needs torch, so a login node can plan a run.

A recipe is YAML. `load_recipe` reads it into frozen sections (`schema`) and checks them against each other (`rules`);
`resolve` adds what follows from the number of processes; `explain` shows it all.
"""

from megacpt.recipe.architecture import Architecture
from megacpt.recipe.explain import explain, show
from megacpt.recipe.importance import objective
from megacpt.recipe.load import dump_recipe, load_recipe, recipes_folder
from megacpt.recipe.memory import checkpoint_bytes, num_checkpoints
from megacpt.recipe.model_config import check_promises, find_architecture
from megacpt.recipe.resolve import Resolved, ResolvedRate, least_world_size, resolve, resolve_rates, wasted_orders
from megacpt.recipe.schema import Recipe
from megacpt.recipe.shares import token_shares

__all__ = [
    "Architecture",
    "Recipe",
    "Resolved",
    "ResolvedRate",
    "check_promises",
    "checkpoint_bytes",
    "dump_recipe",
    "explain",
    "find_architecture",
    "least_world_size",
    "load_recipe",
    "num_checkpoints",
    "objective",
    "recipes_folder",
    "resolve",
    "resolve_rates",
    "show",
    "token_shares",
    "wasted_orders",
]
