"""From the records of many runs to one comparison: statistics, tables, a page. Knows records, no networks."""
