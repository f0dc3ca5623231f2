# The sync server in a container; docs/deploy.md says how to run it. No image is needed to see that this works:
# tests/packaging/test_container.py follows it instruction by instruction.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
# Extras of pyproject.toml, as in `docker build --build-arg EXTRAS=[transcription] .`
ARG EXTRAS=
WORKDIR /src
COPY . .
ENV PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
RUN python -m venv --without-pip /opt/homeport \
    && python -m pip --python /opt/homeport install --no-cache-dir ".${EXTRAS}"

FROM python:${PYTHON}-slim
COPY --from=build /opt/homeport /opt/homeport
COPY deploy/homeport.toml /etc/homeport/homeport.toml
# A container's own loopback is reached by nobody, so the server is exposed: sessions are off in homeport.toml.
ENV PATH=/opt/homeport/bin:$PATH \
    HOMEPORT_CONFIG=/etc/homeport/homeport.toml \
    HOMEPORT_SERVER__HOST=0.0.0.0
# The second command leaves the standard library compiled, as far as the server imports it: the base image has it as
# source only, and later nothing can be written.
RUN install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/homeport \
    && homeport openapi --out /dev/null
USER 10001:10001
WORKDIR /var/lib/homeport
VOLUME /var/lib/homeport
EXPOSE 8000
STOPSIGNAL SIGTERM
# 403 is what server.require_https answers to plain HTTP.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.getenv('PORT') or 8000), timeout=4); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status not in (200, 403))"]
ENTRYPOINT ["homeport"]
CMD ["serve"]
