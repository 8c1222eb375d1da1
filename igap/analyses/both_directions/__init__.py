"""IG and AP in both directions: which components carry F in one of them only, and which gates those are."""
