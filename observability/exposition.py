"""/metrics: the values of all workers, in the Prometheus text format or OpenMetrics, as the scraper asks."""

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.multiprocess import MultiProcessCollector

from observability import multiprocess


def render_metrics(local: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The exposition and its content type.

    Args:
        local: the registry of this process; it answers alone when there are no worker slots.
        accept: the scraper's Accept header.
    """
    encode, content_type = exposition.choose_encoder(accept)
    path = multiprocess.directory()
    registry = local
    if path is not None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path)
    return encode(registry), content_type
