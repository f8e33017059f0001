"""Each domain's share of the tokens, from its weight and from what the recipe says about replay.

Replay is compute-equivalent: it takes the place of new text in every global batch, and a run has as many tokens with it
as without (Ibrahim et al. 2024, arXiv:2403.08763). So all that replay can say is a share.
"""

from __future__ import annotations

from collections.abc import Mapping

from megacpt.recipe.schema import Recipe, ReplaySection

PRETRAINING_MIXES: Mapping[str, Mapping[str, float]] = {
    "llama": {
        "common_crawl": 0.67,
        "c4": 0.15,
        "github": 0.045,
        "wikipedia": 0.045,
        "books": 0.045,
        "arxiv": 0.025,
        "stackexchange": 0.02,
    }
}
"""Published mixtures, source -> share of the tokens. llama: Touvron et al. 2023, arXiv:2302.13971, table 1."""


def pretraining_mix(replay: ReplaySection) -> dict[str, float]:
    """Source -> share of the pre-training tokens, as `replay.match` names or states it; empty without it."""
    mix = PRETRAINING_MIXES[replay.match] if isinstance(replay.match, str) else replay.match or {}
    total = sum(mix.values())
    return {source: share / total for source, share in mix.items()}


def token_shares(recipe: Recipe, stage_weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Domain -> its share of the tokens, of every domain that is trained on; they sum to 1.

    With R the replay's part and p_d a domain's weight over those of its role,

        replay domain: R * p_d,    new domain: (1 - R) * p_d

    R is `replay.rate`. With `replay.match` the replay domains' weights are their shares of the pre-training mixture; if
    no rate is set, R is the sum of these shares: new text takes the place of the sources that are not replayed
    (strategy III of Guo et al. 2024, arXiv:2406.14833). With neither, shares are weights over the sum of all weights.

    Args:
        recipe: whose rules hold.
        stage_weights: domain -> weight in a stage of the run; None: the domains' own.
    """
    domains, mix = recipe.data.domains, pretraining_mix(recipe.replay)
    weights = {name: domain.weight or 0.0 for name, domain in domains.items()}
    weights |= {name: share for name, share in mix.items() if name in domains and domains[name].role == "replay"}
    if stage_weights is not None:
        weights = {name: stage_weights.get(name, 0.0) for name in domains}
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    replayed = {name: weight for name, weight in weights.items() if domains[name].role == "replay"}
    total, replay_weight = sum(weights.values()), sum(replayed.values())
    rate = recipe.replay.rate
    if rate is None:
        rate = replay_weight if mix and stage_weights is None else replay_weight / total
    if not replayed or len(replayed) == len(weights):
        rate = replay_weight / total
    scale = {True: rate / (replay_weight or 1.0), False: (1 - rate) / ((total - replay_weight) or 1.0)}
    return {name: weight * scale[name in replayed] for name, weight in weights.items()}
