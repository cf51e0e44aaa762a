"""The families of operators that a search chooses among: names, blocks, costs and titles, one row a family."""
