"""Motion as data: sequences, skeletons, capture and retargeting."""
