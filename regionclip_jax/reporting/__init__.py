"""What people look at: TensorBoard, log lines, tables, pictures."""
