"""Campaigns that try to break the promises of SECURITY.md, for scripts/campaigns.py."""
