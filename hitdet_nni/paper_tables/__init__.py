"""The paper's cost tables, counted again on our detectors and on mmdet's baselines."""
