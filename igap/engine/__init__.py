"""F as a function of one site's activation: recorded passes, and what runs after the site."""
