"""GET /metrics: for Prometheus."""

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry

from observability.exposition import render_metrics


def make_router(registry: CollectorRegistry) -> APIRouter:
    """The route, for the registry of this worker. Any worker answers for all of them."""
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        # In a thread: reading every worker's values takes longer than the event loop should stand still.
        body, content_type = await asyncio.to_thread(render_metrics, registry, request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    return router
