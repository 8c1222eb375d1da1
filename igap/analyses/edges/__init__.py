"""The analysis `edges`, and its public function."""
