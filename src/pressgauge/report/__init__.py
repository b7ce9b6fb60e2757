"""Presentation of results: tables, figures and the HTML report."""
