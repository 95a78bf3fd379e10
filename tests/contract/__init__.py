"""The contract of Lama Cleaner 1.2.5, row by row: the unchanged server beside the grid."""
