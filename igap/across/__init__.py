"""Finished runs side by side: one table and one page over many (`igap compare`). Reads what runs wrote, runs nothing."""
