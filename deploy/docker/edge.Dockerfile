# The robot's nodes. ROS 2 Humble has Python 3.10, for which there is the cyclonedds that a Go2 speaks.
#   docker build -f deploy/docker/edge.Dockerfile -t vsd-edge .
#   docker run --network host --env-file /etc/vsd/edge.env -v /etc/vsd:/etc/vsd:ro vsd-edge
FROM ros:humble-ros-base
ARG TORCH_INDEX=
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
# The number of the user who owns /etc/vsd/keys on the host: secrets are readable by their owner alone.
ARG UID=990
RUN useradd --system --uid "$UID" --create-home --home-dir /var/lib/vsd vsd
WORKDIR /opt/vsd/ws
COPY setup.py setup.cfg pyproject.toml package.xml README.md LICENSE requirements.lock src/vlm_spec_decode/
COPY resource src/vlm_spec_decode/resource
COPY config src/vlm_spec_decode/config
COPY launch src/vlm_spec_decode/launch
COPY rviz src/vlm_spec_decode/rviz
COPY nodes src/vlm_spec_decode/nodes
COPY vlm_spec_decode src/vlm_spec_decode/vlm_spec_decode
COPY vlm_spec_decode_msgs src/vlm_spec_decode/vlm_spec_decode_msgs
RUN python3 -m pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        --constraint src/vlm_spec_decode/requirements.lock "./src/vlm_spec_decode[edge,bags]" \
    && bash -c "source /opt/ros/humble/setup.bash && colcon build --base-paths src/vlm_spec_decode src/vlm_spec_decode/vlm_spec_decode_msgs"
COPY deploy/edge /opt/vsd/edge
USER vsd
ENV OMP_NUM_THREADS=1 HOME=/var/lib/vsd
STOPSIGNAL SIGINT
ENTRYPOINT ["/opt/vsd/edge"]
