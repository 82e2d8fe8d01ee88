"""A page on the results in a folder, to look at in a browser."""

from aspire_mom.report.page import write_report

__all__ = ["write_report"]
