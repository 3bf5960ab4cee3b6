"""Reports for users: TensorBoard, log lines, tables, images."""
