"""Bags: read walks of any robot, ask about their frames again, score the answers, and report."""
