"""What shows results to people: tables, figures and the page."""
