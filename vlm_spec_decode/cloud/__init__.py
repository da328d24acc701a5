"""The verifier's side: sessions, scheduler and server."""
