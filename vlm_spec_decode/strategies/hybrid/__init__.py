"""The `hybrid` strategy: a draft tree that streams up as it grows; the cloud drafts and waits by cost."""
