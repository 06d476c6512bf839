"""Files → Manifest → Split → batches."""
