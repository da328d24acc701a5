# The verifier. From the repository's root:
#   docker build -f deploy/docker/cloud.Dockerfile -t vsd-cloud .
#   docker run --gpus all --network host -v /etc/vsd:/etc/vsd:ro vsd-cloud
# With --network host, health and metrics stay on the host's loopback, where its Prometheus reads them.
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=
# The number of the user who owns /etc/vsd/keys on the host: secrets are readable by their owner alone.
ARG UID=990
RUN useradd --system --uid "$UID" --create-home --home-dir /var/lib/vsd vsd
WORKDIR /opt/vsd/src
COPY setup.py setup.cfg pyproject.toml package.xml README.md LICENSE requirements.lock requirements-test.lock ./
COPY resource resource
COPY config config
COPY launch launch
COPY rviz rviz
COPY vlm_spec_decode_msgs vlm_spec_decode_msgs
COPY vlm_spec_decode vlm_spec_decode
RUN python -m venv /opt/vsd && /opt/vsd/bin/pip install --no-cache-dir \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint requirements.lock \
    --constraint requirements-test.lock ".[cluster]"
COPY deploy/cloud.yaml /etc/vsd/cloud.yaml
USER vsd
ENV OMP_NUM_THREADS=1
EXPOSE 5557
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["/opt/vsd/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
ENTRYPOINT ["/opt/vsd/bin/vsd", "cloud"]
CMD ["--config", "/etc/vsd/cloud.yaml", "--json"]
