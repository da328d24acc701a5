"""The four nodes: camera, VLM, locomotion, monitor."""
