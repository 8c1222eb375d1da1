"""What is written, drawn and printed of a search. Imports all but `runner`."""
