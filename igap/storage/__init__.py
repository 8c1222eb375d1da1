"""Files: written whole, read with distrust, kept between runs."""
