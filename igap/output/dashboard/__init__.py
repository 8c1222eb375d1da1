"""Finished runs side by side: one table and one page over many (`igap compare`)."""
