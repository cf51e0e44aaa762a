"""Parameters and FLOPs of any mmdet detector, and the tables of the paper counted again."""
