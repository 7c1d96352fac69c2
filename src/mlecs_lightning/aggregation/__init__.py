"""Aggregation of the clients' updates on the server."""

from mlecs_lightning.aggregation.adapters import (
    AdapterAggregate,
    AdapterAggregator,
    Aggregation,
    GroupedAdapters,
)
from mlecs_lightning.aggregation.aggregate import Aggregate

__all__ = ["AdapterAggregate", "AdapterAggregator", "Aggregate", "Aggregation", "GroupedAdapters"]
