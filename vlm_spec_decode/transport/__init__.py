"""Moves frames between edge and cloud; does not know what they mean."""
