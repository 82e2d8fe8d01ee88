"""The command aspire-mom."""
