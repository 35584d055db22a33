"""Where numbers go: CSV, TensorBoard, W&B or nowhere."""
