"""Telemetry of the cloud: metrics, logs, health."""
