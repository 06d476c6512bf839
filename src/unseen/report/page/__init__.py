"""The comparison as one HTML file that needs no network: text, tables, charts, pictures and their data."""

from unseen.report.page.write import write_page

__all__ = ["write_page"]
