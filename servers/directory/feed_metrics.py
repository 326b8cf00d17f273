"""What Prometheus is told of promises."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from servers.directory.promises import Promises

WAIT_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 20.0)


class FeedMetrics(Collector):
    """Feeds, promises and messages, as they are when they are asked for."""

    def __init__(self, promises: Promises, registry: CollectorRegistry) -> None:
        self._promises = promises
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client wants it."""
        feeds, promises = self._promises.counts()
        yield GaugeMetricFamily("dfs_feeds", "Sessions with a living feed", value=feeds)
        yield GaugeMetricFamily("dfs_promises", "Promises that are kept", value=promises)
        told = self._promises.told_count
        yield CounterMetricFamily("dfs_feed_messages", "Broken promises that were told", value=told)


def wait_histogram(registry: CollectorRegistry) -> Histogram:
    """How long changes waited until others knew of them."""
    return Histogram(
        "dfs_change_wait_seconds",
        "How long changes waited for other sessions",
        buckets=WAIT_SECONDS,
        registry=registry,
    )
