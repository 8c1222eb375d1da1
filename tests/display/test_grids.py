"""Which numbers of a map a page shows, where they stand, and what they are called."""

import numpy as np

from igap.display.grids import grid_of

SPANS = ("0 After", "1 Mary", "2 to")


def test_a_vector_a_layer_is_one_row_of_layers():
    values = np.array([[1.0], [2.0], [3.0]])
    grid = grid_of(values, "resid_mid")
    assert (grid.rows, grid.columns, grid.column) == (("resid_mid",), ("0", "1", "2"), "layer")
    assert grid.of(values).tolist() == [[1, 2, 3]]


def test_a_vector_a_layer_by_position_has_layers_down_and_positions_across():
    values = np.arange(6.0).reshape(2, 3, 1)
    grid = grid_of(values, "resid_pre", SPANS)
    assert (grid.rows, grid.row, grid.columns, grid.column) == (("0", "1"), "layer", SPANS, "position")
    assert grid.of(values).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_by_position_the_components_with_the_largest_number_anywhere_are_down_largest_first():
    values = np.zeros((3, 3, 10))
    values[2, 1, 7], values[0, 2, 4], values[1, 0, 0] = -5.0, 4.0, 3.0
    grid = grid_of(np.abs(values), "heads", SPANS)
    assert grid.rows[:3] == ("2.7", "0.4", "1.0")
    assert len(grid.rows) == 20
    assert grid.of(values)[:3].tolist() == [[0, -5, 0], [0, 0, 4], [3, 0, 0]]
    assert grid.note == "the 20 of 30 heads with the largest |value| down, largest first, positions across"


def test_of_many_positions_those_with_the_largest_numbers_are_across_in_their_order():
    values = np.zeros((2, 300, 1))
    values[0, 250:], values[1, 0] = 1.0, 0.5
    grid = grid_of(values, "mlp_out", tuple(map(str, range(300))))
    assert grid.columns == ("0", *(str(i) for i in range(1, 14)), *(str(i) for i in range(250, 300)))
    assert grid.of(values)[0].tolist() == [0.0] * 14 + [1.0] * 50
    assert "the 64 of 300 positions with the largest |value| across" in grid.note


def test_keys_and_values_are_those_of_key_value_heads():
    grid = grid_of(np.ones((2, 3)), "k")
    assert (grid.row, grid.column, grid.note) == ("layer", "key-value head", "layers down, key-value heads of k across")
