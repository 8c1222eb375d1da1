"""How values show themselves in a notebook: a map as a grid, HTML, and the link to the figure that draws it."""
