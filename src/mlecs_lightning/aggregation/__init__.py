"""What the server makes of the clients' updates."""

from mlecs_lightning.aggregation.adapters import AdapterAggregator, Aggregate, Aggregation

__all__ = ["AdapterAggregator", "Aggregate", "Aggregation"]
