"""What the cloud tells about itself: metrics, logs, health."""
