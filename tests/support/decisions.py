"""Results of a decision about a model."""

DIFFERENCES = {
    f"{name}_difference{end}" for name in ("auc", "sensitivity") for end in ("", "_low", "_high")
}
COMPARED = DIFFERENCES | {"champion_only_correct", "candidate_only_correct"}


def aliases(client, name) -> dict[str, int]:
    found = client.get_registered_model(name).aliases
    return {alias: int(version) for alias, version in found.items()}


def last_promotion(client, name):
    """Return the latest decision about a model."""
    found = client.search_runs(
        ["0"],
        f"tags.`pneumo.kind` = 'promote' and tags.`pneumo.model` = '{name}'",
        order_by=["attributes.start_time DESC"],
    )
    return found[0]
