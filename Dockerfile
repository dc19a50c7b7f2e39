FROM python:3.11-slim AS base


FROM base AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The virtual environment has no pip of its own: what installs it does not travel with it.
RUN python -m venv --without-pip /opt/tollbook

# The dependencies, as locked. Wheels only: no compiler is needed, and no package's set-up code runs.
COPY requirements/base.txt requirements/build.txt requirements/
RUN pip --python /opt/tollbook/bin/python install \
        --require-hashes --no-deps --only-binary :all: -r requirements/base.txt \
    && pip install --require-hashes --no-deps --only-binary :all: -r requirements/build.txt

# The project, in a layer of its own, built by the locked build backend.
COPY pyproject.toml README.md LICENSE ./
COPY observability observability
COPY auth auth
COPY service service
RUN pip wheel --no-build-isolation --no-deps --no-index --wheel-dir /wheels . \
    && pip --python /opt/tollbook/bin/python install --no-deps --no-index /wheels/*.whl


FROM base
LABEL org.opencontainers.image.title="Tollbook" \
      org.opencontainers.image.description="An LLM service where every call is on the books." \
      org.opencontainers.image.licenses="Apache-2.0"

# A numeric user, so that Kubernetes can check runAsNonRoot. The state directory is all it writes, with /tmp.
RUN pip uninstall --yes --root-user-action ignore pip setuptools wheel \
    && groupadd --gid 10001 tollbook \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/tollbook --shell /usr/sbin/nologin tollbook \
    && install --directory --owner 10001 --group 10001 --mode 0750 /var/lib/tollbook

COPY --from=build /opt/tollbook /opt/tollbook

ENV PATH=/opt/tollbook/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/tollbook \
    TOLLBOOK_HOST=0.0.0.0 \
    TOLLBOOK_STATE_DIR=/var/lib/tollbook

WORKDIR /var/lib/tollbook
VOLUME ["/var/lib/tollbook"]
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

# Alive, not ready: a container is not restarted because its database is away. Not urllib: it would ask a proxy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('TOLLBOOK_PORT') or 8000), timeout=4); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]

ENTRYPOINT ["tollbook"]
CMD ["serve"]
